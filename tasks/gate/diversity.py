"""Does the policy still say different things? Collapse shows here before it shows in accuracy."""

import polars as pl
from pydantic import Field

from tasks.gate import Decision, GateCase, Gating, overall, unmeasured


class Diversity(Gating):
    """Refuses a round whose samples are much less diverse than its parent's (distinct-n, Li et al. 2016, arXiv:1510.03055), or
    whose pairs have a much narrower score gap between chosen and rejected.

    The gap shrinks as a policy collapses: nine-fold in four rounds of plain self-rewarding, as Temporal Self-Rewarding
    reports (Wang et al. 2025, arXiv:2508.06026), which is to 0.58 of it each round. How wide it is says little, since
    pairs are made of answers that lie a margin apart.
    """

    measure: str = "distinct_2"
    """The measure of the evaluation that is compared, by its name on the held-out set."""
    min_ratio: float = Field(0.5, ge=0)
    """Smallest share of the parent's diversity that must be left."""
    min_gap_ratio: float = Field(0.6, ge=0)
    """Smallest share of the parent's mean score gap that must be left. Passed where one of the two has no pairs, or where
    other judges scored them: gaps of two rewards have no unit in common."""

    def __call__(self, case: GateCase) -> list[Decision]:
        """Metrics: `gate_diversity` and `gate_pair_gap_ratio` (the shares), `gate_pair_gap`, `gate_kept` (share of the
        responses kept).
        """
        return [self._spread(case), self._gap(case)]

    def _spread(self, case: GateCase) -> Decision:
        ours, parents = (overall(m, case.split) for m in (case.measures, case.parent_measures))
        kept = case.filtered.select(pl.col("kept").cast(pl.Float64).mean()).collect().item()
        metrics = {} if kept is None else {"gate_kept": kept}
        if decision := unmeasured("diversity", self.measure, ours, parents, "gate.diversity.measure"):
            return Decision("diversity", decision.passed, decision.reason, metrics=metrics)
        now, before = ours[self.measure], parents[self.measure]
        if not before:
            return Decision("diversity", True, f"the parent has no {self.measure} to lose", metrics=metrics)
        share = now / before
        reason = f"{self.measure} {before:.3f} → {now:.3f}: {share:.0%} is left, at least {self.min_ratio:.0%} must be"
        metrics |= {"gate_diversity": share}
        return Decision("diversity", share >= self.min_ratio, reason, share, self.min_ratio, metrics)

    def _gap(self, case: GateCase) -> Decision:
        now, before = mean_gap(case.pairs), mean_gap(case.parent_pairs)
        metrics = {} if now is None else {"gate_pair_gap": now}
        ours, parents = judges(case.pairs), judges(case.parent_pairs)
        if now is None or before is None:
            who = "this round" if now is None else "the parent"
            return Decision("diversity/pairs", True, f"{who} has no pairs to compare", metrics=metrics)
        if ours != parents:
            reason = f"the gaps are of {', '.join(parents)} and of {', '.join(ours)}, which have no unit in common"
            return Decision("diversity/pairs", True, reason, metrics=metrics)
        share = now / before  # a chosen answer is better than its rejected one: no gap is 0
        reason = f"chosen and rejected lie {before:.3f} → {now:.3f} apart: {share:.0%} is left, "
        metrics |= {"gate_pair_gap_ratio": share}
        return Decision(
            "diversity/pairs", share >= self.min_gap_ratio, f"{reason}at least {self.min_gap_ratio:.0%} must be", share,
            self.min_gap_ratio, metrics,
        )  # fmt: skip


def judges(pairs: pl.LazyFrame) -> list[str]:
    """The judges whose scores the pairs have, by name."""
    return pairs.select(pl.col("judge").drop_nulls().unique().sort()).collect()["judge"].to_list()


def mean_gap(pairs: pl.LazyFrame) -> float | None:
    """Mean score difference between chosen and rejected, in the reward judge's units; None without pairs."""
    gap: float | None = pairs.select((pl.col("chosen_score") - pl.col("rejected_score")).mean()).collect().item()
    return gap
