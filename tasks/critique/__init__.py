"""Critique: a model's critiques of the round's wrong answers, and the answers that it gives after reading them.

Wrong is what differs from the target, the answer that the filter likes best. Several members work side by side; a
critique that two of them write is a row of each, for its id takes in the member. Without members both tables are empty,
and no model is opened.
"""

from dataclasses import dataclass
from typing import Annotated

import polars as pl

from tasks.core import frames, tables
from tasks.core.ids import member_seed
from tasks.core.roster import Models
from tasks.core.stage import Opens, Result, Strategy, stage
from tasks.core.targets import targets
from tasks.domains import Domain


@dataclass(frozen=True)
class CritiqueCase:
    """What is criticised, and the models that can do it."""

    prompts: pl.LazyFrame
    """The round's."""
    responses: pl.LazyFrame
    """To those prompts, failed ones among them."""
    targets: pl.LazyFrame
    """`prompt_id`, `problem`, `response_id`, `target`: the answer that the filter likes best, where it kept one."""
    models: Models
    """Opens the round's models by name: ancestors and those of the roster."""
    domain: Domain
    """Writes the chats and reads the answers."""
    seed: int
    """The round's, or the member's own where its name is not its strategy's."""


class Critiquing(Strategy):
    """Writes critiques, and refinements that follow them."""

    def __call__(self, case: CritiqueCase) -> Result:
        """The frames `critiques` and `refinements`. Ids must be unique within the member; the stage adds the member to
        them and to the names of the metrics.
        """
        raise NotImplementedError


@stage(outputs=[tables.critiques, tables.refinements])
def critique(
    members: dict[str, Critiquing],
    prompts: pl.LazyFrame,
    responses: pl.LazyFrame,
    filtered: pl.LazyFrame,
    models: Annotated[Models, Opens("parent", "base", "anchor", "grandparent")],
    domain: Domain,
    seed: int,
) -> Result:
    """Every member's critiques and refinements.

    Metrics: `critique_targets` (prompts with a target), and those of each member as `<metric>/<member>`.
    """
    if not members:
        return Result({table.name: frames.frame(table) for table in (tables.critiques, tables.refinements)})
    prompt_targets = targets(prompts, responses, filtered).sort("prompt_id").collect()
    results = {}
    for name, member in members.items():
        own_seed = member_seed(seed, name, member.strategy_name())
        results[name] = member(CritiqueCase(prompts, responses, prompt_targets.lazy(), models, domain, own_seed))
    metrics = {f"{metric}/{name}": v for name, r in results.items() for metric, v in r.metrics.items()}
    return Result(
        {table: _together(table, results) for table in ("critiques", "refinements")},
        {"critique_targets": float(len(prompt_targets))} | metrics,
        warnings=tuple(w for r in results.values() for w in r.warnings),
    )


def _together(table: str, results: dict[str, Result]) -> pl.LazyFrame:
    """The table's rows of all members by id; ids take in the member."""
    columns = tables.TABLES[table].schema.names
    keys = [key for key in ("id", "critique_id") if key in columns]
    rows = [r.frames[table].lazy().with_columns(member=pl.lit(name)).select(columns) for name, r in results.items()]
    return pl.concat(rows).with_columns(frames.ids("member", key).alias(key) for key in keys).sort("id")
