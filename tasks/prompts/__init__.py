"""Prompts: the problems of a round. Members write them one after the other, each screened against those before it."""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated

import polars as pl
from pydantic import Field, PositiveInt

from tasks.core import frames, tables
from tasks.core.ids import member_seed
from tasks.core.roster import Models
from tasks.core.stage import Opens, Result, Strategy, stage
from tasks.domains import ILL_POSED, Domain, Split
from tasks.prompts._screen import Intake, Problem, Screen, usable

FROZEN = 0
"""The seed of sets that are the same in every round: the seeds of the pool and the evaluation items."""


@dataclass(frozen=True)
class PromptsCase:
    """What a strategy of this stage is called with."""

    prompts: pl.LazyFrame
    """The parent's; a base has none."""
    responses: pl.LazyFrame
    """The parent's."""
    models: Models
    """Opens the round's models by name: ancestors and those of the roster."""
    domain: Domain
    """Has the seeds and the evaluation items, writes the author's chats and reads what comes back."""
    seed: int
    """The round's, or the member's own where its name is not its strategy's."""
    known: tuple[Problem, ...] = ()
    """What the members before this one accepted."""


class Screening(Strategy):
    """A strategy of this stage: it writes or reads problems and has them screened by an intake."""

    max_similarity: float = Field(0.7, gt=0, le=1)
    """ROUGE-L F above which two free-text problems are one. Evaluation items are kept out above 0.7, even if this is more."""
    evaluation: dict[Split, PositiveInt] = Field({"validation": 2000, "heldout": 7000, "gold": 1000})
    """How many items of each evaluation split no prompt may equal or overlap: at least as many as are evaluated."""

    def __call__(self, case: PromptsCase) -> pl.LazyFrame:
        """Rows of `prompts`, the rejected ones among them; the stage fills in `member`."""
        raise NotImplementedError

    def intake(self, case: PromptsCase, problems: Iterable[Problem] = ()) -> Intake:
        """An intake that rejects what is near an evaluation item or an ill-posed problem, near `problems`, or near what earlier
        members accepted.
        """
        screen = Screen(case.domain, Fraction(str(self.max_similarity)))
        for split, count in self.evaluation.items():
            for item in case.domain.items(split, count, FROZEN):
                screen.add_item(split, item.problem)
        for text in case.domain.ill_posed(ILL_POSED, FROZEN):
            screen.add_item("ill_posed", text)
        for problem in (*problems, *case.known):
            screen.add_problem(problem.id, problem.text)
        return Intake(case.domain, screen)


@stage(outputs=[tables.prompts])
def prompts(
    members: dict[str, Screening],
    parent_prompts: pl.LazyFrame,
    parent_responses: pl.LazyFrame,
    models: Annotated[Models, Opens("parent", "base", "anchor", "grandparent")],
    domain: Domain,
    seed: int,
) -> Result:
    """New problems for the round's model to answer, and the rejected ones with the reason; by id."""
    rows = frames.frame(tables.prompts).collect()
    for name, member in members.items():
        own = member_seed(seed, name, member.strategy_name())
        case = PromptsCase(parent_prompts, parent_responses, models, domain, own, tuple(usable(rows.lazy())))
        rows = pl.concat([rows, _named(member(case).collect(), name, rows)], how="vertical_relaxed")
    return Result({"prompts": rows.lazy().sort("id")})


def _named(rows: pl.DataFrame, member: str, earlier: pl.DataFrame) -> pl.DataFrame:
    """A member's rows under its name. A text that an earlier member's usable row has is a duplicate; an id that an earlier
    row has, usable or rejected, is replaced, in `parents` too.
    """
    used = earlier.filter(pl.col("error").is_null()).select("problem", twin="id").unique("problem")
    repeated = rows.filter(pl.col("id").is_in(earlier["id"].implode()))
    own = dict(repeated.select("id", own=frames.ids("id", pl.lit(member))).rows())
    rows = rows.join(used, on="problem", how="left").with_columns(
        error=pl.coalesce("error", pl.format("duplicate: of {}", "twin")),
        id=pl.col("id").replace(own),
        parents=pl.col("parents").list.eval(pl.element().replace(own)),
        member=pl.lit(member),
    )
    return rows.select(tables.prompts.schema.names)
