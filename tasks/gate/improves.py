"""Is the round better than its parent, on the same problems?"""

import polars as pl
from pydantic import Field

from tasks.gate import Decision, Evidence, paired
from tasks.stage import Strategy


class Improves(Strategy):
    """Sampled accuracy against the parent's over the same frozen problems, by Wilcoxon's signed-rank test on the
    difference of their pass rates; greedy accuracy, by McNemar's exact test, as a metric beside it.
    """

    least: float = Field(0.0, ge=-1, le=1)
    """Smallest gain in mean pass rate (0.02: two points)."""
    significant: bool = True
    """The gain must be significant; else it is enough that the round is not significantly worse."""
    alpha: float = Field(0.05, gt=0, lt=1)
    """Level of the one-sided test."""

    def __call__(self, evidence: Evidence) -> list[Decision]:
        """Metrics: `gate_delta` and `gate_p` (sampled; p of the parent being as good), `gate_greedy_delta` and
        `gate_greedy_p` (two-sided).
        """
        sampled, greedy = paired(evidence, "sampled"), paired(evidence, "greedy")
        if sampled.is_empty():
            return [Decision("improves", False, f"no {evidence.split} problem was sampled and checked by both models")]
        delta = float((sampled["child"] - sampled["parent"]).mean())  # type: ignore[arg-type]
        better, worse = signed_rank(sampled, "greater"), signed_rank(sampled, "less")
        certain = better < self.alpha if self.significant else worse >= self.alpha
        p = better if self.significant else worse
        test = f"p {p:.2g} that it is {'no better' if self.significant else 'no worse'}, at level {self.alpha:g}"
        reason = f"{100 * delta:+.1f} points over {len(sampled)} problems, wanted {100 * self.least:+.1f}; {test}"
        metrics = {"gate_delta": delta, "gate_p": better} | greedy_metrics(greedy)
        return [Decision("improves", delta >= self.least and certain, reason, delta, self.least, metrics)]


def signed_rank(rates: pl.DataFrame, alternative: str) -> float:
    """p of Wilcoxon's signed-rank test (1945) that `child` is not `alternative` than `parent`; unchanged problems are
    left out, and 1 is given where none changed.
    """
    from scipy.stats import wilcoxon

    difference = (rates["child"] - rates["parent"]).to_numpy()
    return float(wilcoxon(difference, alternative=alternative).pvalue) if difference.any() else 1.0


def greedy_metrics(rates: pl.DataFrame) -> dict[str, float]:
    """The change of greedy accuracy and its p."""
    if rates.is_empty():
        return {}
    gained = int(((rates["child"] == 1) & (rates["parent"] == 0)).sum())
    lost = int(((rates["child"] == 0) & (rates["parent"] == 1)).sum())
    return {"gate_greedy_delta": (gained - lost) / len(rates), "gate_greedy_p": mcnemar(gained, lost)}


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p of McNemar's exact test (1947): the discordant pairs against a fair coin; 1 where there are none."""
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0
