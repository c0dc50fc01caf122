"""Evaluate: what a model can do, on sets that are the same in every round.

The engine is opened once; each member of the panel asks the policy what it needs and gives back rows (`evals` for its
answers, `audits` for its verdicts on the gold set) and `measures` with 95 % intervals. A measure has the same name in
the table `measures` and as a metric, where level 3 of it is `name/level_3`.

An answer that could not be checked (`correct` is null: the engine or the verifier failed) is left out of a measure and
counted in `eval_errors`; an answer that is missing from a response that was given is wrong.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from statistics import NormalDist
from typing import Any

import polars as pl

from tasks import engines, tables
from tasks.domains import Domain, Item, Message, Split
from tasks.engines import Completion, Engine, Policy, Sampling
from tasks.stage import Panel, Result, content_id, stage

FROZEN = 0
"""The seed of the frozen sets: `domain.items(split, count, FROZEN)`, whatever the round's seed is."""

GREEDY_SEED = 0
"""A greedy answer has no draw: one seed for all, so that the request cache finds it again."""


Z = NormalDist().inv_cdf(0.975)
"""Half the width of a 95 % interval in standard errors."""

LEVELS = ("greedy", "pass_at_1")
"""Measures that the plot `levels` shows."""


class Evaluate(Panel):
    """Members, each called as `member(policy, domain, seed, scores)`: `scores` says whether the policy can score text
    given to it. Each gives a `Result` with the frames `measures` and, where it has rows, `evals` or `audits`.
    """


@stage(
    outputs=[tables.evals, tables.audits, tables.measures],
    bases="too",
    plots={"levels": {"x": "level", "y": "pass_at_1"}},
)
def evaluate(params: Evaluate, model: Path, engine: Engine, domain: Domain, seed: int, cache: Path) -> Result:
    """Measures the model on the frozen sets, with every member of the panel in turn."""
    with engine.open(model, cache) as policy:
        results = [params.panel[n](policy, domain, seed, engine.scores) for n in sorted(params.panel)]
    evals, audits, measures = (_joined(results, t) for t in (tables.evals, tables.audits, tables.measures))
    extra = {name: value for r in results for name, value in r.metrics.items()}
    frames = {"evals": evals, "audits": audits, "measures": measures}
    return Result(frames, metrics_of(measures) | extra, {"levels": by_level_curve(measures)})


def _joined(results: Iterable[Result], table: tables.Table) -> pl.DataFrame:
    found = [r.frames[table.name] for r in results if table.name in r.frames]
    return pl.concat([tables.frame(table), *found]).sort(table.key).collect()


def metrics_of(measures: pl.DataFrame) -> dict[str, float]:
    """Measures by the names under which MLflow and DVC know them: `name`, or `name/level_3`."""
    rows = measures.select("name", "level", "value").rows()
    return {name if level is None else f"{name}/level_{level}": value for name, level, value in rows}


def by_level_curve(measures: pl.DataFrame) -> pl.DataFrame:
    """One row a level, one column for each of `LEVELS`."""
    shown = measures.filter(pl.col("level").is_not_null())
    found = [shown.filter(name=n).select("level", pl.col("value").alias(n)) for n in LEVELS]
    curve = shown.select(pl.col("level").unique().sort())
    for column in found:
        curve = curve.join(column, on="level", how="left")
    return curve.sort("level")


# Asking


def ask(
    policy: Policy, chats: Sequence[list[Message]], sampling: Sampling, seeds: Sequence[int] | None = None
) -> list[Completion]:
    """A completion for each chat, in their order."""
    return engines.ask(policy, chats, sampling, seeds or [GREEDY_SEED] * len(chats))


def frozen(domain: Domain, split: Split, count: int) -> list[Item]:
    """A frozen set, each problem once."""
    return list({i.problem: i for i in domain.items(split, count, FROZEN)}.values())


def spread(items: list[Item], count: int) -> list[Item]:
    """The first items of every level, `count` in all, the levels as even as they can be."""
    seen: Counter[int | None] = Counter()
    ranked = []
    for n, item in enumerate(items):
        ranked.append((seen[item.level], n))
        seen[item.level] += 1
    return [items[n] for n in sorted(n for _, n in sorted(ranked)[:count])]


def item_id(problem: str) -> str:
    """The id of an evaluation item: the same in every round."""
    return content_id("item", problem)


def graded(item: Item, completion: Completion, domain: Domain) -> dict[str, Any]:
    """The columns of `evals` that say what an answer is worth."""
    row = {"item": item_id(item.problem), "level": item.level, "problem": item.problem, "tokens": completion.tokens}
    if completion.error:
        return row | {"error": completion.error}
    answer = domain.answer(completion.text)
    verdict = domain.verify(item.problem, completion.text, item.reference)
    checkable = verdict.passed is not None or item.reference is not None
    correct = False if answer is None and checkable else verdict.passed
    error = "no answer" if answer is None else verdict.error
    mean = completion.logprob / completion.tokens if completion.logprob is not None and completion.tokens else None
    text = completion.text
    return row | {"response": text, "answer": answer, "correct": correct, "mean_logprob": mean, "error": error}


def eval_row(policy: Policy, split: Split, mode: str, sample: int, row: dict[str, Any]) -> dict[str, Any]:
    """A row of `evals` with its id."""
    identity = content_id("eval", policy.digest, row["item"], split, mode, sample, row.get("response") or "")
    return row | {"id": identity, "split": split, "mode": mode, "sample": sample}


def checked(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of `evals` whose answer could be checked."""
    return [r for r in rows if r.get("correct") is not None]


# Measuring


@dataclass(frozen=True, slots=True)
class Measure:
    """A row of `measures`: a value with its 95 % interval, over `count` items."""

    name: str
    level: int | None
    value: float
    low: float | None = None
    high: float | None = None
    count: int = 0


def measures_frame(found: Iterable[Measure]) -> pl.LazyFrame:
    """The table of what could be measured."""
    return tables.frame(tables.measures, [asdict(m) for m in found])


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

    ends = binomtest(hits, count).proportion_ci(method="wilson")
    return float(ends.low), float(ends.high)


def mean(name: str, level: int | None, values: Sequence[float], top: float | None = 1.0) -> Measure | None:
    """A mean of one value a problem, with the normal interval over problems: samples of one problem are not
    independent, problems are. Where all values are equal (all solved, none solved) the normal interval has no width and
    Wilson's, for values in [0, 1], takes its place. `top` bounds the interval.
    """
    if not values:
        return None
    n, value = len(values), sum(values) / len(values)
    if max(values) == min(values):
        if top != 1.0:
            return Measure(name, level, value, value, value, n)
        low, high = wilson(round(value * n), n)
        return Measure(name, level, value, min(low, value), max(high, value), n)
    half = Z * sqrt(sum((v - value) ** 2 for v in values) / (n - 1) / n)
    high = value + half if top is None else min(top, value + half)
    return Measure(name, level, value, max(0.0, value - half), high, n)
