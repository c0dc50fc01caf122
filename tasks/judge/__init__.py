"""Judge: every member scores every response; the score of one of them is the round's reward.

Members see only responses without an error. A failed one gets a row with an error from each member, and so does what a
member could not read: neither is ever a fail.
"""

from dataclasses import replace
from typing import Annotated

import polars as pl

from tasks.core import frames, tables
from tasks.core.errors import ParamsError, suggest
from tasks.core.ids import member_seed
from tasks.core.judging import COLUMNS, JudgeCase, Judging, finite, opinion
from tasks.core.plugin import Params
from tasks.core.roster import Models
from tasks.core.stage import Opens, Overviews, stage
from tasks.domains import Domain

FAILED = pl.col("error").is_not_null() | pl.col("response").is_null()


class JudgeOptions(Params):
    """Which of the judges gives the reward; the others are there for comparison and for filters."""

    reward: str
    """The member whose score filters, pairs and trains."""


def summaries(
    members: dict[str, Judging],
    prompts: pl.LazyFrame,
    responses: pl.LazyFrame,
    models: Models,
    domain: Domain,
    seed: int,
) -> dict[str, pl.LazyFrame]:
    """First pass over a piece: the summaries of the members that need an overview."""
    case = JudgeCase(prompts, responses.filter(~FAILED), models, domain, seed)
    return {
        name: member.summary(_own(case, name, member)) for name, member in members.items() if member.needs_overview()
    }


@stage(outputs=[tables.judgments], first_pass=summaries)
def judge(
    members: dict[str, Judging],
    options: JudgeOptions,
    prompts: pl.LazyFrame,
    responses: pl.LazyFrame,
    models: Annotated[Models, Opens("parent", "base", "anchor", "grandparent")],
    domain: Domain,
    seed: int,
    overviews: Overviews = None,
) -> pl.LazyFrame:
    """Every member's judgment of every response. A model is loaded only when a member asks it something.

    Raises:
        ParamsError: when the reward names no member.
    """
    if options.reward not in members:
        raise ParamsError(f"judge.reward is {options.reward!r}, no member; {suggest(options.reward, members)}")
    case = JudgeCase(prompts, responses.filter(~FAILED), models, domain, seed)
    cases = {name: _own(case, name, member, overviews) for name, member in members.items()}
    opinions = {name: members[name](cases[name]).select(COLUMNS) for name in _by_model(members)}
    unjudged = opinion(responses.filter(FAILED), None, "no response: " + pl.col("error").fill_null("nothing came back"))
    rows = [pl.concat([opinions[n], unjudged]).with_columns(member=pl.lit(n)) for n in sorted(members)]
    judgments = finite(pl.concat(rows).sort("member", "prompt_id", "response_id"))
    return judgments.with_columns(frames.ids("response_id", "member"), reward=pl.col("member") == options.reward)


def _own(case: JudgeCase, name: str, member: Judging, overviews: Overviews = None) -> JudgeCase:
    """The case with what is the member's own in it."""
    seed = member_seed(case.seed, name, member.strategy_name())
    return replace(case, seed=seed, overview=(overviews or {}).get(name))


def _by_model(members: dict[str, Judging]) -> list[str]:
    """Members that ask the parent alone come first: it is loaded once."""
    return sorted(members, key=lambda name: (members[name].opened_models() != {"parent"}, name))
