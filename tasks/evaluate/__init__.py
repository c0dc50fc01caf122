"""Evaluate: what a model can do, on sets that are the same in every round.

Each member asks the models what it needs and gives back rows (`evals` for answers, `audits` for verdicts on the gold
set) and `measures` with 95 % intervals. A measure has the same name in the table `measures` and as a metric, where level
3 of it is `name/level_3`; measures of a member that is not named as its strategy have its name in front
(`hot_pass_at_1`).

A member reads tables of the round or of its ancestors where it says so (`read_tables`), and opens models beside the
evaluated one where it names them (`opened_models`). Bases sit the exam, too, and have none of these tables: a member then
measures what it can without them.

An answer that could not be checked (`correct` is null: the engine or the verifier failed) is left out of a measure and
counted in `eval_errors`; a response without an answer is wrong.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Annotated

import polars as pl

from tasks.core import frames, tables
from tasks.core.ids import member_seed
from tasks.core.judging import Judging
from tasks.core.roster import Models
from tasks.core.stage import Opens, Result, Strategy, stage
from tasks.domains import Domain
from tasks.engines import Policy

LEVELS = ("greedy", "pass_at_1")
"""Measures that the plot `levels` shows."""


@dataclass(frozen=True)
class EvaluateCase:
    """What an evaluation is called with. A table that the member does not read is None, and so is one that a base lacks."""

    models: Models
    """`model` is the one to evaluate; a base has no `parent`, `anchor` or `grandparent`."""
    domain: Domain
    seed: int
    judges: dict[str, Judging] = field(default_factory=dict)
    """The judges of the round by name, to be evaluated with the model."""
    prompts: pl.LazyFrame | None = None
    responses: pl.LazyFrame | None = None
    """The parent's answers that the round was made from."""
    judgments: pl.LazyFrame | None = None
    pairs: pl.LazyFrame | None = None
    training: pl.LazyFrame | None = None
    preferences: pl.LazyFrame | None = None
    parent_prompts: pl.LazyFrame | None = None
    parent_training: pl.LazyFrame | None = None
    """Empty where the parent is a base."""
    parent_evals: pl.LazyFrame | None = None
    parent_measures: pl.LazyFrame | None = None
    base_evals: pl.LazyFrame | None = None
    base_measures: pl.LazyFrame | None = None

    def open(self, name: str = "model") -> AbstractContextManager[Policy]:
        """Opens a model by name; the `base` of a base is itself."""
        return self.models.open("model" if name == "base" and name not in self.models.names else name)


class Evaluation(Strategy):
    """A part of the evaluation."""

    def opened_models(self) -> frozenset[str]:
        """The model to evaluate."""
        return frozenset({"model"})

    def __call__(self, case: EvaluateCase) -> Result:
        """The frame `measures` and, where there are rows, `evals` or `audits`."""
        raise NotImplementedError


@stage(
    outputs=[tables.evals, tables.audits, tables.measures],
    bases="too",
    plots={"levels": {"x": "level", "y": "pass_at_1"}},
)
def evaluate(
    members: dict[str, Evaluation],
    judges: dict[str, Judging],
    models: Annotated[Models, Opens("model", "base", "parent", "grandparent", "anchor")],
    domain: Domain,
    seed: int,
    prompts: pl.LazyFrame | None = None,
    responses: pl.LazyFrame | None = None,
    judgments: pl.LazyFrame | None = None,
    pairs: pl.LazyFrame | None = None,
    training: pl.LazyFrame | None = None,
    preferences: pl.LazyFrame | None = None,
    parent_prompts: pl.LazyFrame | None = None,
    parent_training: pl.LazyFrame | None = None,
    parent_evals: pl.LazyFrame | None = None,
    parent_measures: pl.LazyFrame | None = None,
    base_evals: pl.LazyFrame | None = None,
    base_measures: pl.LazyFrame | None = None,
) -> Result:
    """Measures the model on the frozen sets, with every member in turn."""
    case = EvaluateCase(
        models, domain, seed, judges, prompts, responses, judgments, pairs, training, preferences, parent_prompts,
        parent_training, parent_evals, parent_measures, base_evals, base_measures,
    )  # fmt: skip
    results = [_result(name, members[name], case) for name in _by_model(members)]
    evals, audits, measures = (_joined(results, t) for t in (tables.evals, tables.audits, tables.measures))
    metrics = metrics_of(measures) | {name: value for r in results for name, value in r.metrics.items()}
    warnings = tuple(w for r in results for w in r.warnings)
    outputs = {"evals": evals, "audits": audits, "measures": measures}
    return Result(outputs, metrics, {"levels": by_level_curve(measures)}, warnings)


def _by_model(members: dict[str, Evaluation]) -> list[str]:
    """Members that ask the evaluated model alone come first: it is loaded once."""
    return sorted(members, key=lambda name: (members[name].opened_models() != {"model"}, name))


def _result(name: str, member: Evaluation, case: EvaluateCase) -> Result:
    """A member's result, its rows named after it; those of a namesake of its strategy keep their ids and measures."""
    strategy = member.strategy_name()
    result = member(replace(case, seed=member_seed(case.seed, name, strategy)))
    rows = {t: f.with_columns(member=pl.lit(name)) for t, f in result.frames.items() if t != "measures"}
    measures = result.frames["measures"]
    if name != strategy:
        rows = {t: f.with_columns(frames.ids("id", "member")) for t, f in rows.items()}
        measures = measures.with_columns(name=pl.lit(f"{name}_") + pl.col("name"))
    return replace(result, frames=rows | {"measures": measures})


def _joined(results: Iterable[Result], table: tables.Table) -> pl.DataFrame:
    parts = [r.frames[table.name] for r in results if table.name in r.frames]
    return pl.concat([frames.frame(table), *parts]).sort(table.key).collect()


def metrics_of(measures: pl.DataFrame) -> dict[str, float]:
    """Measures by the names under which MLflow and DVC know them: `name`, or `name/level_3`."""
    rows = measures.select("name", "level", "value").rows()
    return {name if level is None else f"{name}/level_{level}": value for name, level, value in rows}


def by_level_curve(measures: pl.DataFrame) -> pl.DataFrame:
    """One row a level, one column for each of `LEVELS`."""
    by_level = measures.filter(pl.col("level").is_not_null())
    columns = [by_level.filter(name=n).select("level", pl.col("value").alias(n)) for n in LEVELS]
    curve = by_level.select(pl.col("level").unique().sort())
    for column in columns:
        curve = curve.join(column, on="level", how="left")
    return curve.sort("level")
