"""Measures and their 95 % intervals."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from statistics import NormalDist
from typing import Any

import polars as pl

from tasks.core import frames, tables

Z = NormalDist().inv_cdf(0.975)
"""Half the width of a 95 % interval in standard errors."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A row of `measures`: a value with its 95 % interval, over `count` items."""

    name: str
    level: int | None
    value: float
    low: float | None = None
    high: float | None = None
    count: int = 0


def measures_frame(measures: Iterable[Measure]) -> pl.LazyFrame:
    """The table of measures."""
    return frames.frame(tables.measures, [asdict(m) for m in measures])


def at_levels(rows: Sequence[Any], measure: Callable[[Sequence[Any], int | None], Measure | None]) -> list[Measure]:
    """A measure over all rows, then over those of each level; `rows` are dicts with a `level`."""
    levels = sorted({r["level"] for r in rows} - {None})
    groups = [(None, rows), *((n, [r for r in rows if r["level"] == n]) for n in levels)]
    return [m for level, group in groups if (m := measure(group, level))]


def proportion(name: str, level: int | None, hits: Sequence[bool]) -> Measure | None:
    """A share with Wilson's interval (Wilson 1927); None of nothing."""
    if not hits:
        return None
    low, high = wilson(sum(hits), len(hits))
    return Measure(name, level, sum(hits) / len(hits), low, high, len(hits))


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a proportion after Wilson (1927)."""
    from scipy.stats import binomtest

    interval = binomtest(hits, count).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def mean(name: str, level: int | None, values: Sequence[float], maximum: float | None = 1.0) -> Measure | None:
    """A mean of one value a problem, with the normal interval over problems: samples of one problem are not
    independent, problems are. Where all values are equal (all solved, none solved) the normal interval has no width and
    Wilson's, for values in [0, 1], takes its place. `maximum` bounds the interval.
    """
    if not values:
        return None
    n, value = len(values), sum(values) / len(values)
    if max(values) == min(values):
        if maximum != 1.0:
            return Measure(name, level, value, value, value, n)
        low, high = wilson(round(value * n), n)
        return Measure(name, level, value, min(low, value), max(high, value), n)
    half = Z * sqrt(sum((v - value) ** 2 for v in values) / (n - 1) / n)
    high = value + half if maximum is None else min(maximum, value + half)
    return Measure(name, level, value, max(0.0, value - half), high, n)


def difference(name: str, level: int | None, values: Sequence[float]) -> Measure | None:
    """The mean of differences or other values that may be below 0, one a problem, with the normal interval over problems;
    None of nothing.
    """
    if not values:
        return None
    n, value = len(values), sum(values) / len(values)
    half = Z * sqrt(sum((v - value) ** 2 for v in values) / (n - 1) / n) if n > 1 else 0.0
    return Measure(name, level, value, value - half, value + half, n)


def ratio(name: str, level: int | None, pairs: Sequence[tuple[float, float]]) -> Measure | None:
    """Σ a / Σ b over (a, b), one pair a problem, with the interval of a ratio estimator: its variance is that of the mean of
    a − R·b, over the square of the mean b (Cochran 1977, Sampling Techniques, 6.4). None where Σ b is not above 0.
    """
    total = sum(b for _, b in pairs)
    if total <= 0:
        return None
    n, value = len(pairs), sum(a for a, _ in pairs) / total
    residuals = sum((a - value * b) ** 2 for a, b in pairs)
    half = Z * sqrt(residuals / (n - 1) / n) / (total / n) if n > 1 else 0.0
    return Measure(name, level, value, value - half, value + half, n)


def auroc(name: str, level: int | None, rows: Sequence[Any]) -> Measure | None:
    """Chance that a row with `truth` has a higher `score` than one without, ties counting half. None where one of the two
    kinds is missing.

    The interval is the normal one with the variance of Hanley and McNeil (1982), as we read it:
    [A(1 − A) + (m − 1)(A/(2 − A) − A²) + (n − 1)(2A²/(1 + A) − A²)] / (mn) for m true and n other rows.
    """
    from sklearn.metrics import roc_auc_score

    truth = [r["truth"] for r in rows]
    positives, negatives = sum(truth), len(truth) - sum(truth)
    if not positives or not negatives:
        return None
    a = float(roc_auc_score(truth, [r["score"] for r in rows]))
    variance = a * (1 - a) + (positives - 1) * (a / (2 - a) - a * a) + (negatives - 1) * (2 * a * a / (1 + a) - a * a)
    half = Z * sqrt(max(0.0, variance) / (positives * negatives))
    return Measure(name, level, a, max(0.0, a - half), min(1.0, a + half), len(truth))
