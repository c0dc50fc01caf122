"""A measure of the exam in two rounds, and its change with an interval: paired where both answered the same items."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby
from math import hypot, isclose
from pathlib import Path
from statistics import fmean
from typing import Any

import polars as pl
from pydantic import BaseModel

from tasks.core import store
from tasks.core.errors import FlywheelError, UnknownName
from tasks.core.plugin import load
from tasks.evaluate._items import checked, eval_items
from tasks.evaluate._measures import difference
from tasks.evaluate.answers import UNBOUNDED, problem_values

COUNTS = (*UNBOUNDED, "response_tokens")
"""Measures that are no share."""
Row = dict[str, Any]


class Measured(BaseModel):
    """A measure of a round."""

    value: float
    low: float | None
    high: float | None
    items: dict[str, float] = {}
    """Value of each item whose mean it is; empty where it is no mean over items, or that is not known."""


class Change(BaseModel):
    """A difference of two measured values with its 95 % interval."""

    value: float
    low: float
    high: float
    items: int
    """Items that both answered; 0 where the interval is that of two independent values."""

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def is_share(metric: str) -> bool:
    """Whether a measure is a share, which is printed in percent."""
    return not metric.partition("/")[0].endswith(COUNTS)


def known(root: Path, name: str) -> set[str]:
    """Names of the measures of a round's exam, by which metrics have them."""
    rows = store.read(root, name, "measures").select("name", "level").iter_rows()
    return {measure if level is None else f"{measure}/level_{level}" for measure, level in rows}


def check(root: Path, metric: str, good: str, bad: str) -> None:
    """Checks that both rounds have a measure with an interval.

    Raises:
        UnknownName: when none has it.
        FlywheelError: when only one has it, or it has no interval.
    """
    names = {name: known(root, name) for name in (good, bad)}
    having = [name for name, measures in names.items() if metric in measures]
    if not having:
        _refuse_other(root, metric, good)
        raise UnknownName("measure of the exam", metric, names[good] | names[bad], "--metric")
    if len(having) == 1:
        other = bad if having == [good] else good
        raise FlywheelError(f"--metric {metric}: only {having[0]} has it; the exam of {other} did not measure it")
    for name in (good, bad):
        if measure(root, name, metric).low is None:
            raise FlywheelError(f"--metric {metric}: has no interval, so a change cannot be told from noise")


def _refuse_other(root: Path, metric: str, name: str) -> None:
    for stage, manifest in store.manifests(root, name).items():
        if metric in manifest.metrics:
            raise FlywheelError(
                f"--metric {metric}: is a number of {stage}, not a measure of the exam; `flywheel diff` compares it. Choose one "
                "such as pass_at_1 or greedy/level_4"
            )


def measure(root: Path, name: str, metric: str) -> Measured:
    """A measure of a round, with its items' values where they give it."""
    base, _, level = metric.partition("/level_")
    rows = store.read(root, name, "measures").filter(
        pl.col("name") == base, pl.col("level") == int(level) if level else pl.col("level").is_null()
    )
    value, low, high = rows.select("value", "low", "high").row(0)
    items = _items(root, name, base, int(level) if level else None)
    whole = bool(items) and isclose(fmean(items.values()), value, rel_tol=1e-9, abs_tol=1e-9)
    return Measured(value=value, low=low, high=high, items=items if whole else {})


def change(before: Measured, after: Measured) -> Change:
    """after − before. The interval is that of the mean of the items' differences; without items, of the difference of two
    independent values with intervals of their own.
    """
    both = sorted(before.items.keys() & after.items.keys())
    paired = difference("change", None, [after.items[i] - before.items[i] for i in both])
    if paired and paired.low is not None and paired.high is not None and len(both) > 1:
        return Change(value=paired.value, low=paired.low, high=paired.high, items=len(both))
    halves = [((m.high or m.value) - (m.low or m.value)) / 2 for m in (before, after)]
    value, half = after.value - before.value, hypot(*halves)
    return Change(value=value, low=value - half, high=value + half, items=0)


def _items(root: Path, name: str, base: str, level: int | None) -> dict[str, float]:
    """Value by item of a measure of the answers; none where it is of something else."""
    plan = store.manifests(root, name)["evaluate"].plan
    for member, settings in plan.members.items():
        own = base if member == "answers" else base.removeprefix(f"{member}_")
        if settings.get("strategy") != "answers" or (member != "answers" and own == base):
            continue
        split = "validation" if own.startswith("validation_") else "heldout"
        own = own.removeprefix("validation_")
        rows = store.read(root, name, "evals").filter(member=member, split=split)
        if level is not None:
            rows = rows.filter(level=level)
        references = _references(json.dumps(plan.domain), split, max(settings["greedy"], settings["sampled"]))
        if found := dict(_values(rows, own, references, settings)):
            return found
    return {}


@cache
def _references(domain: str, split: Any, count: int) -> Mapping[str, str | None]:
    values = json.loads(domain)
    kind = load("domains", values["strategy"])(**{k: v for k, v in values.items() if k != "strategy"})
    return {i.problem: i.reference for i in eval_items(kind, split, count)}


def _values(
    rows: pl.DataFrame, base: str, references: Mapping[str, str | None], settings: Mapping[str, Any]
) -> Iterator[tuple[str, float]]:
    """(item, value) of the measure `base`, in the order of the items."""
    for mode in ("sampled", "greedy"):
        answers = rows.filter(mode=mode).sort("item", "sample").to_dicts()
        for item, group in groupby(answers, key=lambda r: str(r["item"])):
            own = list(group)
            values = _sampled(own, references, settings) if mode == "sampled" else _greedy(own, references)
            if (value := values.get(base)) is not None:
                yield item, float(value)


def _sampled(rows: Sequence[Row], references: Mapping[str, str | None], settings: Mapping[str, Any]) -> Row:
    scores = [r["score"] for r in rows if r["score"] is not None]
    reference = {rows[0]["problem"]: references.get(rows[0]["problem"])}
    return problem_values(list(rows), reference, settings["ks"], settings["samples"]) | {
        "grade_sampled": fmean(scores) if scores else None
    }


def _greedy(rows: Sequence[Row], references: Mapping[str, str | None]) -> Row:
    if not checked(rows):
        return {"grade": rows[0]["score"]}
    reference = references.get(rows[0]["problem"])
    hit = rows[0]["answer"] == reference if reference else None
    return {"greedy": float(rows[0]["correct"]), "greedy_answer": hit, "grade": rows[0]["score"]}
