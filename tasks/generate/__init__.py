"""Generate: the round's problems are answered, by the parent's model or by another one that a member names."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import polars as pl

from tasks.core import tables
from tasks.core.errors import FlywheelError
from tasks.core.ids import member_seed
from tasks.core.roster import Models
from tasks.core.stage import Opens, Result, Strategy, stage
from tasks.domains import Domain

PIECE = 16_384
"""Prompts that are answered at once: many for an engine to batch as it likes, few for memory to hold."""


@dataclass(frozen=True)
class GenerateCase:
    """What a strategy of this stage is called with."""

    prompts: pl.DataFrame
    """Usable ones, by id: a piece of the round's."""
    models: Models
    """Opens the round's models by name: ancestors and those of the roster."""
    domain: Domain
    """Reads the answers, and verifies them where it can."""
    seed: int
    """The round's, or the member's own where its name is not its strategy's."""


class Generating(Strategy):
    """A strategy of this stage: it answers prompts."""

    def __call__(self, case: GenerateCase) -> pl.LazyFrame:
        """Rows of `responses`, by prompt; the stage fills in `member`. Ids are hashes that hold the case's seed or one
        derived from it, so that no two members have one in common.
        """
        raise NotImplementedError

    def per_prompt_only(self) -> bool:
        """It is called with some prompts after the others, so it must answer each by itself."""
        return True


@stage(outputs=[tables.responses])
def generate(
    members: dict[str, Generating],
    prompts: pl.LazyFrame,
    models: Annotated[Models, Opens("parent", "base", "anchor", "grandparent")],
    domain: Domain,
    seed: int,
) -> Result:
    """Every member's answers to every usable prompt. Without any prompt no model is loaded.

    Raises:
        FlywheelError: when there are prompts and none of them is usable.
    """
    _check_usable(prompts)

    def responses() -> Iterator[pl.LazyFrame]:
        for piece in _pieces(prompts.filter(pl.col("error").is_null())):
            for name, member in members.items():
                own = member_seed(seed, name, member.strategy_name())
                rows = member(GenerateCase(piece, models, domain, own)).with_columns(member=pl.lit(name))
                yield rows.select(tables.responses.schema.names)

    return Result({"responses": responses()})


def _pieces(usable: pl.LazyFrame) -> Iterator[pl.DataFrame]:
    """Some prompts after the others, by id."""
    ids = usable.select("id").collect()["id"].sort()
    for start in range(0, len(ids), PIECE):
        piece = ids[start : start + PIECE]
        yield usable.filter(pl.col("id") >= piece[0], pl.col("id") <= piece[-1]).sort("id").collect()


def _check_usable(prompts: pl.LazyFrame) -> None:
    errors = prompts.select("error").collect()["error"]
    if errors.is_empty() or errors.null_count():
        return
    counts = errors.str.split(":").list.first().alias("reason").value_counts().sort("count", "reason", descending=True)
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.iter_rows())
    raise FlywheelError(
        f"prompts: none of {len(errors)} is usable ({reasons}), so there is nothing to answer; see why with "
        '`flywheel sql "select round, problem, error from prompts where error is not null"`, then change the strategies or '
        "parameters of the round's stage `prompts`, such as `max_similarity`, `levels` or `path`"
    )
