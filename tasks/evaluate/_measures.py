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
