"""Is what the base could do still there?"""

import polars as pl
from pydantic import Field

from tasks.gate import Decision, Evidence, per_item
from tasks.stage import Strategy


class Coverage(Strategy):
    """Sharpening trades the breadth of samples for their accuracy: of the held-out problems that at least one of the
    base's samples solved, the share that at least one of the round's samples still solves. Both see equally many
    samples, so a problem that the base solved by luck may fall out by bad luck: the bound is below 1.
    """

    least: float = Field(0.9, ge=0, le=1)
    """Smallest share still solved."""

    def __call__(self, evidence: Evidence) -> list[Decision]:
        """Metrics: `gate_coverage` (that share), `gate_new` (problems solved that no sample of the base solved)."""
        base, now = solved(evidence.base_evals), solved(evidence.evals)
        both = base.join(now, on="item", suffix="_now")
        could = both.filter("solved")
        if could.is_empty():
            return [Decision("coverage", False, "no held-out problem was solved by the base and sampled again")]
        share = could["solved_now"].sum() / len(could)
        new = float(both.filter(~pl.col("solved") & pl.col("solved_now")).height)
        reason = f"{could['solved_now'].sum()} of {len(could)} problems that the base solved; wanted {self.least:g}"
        metrics = {"gate_coverage": share, "gate_new": new}
        return [Decision("coverage", share >= self.least, reason, share, self.least, metrics)]


def solved(evals: pl.LazyFrame) -> pl.DataFrame:
    """item, solved: whether any checked sample of a held-out item is right."""
    return per_item(evals, "sampled").select("item", solved=pl.col("rate") > 0)
