"""Does the policy still say different things? Collapse shows here before it shows in accuracy."""

import polars as pl
from pydantic import Field, NonNegativeFloat

from tasks.errors import suggest
from tasks.gate import Decision, Evidence, overall
from tasks.stage import Strategy


class Diversity(Strategy):
    """The evaluation's distinct-n against the parent's, and the score gap of the round's pairs.

    The gap between chosen and rejected shrinks when a policy collapses (nine-fold in four rounds of plain
    self-rewarding, as Temporal Self-Rewarding reports); a round without pairs has none to look at.
    """

    measure: str = "distinct_2"
    """The measure of the evaluation that is compared, by its name on the held-out set."""
    least: float = Field(0.5, ge=0)
    """Smallest share of the parent's diversity that must be left."""
    gap: NonNegativeFloat = 0.0
    """Smallest mean score gap between chosen and rejected, in the reward judge's units."""

    def __call__(self, evidence: Evidence) -> list[Decision]:
        """Metrics: `gate_diversity` (the share), `gate_pair_gap`, `gate_kept` (share of the responses kept)."""
        kept = evidence.filtered.select(pl.col("kept").cast(pl.Float64).mean()).collect().item()
        gap = evidence.pairs.select((pl.col("chosen_score") - pl.col("rejected_score")).mean()).collect().item()
        found = {"gate_pair_gap": gap, "gate_kept": kept}
        metrics = {name: value for name, value in found.items() if value is not None}
        return [self._spread(evidence, metrics), *([] if gap is None else [self._gap(gap)])]

    def _spread(self, evidence: Evidence, metrics: dict[str, float]) -> Decision:
        ours, theirs = (overall(m, evidence.split) for m in (evidence.measures, evidence.parent_measures))
        now, before = ours.get(self.measure), theirs.get(self.measure)
        if now is None and before is None:
            why = f"neither round was measured by gate.panel.diversity.measure {self.measure!r}"
            return Decision("diversity", False, f"{why}; {suggest(self.measure, ours | theirs)}", metrics=metrics)
        if not before:
            return Decision("diversity", True, f"the parent has no {self.measure} to lose", metrics=metrics)
        if now is None:
            return Decision("diversity", False, f"{self.measure} was not measured", metrics=metrics)
        share = now / before
        reason = f"{self.measure} {before:.3f} → {now:.3f}: {share:.0%} is left, wanted {self.least:.0%}"
        return Decision(
            "diversity", share >= self.least, reason, share, self.least, metrics | {"gate_diversity": share}
        )

    def _gap(self, gap: float) -> Decision:
        reason = f"chosen and rejected lie {gap:.3f} apart, wanted {self.gap:g}"
        return Decision("diversity/pairs", gap >= self.gap, reason, gap, self.gap)
