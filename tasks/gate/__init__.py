"""Gate: whether a round's model is better than its parent's, and whether anything was lost on the way.

A gate says yes or no and why; it never fails, and nothing is undone by it. What follows from it (the alias of the model
registry, the parent of the next round) is for others to do. Where the evidence that a gate asks for is missing, a
model is not promoted.

What follows from gates is a choice, so they look at the validation set: the held-out set, on which a champion is
reported, has then not chosen it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import polars as pl

from tasks import tables
from tasks.stage import Panel, Result, stage


@dataclass(frozen=True)
class Evidence:
    """What gates look at: this round's evaluation, its parent's and the base's, and the round's data."""

    evals: pl.LazyFrame
    measures: pl.LazyFrame
    pairs: pl.LazyFrame
    filtered: pl.LazyFrame
    parent_evals: pl.LazyFrame
    parent_measures: pl.LazyFrame
    base_evals: pl.LazyFrame
    split: Literal["validation", "heldout"] = "validation"

    def lacking(self) -> str | None:
        """Who answered no problem of the split, and what to do; None where all did."""
        given = {"this round": self.evals, "its parent": self.parent_evals, "the base": self.base_evals}
        answered = (pl.col("split") == self.split) & pl.col("mode").is_in(["greedy", "sampled"])
        without = [who for who, rows in given.items() if rows.filter(answered).limit(1).collect().is_empty()]
        if not without:
            return None
        return (
            f"no {self.split} problem was answered by {', '.join(without)}: name {self.split} in their "
            f"evaluate.panel.answers.splits, or another set in this round's gate.split"
        )


@dataclass(frozen=True)
class Decision:
    """What one gate says: `value` is what it looked at, `threshold` what that had to reach."""

    gate: str
    passed: bool
    reason: str
    value: float | None = None
    threshold: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)


class Gate(Panel):
    """Gates, each called as `member(evidence)`; each gives a list of `Decision`. A round is promoted when all of them
    pass.
    """

    split: Literal["validation", "heldout"] = "validation"
    """The frozen set whose answers are looked at. Held-out ones choose the lineage that is then reported on them."""


@stage(outputs=[tables.decisions])
def gate(
    params: Gate,
    evals: pl.LazyFrame,
    measures: pl.LazyFrame,
    pairs: pl.LazyFrame,
    filtered: pl.LazyFrame,
    parent_evals: pl.LazyFrame,
    parent_measures: pl.LazyFrame,
    base_evals: pl.LazyFrame,
) -> Result:
    """Asks every gate of the panel; the row `all` is their conjunction."""
    evidence = Evidence(evals, measures, pairs, filtered, parent_evals, parent_measures, base_evals, params.split)
    if lacking := evidence.lacking():
        decisions = [Decision(name, False, lacking) for name in sorted(params.panel)]
    else:
        decisions = [d for name in sorted(params.panel) for d in params.panel[name](evidence)]
    rows = [{c: getattr(d, c) for c in tables.decisions.schema.names} for d in [*decisions, together(decisions)]]
    metrics = {name: value for d in decisions for name, value in d.metrics.items()}
    return Result({"decisions": tables.frame(tables.decisions, rows).sort("gate")}, metrics)


def together(decisions: Sequence[Decision]) -> Decision:
    """The decision on the round: promoted when no gate refuses. Without gates nothing stands in its way."""
    refused = [d.gate for d in decisions if not d.passed]
    reason = f"refused by {', '.join(refused)}" if refused else "every gate passed"
    passed = float(len(decisions) - len(refused))
    return Decision("all", not refused, reason, passed, float(len(decisions)))


def per_item(evals: pl.LazyFrame, mode: str, split: str) -> pl.DataFrame:
    """item, level, rate (share of its checked answers that are right), answers: of each item of a split, by item."""
    rows = evals.filter(split=split, mode=mode).filter(pl.col("correct").is_not_null())
    rate = pl.col("correct").cast(pl.Float64).mean().alias("rate")
    found = rows.group_by("item").agg(pl.col("level").first(), rate, pl.len().alias("answers"))
    return found.sort("item").collect()


def paired(evidence: Evidence, mode: str) -> pl.DataFrame:
    """item, parent, child: rates of the items that both models answered, by item."""
    parent = per_item(evidence.parent_evals, mode, evidence.split).select("item", pl.col("rate").alias("parent"))
    child = per_item(evidence.evals, mode, evidence.split).select("item", pl.col("rate").alias("child"))
    return parent.join(child, on="item").sort("item")


def overall(measures: pl.LazyFrame, split: str) -> dict[str, float]:
    """The measures over all levels, by name: those of a split's answers, and those that are of no split's answers, such
    as a judge's on the gold set.
    """
    rows = measures.filter(pl.col("level").is_null()).drop_nulls("value").select("name", "value").sort("name").collect()
    found: dict[str, float] = dict(rows.rows())
    validation = {n.removeprefix("validation_"): v for n, v in found.items() if n.startswith("validation_")}
    rest = {n: v for n, v in found.items() if not n.startswith("validation_")}
    return rest | validation if split == "validation" else rest
