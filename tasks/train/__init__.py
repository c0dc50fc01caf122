"""Train: a model's weights, fine-tuned on the rows that `collect` gathered.

A round that collected nothing does not fail: its model is the one that it starts from, and the metric `trained` says 0,
so that a night of rounds goes on.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import polars as pl
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from tasks.core.devices import device_lock
from tasks.core.errors import ParamsError
from tasks.core.roster import Models
from tasks.core.stage import Opens, Result, Strategy, stage
from tasks.training.lora import Lora

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CURVE = {"step": pl.Int64, "phase": pl.String, "name": pl.String, "value": pl.Float64}
SPECIAL = {
    "training": {
        "weight": pl.col("weight") != 1,
        "label": pl.col("label") == False,  # noqa: E712  (an expression)
        "tag": pl.col("tag").is_not_null(),
        "mask": pl.col("mask").list.len() > 0,
    },
    "preferences": {"weight": pl.col("weight") != 1, "smoothing": pl.col("smoothing") != 0},
}
"""Rows that are not what they seem to a trainer which ignores the column."""


@dataclass(frozen=True)
class TrainCase:
    """What a trainer works on."""

    training: pl.DataFrame
    """Rows of `training` without an error."""
    preferences: pl.DataFrame
    """Rows of `preferences` without an error."""
    start: Path
    """Folder of the model whose weights are trained."""
    reference: Path | None
    """Folder of the model that a preference loss compares with; None takes the policy as that loss finds it."""
    model: Path
    """Folder to write the trained model into."""
    work: Path
    """Scratch folder that survives a kill, for checkpoints."""
    seed: int


class Training(Strategy):
    """What every way to train shares: from which model, against which reference."""

    learns_from_preferences: ClassVar[bool] = False
    """Whether it learns from `preferences` too, so that these alone are something to train on."""
    used_columns: ClassVar[frozenset[str]] = frozenset()
    """Columns that it honours, of `training.weight`, `training.label`, `training.tag`, `training.mask`,
    `preferences.weight` and `preferences.smoothing`; rows that need another one are refused."""

    start: Literal["parent", "base", "anchor"] = "parent"
    """The model whose weights are trained: `base` starts every round of a line anew, on all that was collected."""
    reference: Literal["start", "parent", "base", "anchor"] = "start"
    """The model that a preference loss compares the policy with; `start` is the policy as that loss finds it."""

    @model_validator(mode="after")
    def _check_reference(self) -> Self:
        if self.reference != "start" and not self.learns_from_preferences:
            raise ValueError(
                f"{self.strategy_name()} has no loss with a reference; leave out `reference: {self.reference}`"
            )
        return self

    def opened_models(self) -> frozenset[str]:
        """The start and the reference."""
        return frozenset({self.start, self.reference}) - {"start"}

    def __call__(self, case: TrainCase) -> pl.DataFrame:
        """Writes the trained model and gives the curve: step, phase, name, value.

        Raises:
            Diverged: when a loss, gradient or weight is not finite; nothing is written then.
        """
        raise NotImplementedError


class FineTuning(Training):
    """What strategies that fine-tune on rows share: Muon on the matrices, AdamW on the rest, by TRL's SFTTrainer."""

    epochs: PositiveInt = 2
    """Passes over the rows."""
    batch: PositiveInt = 48
    """Rows a step; batches hold rows of like length. With fewer rows an epoch is one step."""
    micro_batch: PositiveInt | None = None
    """Rows at once, where a whole batch does not fit into memory; must divide it. The loss stays the batch's."""
    gradient_checkpointing: bool = False
    """Compute activations twice and do not keep them: less memory, more time, the same loss."""
    muon_lr: PositiveFloat = 0.004
    """Peak learning rate of Muon, on the hidden matrices (with an adapter: on its factors)."""
    adamw_lr: PositiveFloat = 0.0005
    """Peak learning rate of AdamW, on embeddings, norms and the head."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps in which the learning rates rise; then they fall to zero, linearly."""
    blend: float = Field(0.6, gt=0, le=1)
    """How far to go from the start's weights to the trained ones; below 1 the two are averaged (Wortsman et al. 2022,
    arXiv:2109.01903).
    """
    adapter: Lora | None = None
    """Train a low-rank adapter in the place of all weights."""

    @model_validator(mode="after")
    def _check_micro_batch(self) -> Self:
        for name in ("batch", "dpo_batch"):
            size = getattr(self, name, None)
            if size and self.micro_batch and size % self.micro_batch:
                raise ValueError(f"micro_batch is {self.micro_batch}, which does not divide {name} = {size}")
        return self

    def supervised(
        self, policy: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", rows: pl.DataFrame, work: Path, seed: int
    ) -> tuple["PreTrainedModel", list[dict[str, Any]]]:
        """Trains `policy`, or the adapter on it, on the rows, going on from the checkpoints in `work`; the trained model and
        its curve.
        """
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        from tasks.training.loop import Schedule, arguments, fit, in_order, on_one_device
        from tasks.training.optimizer import MuonAdamW

        schedule = Schedule(len(rows), self.epochs, self.batch, self.micro_batch, self.warmup, seed)
        config = SFTConfig(**arguments(work, schedule), gradient_checkpointing=self.gradient_checkpointing)
        trainer = SFTTrainer(
            policy,
            on_one_device(config),
            train_dataset=Dataset.from_list(rows.select("prompt", "completion").to_dicts()),
            processing_class=tokenizer,
            optimizers=(MuonAdamW(policy, self.muon_lr, self.adamw_lr), None),
        )
        tokens = trainer.train_dataset
        order = in_order([len(ids) for ids in tokens["input_ids"]], self.batch, self.epochs, seed)
        trainer.train_dataset = tokens.select(order)
        return trainer.model, fit(trainer, "sft")


@stage(folders=["model"], plots={"train": {"x": "step", "y": "loss"}})
def train(
    strategy: Training,
    training: pl.LazyFrame,
    preferences: pl.LazyFrame,
    models: Annotated[Models, Opens("parent", "base", "anchor", "grandparent")],
    model: Path,
    work: Path,
    seed: int,
) -> Result:
    """Fine-tunes the start on the collected rows.

    Metrics: `trained` (0 when there was nothing to learn from and the start's weights were taken over) and the last value
    of each curve as `<phase>_<name>`.

    Raises:
        ParamsError: when rows need a column that the strategy ignores.
    """
    rows = {"training": _usable(training)}
    rows["preferences"] = _usable(preferences) if strategy.learns_from_preferences else _usable(preferences).clear()
    start = models.folder(strategy.start)
    if not any(map(len, rows.values())):
        shutil.copytree(start, model, dirs_exist_ok=True)
        warning = f"there was nothing to learn from: the model is the {strategy.start}'s, unchanged"
        return Result({}, {"trained": 0.0}, {"train": wide(pl.DataFrame(schema=CURVE))}, (warning,))
    for table, frame in rows.items():
        _check_columns(strategy, table, frame)
    reference = None if strategy.reference == "start" else models.folder(strategy.reference)
    with device_lock():
        curve = strategy(TrainCase(**rows, start=start, reference=reference, model=model, work=work, seed=seed))
    return Result({}, {"trained": 1.0} | last_values(curve), {"train": wide(curve)})


def last_values(curve: pl.DataFrame) -> dict[str, float]:
    """The last value of each curve, by `<phase>_<name>`."""
    ends = curve.sort("phase", "name", "step").group_by("phase", "name", maintain_order=True).last()
    return {f"{row['phase']}_{row['name']}": row["value"] for row in ends.iter_rows(named=True)}


def wide(curve: pl.DataFrame) -> pl.DataFrame:
    """The curve with a column for each name, as plots want it; a row for each step of each phase."""
    table = curve.pivot("name", index=["phase", "step"], values="value")
    return table if "loss" in table.columns else table.with_columns(loss=pl.lit(None, pl.Float64))


def _usable(rows: pl.LazyFrame) -> pl.DataFrame:
    return rows.filter(pl.col("error").is_null()).sort("id").collect()


def _check_columns(strategy: Training, table: str, rows: pl.DataFrame) -> None:
    """Raises ParamsError for rows that would be trained on as if a column of theirs were not there."""
    for column, special in SPECIAL[table].items():
        refused = rows.filter(special)
        if len(refused) and f"{table}.{column}" not in strategy.used_columns:
            raise ParamsError(
                f"train: {len(refused)} rows of {table} from collect.{refused['member'][0]} have a {column} (the first is "
                f"{refused[column].to_list()[0]}), which train.{strategy.strategy_name()} does not use; leave it at its "
                "default there, or take a strategy that uses it"
            )
