"""Is what the base could do still there?"""

import polars as pl
from pydantic import Field

from tasks.gate import Decision, Evidence
from tasks.stage import Strategy


class Coverage(Strategy):
    """Sharpening trades the breadth of samples for their accuracy: of the frozen problems that at least one of the
    base's samples solved, the share that at least one of the round's samples still solves. Both see equally many
    samples, so a problem that the base solved by luck may fall out by bad luck: the bound is below 1.
    """

    least: float = Field(0.9, ge=0, le=1)
    """Smallest share still solved."""

    def __call__(self, evidence: Evidence) -> list[Decision]:
        """Metrics: `gate_coverage` (that share), `gate_new` (problems solved that no sample of the base solved)."""
        base, now = solved(evidence.base_evals, evidence.split), solved(evidence.evals, evidence.split)
        both = base.join(now, on="item", suffix="_now")
        could = both.filter("solved")
        if refused := incomparable(base, both, evidence.split):
            return [Decision("coverage", False, refused)]
        share = could["solved_now"].sum() / len(could)
        new = float(both.filter(~pl.col("solved") & pl.col("solved_now")).height)
        reason = f"{could['solved_now'].sum()} of {len(could)} problems that the base solved; wanted {self.least:g}"
        metrics = {"gate_coverage": share, "gate_new": new}
        return [Decision("coverage", share >= self.least, reason, share, self.least, metrics)]


def incomparable(base: pl.DataFrame, both: pl.DataFrame, split: str) -> str | None:
    """Why the share would say nothing; None where it does."""
    if not base["solved"].any():
        return f"no sampled {split} problem was solved by the base"
    lost, alike = len(base) - len(both), "give both the same evaluate.panel.answers"
    if lost:
        return f"{lost} of {len(base)} problems that the base sampled were not sampled by this round; {alike}"
    other = both.filter(pl.col("samples") != pl.col("samples_now"))
    if len(other):
        then, now = other.select("samples", "samples_now").row(0)
        return f"the base was sampled {then} times a problem and this round {now} times; {alike}"
    return None


def solved(evals: pl.LazyFrame, split: str) -> pl.DataFrame:
    """item, solved, samples: whether any sample of an item is right, and how many were drawn. One that could not be
    checked solved nothing.
    """
    rows = evals.filter(split=split, mode="sampled")
    right = pl.col("correct").fill_null(value=False).any()
    return rows.group_by("item").agg(solved=right, samples=pl.len()).sort("item").collect()
