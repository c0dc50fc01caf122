"""Is the round better than its parent, on the same problems?"""

import polars as pl
from pydantic import Field

from tasks.core.champion import points, signed_rank
from tasks.gate import GRADER, Decision, GateCase, Gating, paired


class Improves(Gating):
    """Promotes a round whose sampled accuracy is significantly above its parent's on the same frozen problems, by a one-sided
    signed-rank test on the differences of the problems' rates (Wilcoxon 1945). A rate is the share of right samples, or the
    mean grade where an examiner grades. Greedy answers are compared beside it, as a metric alone, by McNemar's exact test
    (1947).
    """

    min_gain: float = Field(0.0, ge=-1, le=1)
    """Smallest gain in mean rate (0.02: two points)."""
    significant: bool = True
    """The gain must be significant; else it is enough that the round is not significantly worse."""
    alpha: float = Field(0.05, gt=0, lt=1)
    """Level of the one-sided test."""

    def __call__(self, case: GateCase) -> list[Decision]:
        """Metrics: `gate_delta` and `gate_p` (sampled; p of the parent being as good), `gate_greedy_delta` and
        `gate_greedy_p` (two-sided).
        """
        sampled, greedy = paired(case, "sampled"), paired(case, "greedy")
        if sampled.is_empty():
            why = f"no {case.split} problem has a score of a sampled answer of both models; {GRADER}"
            return [Decision("improves", False, why)]
        delta = float((sampled["child"] - sampled["parent"]).mean())  # type: ignore[arg-type]
        better, worse = signed_rank(sampled, "greater"), signed_rank(sampled, "less")
        certain = better < self.alpha if self.significant else worse >= self.alpha
        verdict = self._verdict(delta, better if self.significant else worse, certain)
        reason = f"{points(delta)} on {len(sampled)} problems, {verdict}"
        metrics = {"gate_delta": delta, "gate_p": better} | greedy_metrics(greedy)
        return [Decision("improves", delta >= self.min_gain and certain, reason, delta, self.min_gain, metrics)]

    def _verdict(self, delta: float, p: float, certain: bool) -> str:
        """What a difference has or lacks; `p` is that of the test that decides, `certain` its answer."""
        if delta < self.min_gain:
            return f"less than min_gain, {points(self.min_gain)}" if self.min_gain else "no gain"
        if not self.significant:
            said = "not significantly worse" if certain else "significantly worse"
        elif delta > 0 or certain:
            said = "a significant gain" if certain else "which may be chance"
        else:
            said = "no gain"
        return f"{said} (p {p:.3g}, {'below' if p < self.alpha else 'not below'} {self.alpha:g})"


def greedy_metrics(rates: pl.DataFrame) -> dict[str, float]:
    """The mean change of the greedy answers and its p: McNemar's, and for grades the sign test, which it is a case of."""
    if rates.is_empty():
        return {}
    change = rates["child"] - rates["parent"]
    p = mcnemar(int((change > 0).sum()), int((change < 0).sum()))
    return {"gate_greedy_delta": float(change.mean()), "gate_greedy_p": p}  # type: ignore[arg-type]


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p of McNemar's exact test (1947): the discordant pairs against a fair coin; 1 where there are none."""
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0
