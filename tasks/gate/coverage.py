"""Is what the base could do still there?"""

import polars as pl
from pydantic import Field

from tasks.gate import GRADER, Decision, GateCase, Gating, score

PASS = 0.5
"""Smallest grade of an answer that counts as solving its problem, where an examiner grades what cannot be checked."""


class Coverage(Gating):
    """Refuses a round that lost what its base covered: of the frozen problems that at least one of the base's samples solved,
    the share that at least one of the round's samples still solves must be high. Training on its own answers can raise
    pass@1 and lower pass@k (Yue et al. 2025, arXiv:2504.13837). Both models have equally many samples, so a problem that the
    base solved by luck may be missed by bad luck: the bound is below 1, and our own.
    """

    min_share: float = Field(0.9, ge=0, le=1)
    """Smallest share still solved."""

    def __call__(self, case: GateCase) -> list[Decision]:
        """Metrics: `gate_coverage` (that share), `gate_new` (problems solved that no sample of the base solved)."""
        base, now = solved(case.base_evals, case.split), solved(case.evals, case.split)
        both = base.join(now, on="item", suffix="_now")
        if obstacle := incomparable(base, both, case.split):
            return [Decision("coverage", False, obstacle)]
        before = both.filter("solved")
        share = before["solved_now"].sum() / len(before)
        new = float(both.filter(~pl.col("solved") & pl.col("solved_now")).height)
        reason = (
            f"{before['solved_now'].sum()} of {len(before)} problems that the base solved are still solved ({share:.1%}); at least "
            f"{self.min_share:.1%} must be"
        )
        metrics = {"gate_coverage": share, "gate_new": new}
        return [Decision("coverage", share >= self.min_share, reason, share, self.min_share, metrics)]


def incomparable(base: pl.DataFrame, both: pl.DataFrame, split: str) -> str | None:
    """Why the share would say nothing; None where it does."""
    if not base["scored"].any():
        return f"no sampled {split} answer of the base has a score; {GRADER}"
    if not base["solved"].any():
        return f"no sampled {split} problem was solved by the base"
    lost, alike = len(base) - len(both), "give both the same evaluate.answers"
    if lost:
        return f"{lost} of {len(base)} problems that the base sampled were not sampled by this round; {alike}"
    other = both.filter(pl.col("samples") != pl.col("samples_now"))
    if len(other):
        then, now = other.select("samples", "samples_now").row(0)
        return f"the base was sampled {then} times a problem and this round {now} times; {alike}"
    return None


def solved(evals: pl.LazyFrame, split: str) -> pl.DataFrame:
    """item, solved, scored, samples: whether any sample of an item is right (its grade is at least `PASS` where it could
    not be checked), whether any has a score, and how many were drawn. What has no score solved nothing.
    """
    rows = evals.filter(split=split, mode="sampled")
    correct = pl.coalesce("correct", score() >= PASS).fill_null(value=False)
    columns = {"solved": correct.any(), "scored": score().is_not_null().any(), "samples": pl.len()}
    return rows.group_by("item").agg(**columns).sort("item").collect()
