"""Pair: preference pairs, the chosen and the rejected completion of one prompt, in TRL's columns.

Both scores are the reward's. A response that failed, was cut off, or has no answer or no reward is in no pair, least of
all as the rejected one: nobody knows that it was wrong. Several members work side by side; a pair that two of them make
is a row of each, for its id takes in the member.
"""

from dataclasses import dataclass, replace

import polars as pl
from pydantic import PositiveFloat

from tasks.core import frames, tables
from tasks.core.stage import Overviews, Strategy, stage
from tasks.core.targets import targets

COLUMNS = (
    "prompt_id", "chosen_id", "chosen", "chosen_score", "rejected_id", "rejected", "rejected_score", "source",
)  # fmt: skip
MODELS = "chosen_model", "rejected_model"
PLAIN = {"weight": 1.0, "smoothing": 0.0}
"""Of a pair that counts fully and is surely the right way round."""


@dataclass(frozen=True)
class PairCase:
    """What pairs are made of: the round's tables, or those of some of its prompts."""

    responses: pl.LazyFrame
    """The usable ones, with their reward as `score`, and the filter's `kept` and `rank`."""
    targets: pl.LazyFrame
    """`prompt_id`, `problem`, `response_id`, `target`: the answer that the filter likes best, where it kept one."""
    judgments: pl.LazyFrame
    """Of every judge, the reward's among them."""
    refinements: pl.LazyFrame
    """Of every member of `critique`, failed ones among them; they have no reward."""
    anchor_responses: pl.LazyFrame | None = None
    """Of the round that this one names as its anchor, to the prompts of that round; None without one."""
    anchor_judgments: pl.LazyFrame | None = None
    """Of those responses, by that round's judges."""
    overview: pl.DataFrame | None = None
    """What the pairing must know of all prompts, where these are not all."""


class Pairing(Strategy):
    """Chooses pairs."""

    min_margin: PositiveFloat = 0.25
    """Smallest gap of the reward worth learning from, in its own units; ties never become pairs."""

    def __call__(self, case: PairCase) -> pl.LazyFrame:
        """`prompt_id, chosen_id, chosen, chosen_score, rejected_id, rejected, rejected_score, source`, with both
        completions as text, `weight` (1 where it is left out) and `smoothing` (0) where the method has them, and
        `chosen_model` and `rejected_model`, which the stage looks up where they are left out. The stage leaves out
        equal texts and pairs whose scores are less than `min_margin` apart.
        """
        raise NotImplementedError


def summaries(
    members: dict[str, Pairing],
    prompts: pl.LazyFrame,
    responses: pl.LazyFrame,
    judgments: pl.LazyFrame,
    filtered: pl.LazyFrame,
    refinements: pl.LazyFrame,
    anchor_responses: pl.LazyFrame | None,
    anchor_judgments: pl.LazyFrame | None,
) -> dict[str, pl.LazyFrame]:
    """First pass over a piece: the summaries of the members that need an overview."""
    case = _case(prompts, responses, judgments, filtered, refinements, anchor_responses, anchor_judgments)
    return {name: member.summary(case) for name, member in members.items() if member.needs_overview()}


@stage(outputs=[tables.pairs], first_pass=summaries)
def pair(
    members: dict[str, Pairing],
    prompts: pl.LazyFrame,
    responses: pl.LazyFrame,
    judgments: pl.LazyFrame,
    filtered: pl.LazyFrame,
    refinements: pl.LazyFrame,
    anchor_responses: pl.LazyFrame | None,
    anchor_judgments: pl.LazyFrame | None,
    overviews: Overviews = None,
) -> pl.LazyFrame:
    """Every member's pairs of two different texts whose scores are at least its `min_margin` apart, by prompt."""
    if not members:
        return frames.frame(tables.pairs)
    case = _case(prompts, responses, judgments, filtered, refinements, anchor_responses, anchor_judgments)
    cases = {name: replace(case, overview=(overviews or {}).get(name)) for name in members}
    written = [t.select("id", "model") for t in (responses, refinements, anchor_responses) if t is not None]
    pairs = pl.concat([_pairs(member, cases[name], name, written) for name, member in members.items()])
    reward = judgments.filter("reward").select(judge="member").head(1)
    rows = pairs.join(prompts.select("prompt", prompt_id="id"), on="prompt_id").join(reward, how="cross")
    own = frames.ids("member", "prompt_id", "chosen_id", "rejected_id")
    rows = rows.sort("prompt_id", "member", "chosen_id", "rejected_id").with_columns(own)
    return rows.with_columns(chosen=_turn("chosen"), rejected=_turn("rejected")).select(tables.pairs.schema.names)


def _case(
    prompts: pl.LazyFrame,
    responses: pl.LazyFrame,
    judgments: pl.LazyFrame,
    filtered: pl.LazyFrame,
    *more: pl.LazyFrame | None,
) -> PairCase:
    rated, prompt_targets = _rated(responses, judgments, filtered), targets(prompts, responses, filtered)
    return PairCase(rated, prompt_targets, judgments, *more)  # type: ignore[arg-type]


def _pairs(strategy: Pairing, case: PairCase, member: str, written: list[pl.LazyFrame]) -> pl.LazyFrame:
    gap = pl.col("chosen_score") - pl.col("rejected_score")
    pairs = strategy(case).filter(gap >= strategy.min_margin, pl.col("chosen") != pl.col("rejected"))
    given = pairs.collect_schema()
    plain = {name: pl.lit(value) for name, value in PLAIN.items() if name not in given}
    if not set(MODELS) <= set(given):
        pairs = _with_models(pairs.drop(MODELS, strict=False), written)
    return pairs.with_columns(**plain).select(*COLUMNS, *MODELS, *PLAIN, member=pl.lit(member))


def _with_models(pairs: pl.LazyFrame, written: list[pl.LazyFrame]) -> pl.LazyFrame:
    """With the digests of the weights that wrote the two completions."""
    authors = pl.concat(written).unique("id")
    for side in ("chosen", "rejected"):
        pairs = pairs.join(authors.rename({"id": f"{side}_id", "model": f"{side}_model"}), on=f"{side}_id", how="left")
    return pairs


def _rated(responses: pl.LazyFrame, judgments: pl.LazyFrame, filtered: pl.LazyFrame) -> pl.LazyFrame:
    rewards = judgments.filter("reward").drop_nulls("score").select("score", id="response_id")
    whole = pl.col("answer").is_not_null() & pl.col("finish_reason").ne_missing("length")
    rated = responses.filter(pl.col("error").is_null() & whole).join(rewards, on="id")
    kept = filtered.filter("kept").select("id", "kept", "rank")  # the few of them: no table of all ids is built
    return rated.join(kept, on="id", how="left").with_columns(pl.col("kept").fill_null(False))


def _turn(column: str) -> pl.Expr:
    return pl.concat_list(pl.struct(role=pl.lit("assistant"), content=pl.col(column)))
