"""Train: the parent's weights, fine-tuned on what the round kept.

The stage collects the rows, in TRL's prompt / completion columns; a strategy only trains on them. A round that kept
nothing does not fail: its model is the parent's, and the metric `trained` says 0, so that a night of rounds goes on.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import polars as pl
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from tasks import tables
from tasks.domains import Domain
from tasks.stage import Params, Result, Strategy, content_id, seed_of, stage

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

COLUMNS = ["id", "prompt_id", "response_id", "model", "source", "prompt", "completion"]
TURNS = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
SCHEMA = {name: TURNS if name in ("prompt", "completion") else pl.String() for name in COLUMNS}
CURVE = {"step": pl.Int64, "phase": pl.String, "name": pl.String, "value": pl.Float64}


class Training(Strategy):
    """What every way to train shares: which rows it learns from.

    Called as `params(rows, pairs, parent_model=…, model=…, work=…, seed=…, domain=…)` with the `training` rows and the
    round's pairs as `pl.DataFrame`; writes the fine-tuned model into the folder `model`, keeps its checkpoints in
    `work`, and gives back the curve: a `pl.DataFrame` of step, phase, name, value.
    """

    learns_from_pairs: ClassVar[bool] = False
    """Whether pairs alone are something to train on."""

    replay: NonNegativeFloat = 0.0
    """Rows of the parent's training mixed in against forgetting, as a share of the new rows (0.25: one for four)."""
    refinements: bool = True
    """Learn from successful refinements, as answers to the problem: the critique that led to them is left out."""
    critiques: bool = True
    """Learn from kept critiques: the critic's prompt and what it wrote."""


class Lora(Params):
    """A low-rank adapter on all linear layers (Hu et al. 2021, arXiv:2106.09685)."""

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    dropout: float = Field(0.0, ge=0, lt=1)
    merge: bool = True
    """Merge it into the weights when the training ends. If not, the round's model is the adapter alone, on the base of
    its line: a few megabytes for a model of any size, which engine vllm serves beside the base without merging. A round
    whose parent is such an adapter keeps both as one, so the rank grows by `rank` with every round.
    What is trained differs too where one step follows another: `sft_dpo` goes on in DPO with the adapter that SFT made,
    of which merging makes a new one on top of the merged weights."""


class FineTuning(Training):
    """What strategies that fine-tune on rows share: Muon on the matrices, AdamW on the rest, by TRL's SFTTrainer."""

    epochs: PositiveInt = 2
    """Passes over the rows."""
    batch: PositiveInt = 48
    """Rows a step; batches hold rows of like length."""
    matrices: PositiveFloat = 0.004
    """Peak learning rate of Muon, on the hidden matrices (with an adapter: on its factors)."""
    rest: PositiveFloat = 0.0005
    """Peak learning rate of AdamW, on embeddings, norms and the head."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps in which the learning rates rise; then they fall to zero, linearly."""
    blend: float = Field(0.6, gt=0, le=1)
    """How far to go from the parent's weights to the trained ones; below 1 the two are averaged (Wortsman et al. 2022,
    arXiv:2109.01903).
    """
    max_length: PositiveInt = 512
    """Longest prompt and completion together, in tokens."""
    adapter: Lora | None = None
    """Train a low-rank adapter in the place of all weights."""

    def supervised(
        self, policy: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", rows: pl.DataFrame, work: Path, seed: int
    ) -> tuple["PreTrainedModel", list[dict[str, Any]]]:
        """Trains `policy`, or the adapter on it, on the rows, going on from the checkpoints in `work`; the trained model and
        its curve.
        """
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        from tasks.training import MuonAdamW, arguments, fit, in_order

        data = Dataset.from_list(rows.select("prompt", "completion").to_dicts())
        steps = -(-len(rows) * self.epochs // self.batch)
        config = SFTConfig(max_length=self.max_length, **arguments(work, steps, self.batch, seed, self.warmup))
        optimizer = MuonAdamW(policy, self.matrices, self.rest)
        trainer = SFTTrainer(
            policy, config, train_dataset=data, processing_class=tokenizer, optimizers=(optimizer, None)
        )
        tokens = trainer.train_dataset
        order = in_order([len(ids) for ids in tokens["input_ids"]], self.batch, self.epochs, seed)
        trainer.train_dataset = tokens.select(order)
        return trainer.model, fit(trainer, "sft")


@stage(
    outputs=[tables.training],
    folders=["model"],
    plots={"train": {"x": "step", "y": "loss"}},
)
def train(
    params: Training,
    prompts: pl.LazyFrame,
    responses: pl.LazyFrame,
    filtered: pl.LazyFrame,
    critiques: pl.LazyFrame,
    refinements: pl.LazyFrame,
    pairs: pl.LazyFrame,
    parent_training: pl.LazyFrame,
    parent_model: Path,
    model: Path,
    work: Path,
    seed: int,
    domain: Domain,
) -> Result:
    """Fine-tunes the parent on kept answers, successful refinements, kept critiques and replayed rows.

    Metrics: `trained` (0 when there was nothing to learn from and the parent's weights were taken over) and the last
    value of each curve as `<phase>_<name>`.
    """
    sources = [kept_responses(prompts, responses, filtered)]
    if params.refinements:
        sources.append(successful_refinements(prompts, refinements))
    if params.critiques:
        sources.append(kept_critiques(critiques))
    new = _collect(sources)
    rows = _collect([new.lazy(), replayed(parent_training, new, params.replay, seed).lazy()])
    preferences = pairs.sort("id").collect()
    if rows.is_empty() and not (params.learns_from_pairs and len(preferences)):
        shutil.copytree(parent_model, model, dirs_exist_ok=True)
        return Result({"training": rows}, {"trained": 0.0}, {"train": wide(pl.DataFrame(schema=CURVE))})
    place = {"parent_model": parent_model, "model": model, "work": work}
    curve = params(rows, preferences, **place, seed=seed, domain=domain)
    return Result({"training": rows}, {"trained": 1.0} | last_values(curve), {"train": wide(curve)})


def kept_responses(prompts: pl.LazyFrame, responses: pl.LazyFrame, filtered: pl.LazyFrame) -> pl.LazyFrame:
    """Kept answers after their problem's prompt; a hint that they were made with is not part of that prompt."""
    kept = filtered.filter(pl.col("kept")).select("id")
    answers = responses.join(kept, on="id", how="semi").rename({"id": "response_id"})
    return _after_prompt(prompts, answers, "responses")


def successful_refinements(prompts: pl.LazyFrame, refinements: pl.LazyFrame) -> pl.LazyFrame:
    """Refinements that reached their target, one per critique (the first), as answers to the bare problem.

    As the loop of AutoMathCritique does (Xi et al. 2024, arXiv:2411.16579).
    """
    first = refinements.filter(pl.col("success")).sort("critique_id", "sample", "id")
    answers = first.unique("critique_id", keep="first", maintain_order=True)
    answers = answers.unique(["prompt_id", "response"], keep="first", maintain_order=True)
    return _after_prompt(prompts, answers.drop("response_id").rename({"id": "response_id"}), "refinements")


def kept_critiques(critiques: pl.LazyFrame) -> pl.LazyFrame:
    """Kept critiques after the critic's own prompt."""
    kept = critiques.filter(pl.col("kept")).rename({"critique": "text"})
    return kept.select("prompt_id", "response_id", "model", "prompt", "text", source=pl.lit("critiques"))


def replayed(parent: pl.LazyFrame, new: pl.DataFrame, share: float, seed: int) -> pl.DataFrame:
    """`share` × the number of new rows, drawn from the parent's training rows by a hash of seed and row id."""
    old = parent.collect().join(new, on="id", how="anti")
    order = old["id"].map_elements(lambda row: seed_of("replay", seed, row), return_dtype=pl.Int64)
    drawn = old.with_columns(order=order).sort("order", "id").head(round(share * len(new)))
    return drawn.with_columns(source=pl.lit("replay")).select(COLUMNS)


def last_values(curve: pl.DataFrame) -> dict[str, float]:
    """The last value of each curve, by `<phase>_<name>`."""
    ends = curve.sort("phase", "name", "step").group_by("phase", "name", maintain_order=True).last()
    return {f"{row['phase']}_{row['name']}": row["value"] for row in ends.iter_rows(named=True)}


def wide(curve: pl.DataFrame) -> pl.DataFrame:
    """The curve with a column for each name, as plots want it; a row for each step of each phase."""
    table = curve.pivot("name", index=["phase", "step"], values="value")
    return table if "loss" in table.columns else table.with_columns(loss=pl.lit(None, pl.Float64))


def _after_prompt(prompts: pl.LazyFrame, answers: pl.LazyFrame, source: str) -> pl.LazyFrame:
    asked = prompts.select(pl.col("id").alias("prompt_id"), "prompt")
    answers = answers.select("prompt_id", "response_id", "model", pl.col("response").alias("text"))
    return answers.join(asked, on="prompt_id").with_columns(source=pl.lit(source))


def _collect(sources: list[pl.LazyFrame]) -> pl.DataFrame:
    return pl.concat([_rows(s.collect()) for s in sources]).unique("id", keep="first").sort("id")


def _rows(frame: pl.DataFrame) -> pl.DataFrame:
    """In the columns of `training`: an id from what the row is made of, and the text as the assistant's turn."""
    if "completion" in frame.columns:
        return frame.select(COLUMNS).cast(SCHEMA)
    names = frame.select("source", "prompt_id", "response_id", "text").rows()
    ids = pl.Series("id", [content_id("training", *name) for name in names], dtype=pl.String)
    turn = pl.struct(role=pl.lit("assistant"), content=pl.col("text"))
    return frame.with_columns(ids, completion=pl.concat_list(turn)).select(COLUMNS).cast(SCHEMA)
