"""Is the round better than its parent, on the same problems?"""

import polars as pl
from pydantic import Field

from tasks.core.champion import signed_rank
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
        p = better if self.significant else worse
        test = f"p {p:.2g} that it is {'no better' if self.significant else 'no worse'}, at level {self.alpha:g}"
        reason = f"{100 * delta:+.1f} points over {len(sampled)} problems, required {100 * self.min_gain:+.1f}; {test}"
        metrics = {"gate_delta": delta, "gate_p": better} | greedy_metrics(greedy)
        return [Decision("improves", delta >= self.min_gain and certain, reason, delta, self.min_gain, metrics)]


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
