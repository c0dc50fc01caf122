"""Perplexity consistency with unlikely reasoning paths pruned."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import polars as pl
from pydantic import PositiveInt

from tasks.core.judging import JudgeCase, Judging
from tasks.judge._votes import elected, weighted_votes

if TYPE_CHECKING:
    import numpy as np

SHAPES = 0.1, 100.0
"""Bounds of a Weibull shape: without them a component that narrows onto one path has an infinite likelihood."""
SMALLEST = 1e-9
"""Probabilities, and differences between them, below this are rounding: the mixture is not fitted to them."""


class Mixture(NamedTuple):
    """Two Weibull distributions, that of the smaller mean first: (low, high) of each."""

    weights: tuple[float, float]
    shapes: tuple[float, float]
    scales: tuple[float, float]


class Rpc(Judging):
    """Sums the probabilities of the different reasoning paths that lead to the response's answer, without the unlikely
    ones: RPC, reasoning-pruning perplexity consistency (Zhou et al. 2025, arXiv:2502.00511).

    A path is a different text among a prompt's responses that have an answer, with p = exp(mean log-probability per
    token). A mixture of two Weibull distributions is fitted to the p of a prompt's paths by maximum likelihood; a path is
    dropped where the component of the lower mean is likelier, w_low·f_low(p) > w_high·f_high(p), and p is below the mean
    of all paths. Equal answers are merged: the score is Σ p over the kept paths of a response's answer.

    Our reading: with fewer than `min_paths` paths, or paths that are all equally likely up to rounding, five parameters
    cannot be fitted, so nothing is dropped, and the score is plain perplexity consistency. The shapes are held to 0.1 … 100.
    """

    min_paths: PositiveInt = 10
    """Fewest different texts of a prompt for which a mixture is fitted."""

    def reads_logprobs_of(self) -> frozenset[str]:
        """The responses."""
        return frozenset({"responses"})

    def per_prompt_only(self) -> bool:
        """Always."""
        return True

    def __call__(self, case: JudgeCase) -> pl.LazyFrame:
        """Scores in [0, number of paths]; 0 where all paths of the answer were dropped. No answer or no log-probability is an
        error. Verdicts as of a vote.
        """
        usable = pl.col("answer").is_not_null() & pl.col("mean_logprob").is_finite()
        rows = case.responses.with_columns(p=pl.when(usable).then(pl.col("mean_logprob").exp()))
        paths = rows.drop_nulls("p").sort("prompt_id", "response", "p", "id", descending=[False, False, True, False])
        paths = paths.unique(["prompt_id", "response"], keep="first", maintain_order=True).collect()
        kept = pl.concat([paths.clear(), *map(self._kept, paths.partition_by("prompt_id", maintain_order=True))])
        counted = kept.lazy().select("id", counts=pl.lit(True))
        rows = rows.join(counted, on="id", how="left")
        weight = pl.when(pl.col("p").is_not_null()).then(pl.when("counts").then("p").otherwise(0.0))
        return elected(weighted_votes(rows, weight), pl.col("votes"), "the engine gave no log-probabilities")

    def _kept(self, paths: pl.DataFrame) -> pl.DataFrame:
        """The paths of one prompt that are not dropped."""
        if len(paths) < self.min_paths:
            return paths
        p = paths["p"].clip(SMALLEST).to_numpy()
        if p.max() - p.min() < SMALLEST:
            return paths
        low, high = weighted_densities(fit(sorted(p)), p)
        return paths.filter(pl.Series((low <= high) | (p >= p.mean())))


def fit(values: Sequence[float]) -> Mixture:
    """The mixture of two Weibull distributions that makes the values likeliest, found by L-BFGS-B from the values up to
    their mean and those above it, each part with the distribution of its mean and deviation. The values are positive and
    not all equal.
    """
    import numpy as np
    from scipy.optimize import minimize
    from scipy.special import expit

    x = np.asarray(values, float)
    start = np.array([0.0, *np.log([guess(half) for half in (x[x <= x.mean()], x[x > x.mean()])]).T.ravel()])

    def mixture(theta: "np.ndarray") -> Mixture:
        share = float(expit(theta[0]))
        return _ordered(Mixture((share, 1 - share), tuple(np.exp(theta[1:3])), tuple(np.exp(theta[3:]))))

    def loss(theta: "np.ndarray") -> float:
        density = np.sum(weighted_densities(mixture(theta), x), axis=0)
        return -float(np.mean(np.log(np.maximum(density, 1e-300))))

    shapes, scales = tuple(np.log(SHAPES)), tuple(np.log([x.min() / 10, x.max() * 10]))
    best = minimize(loss, start, method="L-BFGS-B", bounds=[(-5, 5), shapes, shapes, scales, scales])
    return mixture(best.x)


def guess(values: "np.ndarray") -> tuple[float, float]:
    """Shape and scale of a Weibull distribution with about the mean and the deviation of these values: the shape is
    (deviation/mean)^−1.086 (Justus et al. 1978), within bounds.
    """
    from scipy.special import gamma

    deviation = max(float(values.std()), 1e-6 * float(values.mean()))
    shape = min(max((deviation / float(values.mean())) ** -1.086, SHAPES[0]), SHAPES[1])
    return shape, float(values.mean() / gamma(1 + 1 / shape))


def weighted_densities(mixture: Mixture, values: "np.ndarray") -> "np.ndarray":
    """Density of each value under the low and the high component, each times its weight: shape (2, number of values)."""
    import numpy as np
    from scipy.stats import weibull_min

    weights, shapes, scales = (np.array(part)[:, None] for part in mixture)
    with np.errstate(over="ignore"):  # far above the scale the density is 0, but as a product it would be inf · 0
        return weights * np.exp(weibull_min.logpdf(values[None, :], shapes, scale=scales))


def _ordered(mixture: Mixture) -> Mixture:
    from scipy.special import gamma

    low, high = (scale * gamma(1 + 1 / shape) for shape, scale in zip(mixture.shapes, mixture.scales, strict=True))
    return mixture if low <= high else Mixture(*((b, a) for a, b in mixture))
