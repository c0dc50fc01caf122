"""Train: a model's weights, fine-tuned on the rows that `collect` gathered.

A round that collected nothing does not fail: its model is the one that it starts from, and the metric `trained` says 0,
so that a night of rounds goes on.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import polars as pl
from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from tasks.core.devices import device_lock
from tasks.core.errors import ParamsError
from tasks.core.plugin import Params
from tasks.core.roster import Models
from tasks.core.stage import Opens, Result, Strategy, stage
from tasks.train._devices import check_devices, on_devices
from tasks.training.lora import Lora
from tasks.where import Placement

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tasks.training.loop import Schedule
    from tasks.training.weighted import RowTrainer

Ancestor = Literal["parent", "base", "anchor", "grandparent"]
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
    reference: dict[Path, float] | None
    """Folders of the models whose weighted average a preference loss compares with, with their shares; None takes the
    policy as that loss finds it."""
    model: Path
    """Folder to write the trained model into."""
    work: Path
    """Scratch folder that survives a kill, for checkpoints."""
    seed: int
    devices: int = 1
    """How many processes train it, each on a device of its own and with the same case."""


class TrainOptions(Params):
    """On what a model is trained, whatever the strategy."""

    devices: PositiveInt = 1
    """Devices that train one model: GPUs, or CPUs where there is none. Each has a copy of it and its share of the rows of a step
    (DDP), so a step has the same rows on any number of them; sums are made in another order, so the last digits of the
    weights differ."""


class Training(Strategy):
    """What every way to train shares: from which model, against which reference."""

    learns_from_training: ClassVar[bool] = True
    """Whether it learns from `training`; else its rows are left out."""
    learns_from_preferences: ClassVar[bool] = False
    """Whether it learns from `preferences`, so that these alone are something to train on; else they are left out."""
    has_reference: ClassVar[bool] = False
    """Whether its loss compares with a reference."""
    on_several_devices: ClassVar[bool] = False
    """Whether several ranks can run it at once (`tasks.training.ranks`)."""
    can_be_sharded: ClassVar[bool] = False
    """Whether they can have a share of the weights each."""
    used_columns: ClassVar[frozenset[str]] = frozenset()
    """Columns that it honours, of `training.weight`, `training.label`, `training.tag`, `training.mask`,
    `preferences.weight` and `preferences.smoothing`; rows that need another one are refused."""

    start: Literal["parent", "base", "anchor"] = "parent"
    """The model whose weights are trained: `base` starts every round of a line anew, on all that was collected."""
    reference: Literal["start", "parent", "base", "anchor", "grandparent"] | dict[Ancestor, PositiveFloat] = "start"
    """The model that a preference loss compares the policy with; `start` is the policy as that loss finds it. A map of names
    to shares that sum to 1, such as `{parent: 0.5, base: 0.5}`, is the model with the average of their weights (SALSA,
    Chegini et al. 2024, arXiv:2411.01798, for the KL term of PPO: the midpoint of two SFT models did best)."""

    @field_validator("reference")
    @classmethod
    def _check_shares(cls, reference: str | dict[str, float]) -> str | dict[str, float]:
        if isinstance(reference, dict) and abs(sum(reference.values()) - 1) > 1e-6:
            total = sum(reference.values())
            raise ValueError(f"the shares {reference} sum to {total:g}; write shares that sum to 1")
        return reference

    @model_validator(mode="after")
    def _check_reference(self) -> Self:
        if self.reference != "start" and not self.has_reference:
            raise ValueError(
                f"{self.strategy_name()} has no loss with a reference; leave out `reference: {self.reference}`"
            )
        return self

    def reference_shares(self) -> dict[str, float]:
        """Names of the models that the reference is made of, with their shares; empty where it is the policy."""
        if isinstance(self.reference, dict):
            return dict(self.reference)
        return {} if self.reference == "start" else {self.reference: 1.0}

    def opened_models(self) -> frozenset[str]:
        """The start and the reference."""
        return frozenset({self.start, *self.reference_shares()})

    def __call__(self, case: TrainCase) -> pl.DataFrame:
        """Writes the trained model and gives the curve: step, phase, name, value.

        Raises:
            Diverged: when a loss, gradient or weight is not finite; nothing is written then.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Steps:
    """How often, in which batches and how fast a phase goes over its rows."""

    epochs: int
    batch: int
    muon_lr: float | None
    adamw_lr: float


class FineTuning(Training):
    """What strategies that fine-tune on rows share: Muon on the matrices, AdamW on the rest, by TRL's trainers."""

    epochs: PositiveInt = 2
    """Passes over the rows."""
    batch: PositiveInt = 48
    """Rows a step; batches hold rows of like length. With fewer rows an epoch is one step."""
    micro_batch: PositiveInt | None = None
    """Rows at once, where a whole batch does not fit into memory; must divide it. The loss stays the batch's."""
    gradient_checkpointing: bool = False
    """Compute activations twice and do not keep them: less memory, more time, the same loss."""
    parameters: Literal["float32", "bfloat16"] = "float32"
    """Precision in which weights are kept while they are trained. bfloat16 takes half of the memory, also of the optimizer's
    state, and loses steps below about a 256th of a weight. The model is stored in its start's precision in either case."""
    sharded: bool = False
    """Share weights, gradients and the optimizer's state out among the round's `devices` (FSDP2), for a model that one device
    does not hold. AdamW then trains all weights at `adamw_lr`, for torch's Muon cannot step on shares of a matrix."""
    muon_lr: PositiveFloat | None = 0.004
    """Peak learning rate of Muon, on the hidden matrices (with an adapter: on its factors); null trains them by AdamW, too, as
    is usual for models of billions of parameters, where Muon's own work may be most of a step."""
    adamw_lr: PositiveFloat = 0.0005
    """Peak learning rate of AdamW, on embeddings, norms and the head."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps in which the learning rates rise; then they go as `schedule` says."""
    schedule: Literal["linear", "wsd"] = "linear"
    """After the warm-up, `linear` falls to zero. `wsd` (warm-up, stable, decay; Hu et al. 2024, arXiv:2404.06395) stays at
    the peak, and falls in the last `decay` of the steps as peak · 0.1^(part of the decay that is over). MiniCPM's decay is
    exponential as well; that it ends at a tenth is our reading."""
    decay: float = Field(0.1, gt=0, le=1)
    """Share of the steps in which the learning rates fall, where the schedule has a trunk. A tenth is enough, a fortieth is
    not (Hu et al. 2024)."""
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

    @model_validator(mode="after")
    def _check_sharded(self) -> Self:
        if self.sharded and not self.can_be_sharded:
            raise ValueError(
                f"sharded is true, but {self.strategy_name()} needs whole weights; leave it out, or take sft or dpo"
            )
        if self.sharded and self.schedule != "linear":
            raise ValueError(
                f"sharded is true, which has the schedule linear, and not {self.schedule}; leave one of them out"
            )
        if self.sharded and self.parameters != "float32":
            raise ValueError(
                "sharded is true, which keeps shares of the weights in float32; leave out `parameters: bfloat16`"
            )
        return self

    @property
    def steps(self) -> Steps:
        """Those of the rows."""
        return Steps(self.epochs, self.batch, self.muon_lr, self.adamw_lr)

    def load(self, case: TrainCase) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
        """The policy to train, with its adapter, and its tokenizer. Raises ModelRefused as `weights.load`."""
        from tasks.training.weights import DTYPES, load

        return load(case.start, self.adapter, case.seed, DTYPES["F32" if self.parameters == "float32" else "BF16"])

    def schedule_of(self, rows: int, steps: Steps, seed: int) -> "Schedule":
        """How so many rows become steps."""
        from tasks.training import ranks
        from tasks.training.loop import Schedule

        shape = "linear" if self.schedule == "linear" else "wsd"
        return Schedule(
            rows, steps.epochs, steps.batch, self.micro_batch, self.warmup, seed, shape, self.decay, ranks.count()
        )

    def settings_of(self, work: Path, schedule: "Schedule", steps: Steps) -> dict[str, Any]:
        """Settings of a trainer with this schedule."""
        from tasks.training.loop import arguments, sharded

        settings = arguments(work, schedule) | {"gradient_checkpointing": self.gradient_checkpointing}
        return settings | (sharded(steps.adamw_lr, self.gradient_checkpointing) if self.sharded else {})

    def optimizers_of(self, policy: "PreTrainedModel", schedule: "Schedule", steps: Steps) -> tuple[Any, Any]:
        """Optimizer and scheduler of a trainer; None where it makes them by its settings."""
        from tasks.training.loop import optimizers

        return (None, None) if self.sharded else optimizers(policy, steps.muon_lr, steps.adamw_lr, schedule)

    def supervised(
        self, policy: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", rows: pl.DataFrame, work: Path, seed: int
    ) -> tuple["PreTrainedModel", list[dict[str, Any]]]:
        """Trains `policy`, or the adapter on it, on the rows, going on from the checkpoints in `work`; the trained model and
        its curve.
        """
        from tasks.training.loop import fit, put_in_order
        from tasks.training.rows import lengths

        trainer, schedule = self.row_trainer(policy, tokenizer, rows, work, seed)
        self.watch(trainer, schedule)
        put_in_order(trainer, self.row_order(rows, lengths(trainer.train_dataset, "input_ids"), schedule), schedule)
        curve = fit(trainer, "sft")
        return trainer.model, curve

    def row_order(self, rows: pl.DataFrame, lengths: list[int], schedule: "Schedule") -> list[int]:
        """Indices of the rows, which have so many tokens, as their steps take them."""
        from tasks.training.loop import in_order

        return in_order(lengths, schedule.batch, schedule.epochs, schedule.seed)

    def watch(self, trainer: "RowTrainer", schedule: "Schedule") -> None:
        """Called before the trainer of the rows starts: a place to add callbacks."""

    def row_trainer(
        self,
        policy: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        rows: pl.DataFrame,
        work: Path,
        seed: int,
        kind: "type[RowTrainer] | None" = None,
        columns: tuple[str, ...] = (),
        held_out: pl.DataFrame | None = None,
        **changes: Any,
    ) -> tuple["RowTrainer", "Schedule"]:
        """A trainer of this kind (by default `RowTrainer`) on the rows, which keep these columns, and its schedule. Rows that
        are held out are its `eval_dataset`. `changes` are settings that it has otherwise.
        """
        from trl import SFTConfig

        from tasks.training.loop import on_one_device
        from tasks.training.rows import FOLDER
        from tasks.training.weighted import RowTrainer, dataset

        schedule = self.schedule_of(len(rows), self.steps, seed)
        settings = self.settings_of(work, schedule, self.steps) | changes
        kept = None if held_out is None else dataset(held_out, work / f"{FOLDER} held out", tokenizer, *columns)
        trainer = (kind or RowTrainer)(
            policy,
            on_one_device(SFTConfig(**settings)),
            train_dataset=dataset(rows, work / FOLDER, tokenizer, *columns),
            eval_dataset=kept,
            processing_class=tokenizer,
            optimizers=self.optimizers_of(policy, schedule, self.steps),
        )
        return trainer, schedule


@stage(folders=["model"], plots={"train": {"x": "step", "y": "loss"}})
def train(
    strategy: Training,
    options: TrainOptions,
    training: pl.LazyFrame,
    preferences: pl.LazyFrame,
    models: Annotated[Models, Opens("parent", "base", "anchor", "grandparent")],
    model: Path,
    work: Path,
    seed: int,
    where: Placement,
) -> Result:
    """Fine-tunes the start on the collected rows.

    Metrics: `trained` (0 when there was nothing to learn from and the start's weights were taken over) and the last value
    of each curve as `<phase>_<name>`.

    Raises:
        ParamsError: when rows need a column that the strategy ignores, and for more devices than there are.
    """
    learnt = {"training": strategy.learns_from_training, "preferences": strategy.learns_from_preferences}
    rows = {"training": _usable(training), "preferences": _usable(preferences)}
    rows = {name: frame if learnt[name] else frame.clear() for name, frame in rows.items()}
    start = models.folder(strategy.start)
    if not any(map(len, rows.values())):
        shutil.copytree(start, model, dirs_exist_ok=True)
        warning = f"there was nothing to learn from: the model is the {strategy.start}'s, unchanged"
        return Result({}, {"trained": 0.0}, {"train": wide(pl.DataFrame(schema=CURVE))}, (warning,))
    for table, frame in rows.items():
        _check_columns(strategy, table, frame)
    check_devices(options.devices, where)
    reference = _reference_folders(strategy, models)
    case = TrainCase(
        **rows, start=start, reference=reference, model=model, work=work, seed=seed, devices=options.devices
    )
    with device_lock(options.devices) as names:
        curve = strategy(case) if options.devices == 1 else on_devices(strategy, case, names, where)
    return Result({}, {"trained": 1.0} | last_values(curve), {"train": wide(curve)})


def last_values(curve: pl.DataFrame) -> dict[str, float]:
    """The last value of each curve, by `<phase>_<name>`."""
    ends = curve.sort("phase", "name", "step").group_by("phase", "name", maintain_order=True).last()
    return {f"{row['phase']}_{row['name']}": row["value"] for row in ends.iter_rows(named=True)}


def wide(curve: pl.DataFrame) -> pl.DataFrame:
    """The curve with a column for each name, as plots want it; a row for each step of each phase."""
    table = curve.pivot("name", index=["phase", "step"], values="value")
    return table if "loss" in table.columns else table.with_columns(loss=pl.lit(None, pl.Float64))


def _reference_folders(strategy: Training, models: Models) -> dict[Path, float] | None:
    """Folders and shares; two names may be of one folder."""
    shares: dict[Path, float] = {}
    for name, share in strategy.reference_shares().items():
        folder = models.folder(name)
        shares[folder] = shares.get(folder, 0.0) + share
    return shares or None


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
