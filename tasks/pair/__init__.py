"""Pair: preference pairs, the chosen and the rejected completion of one prompt, in TRL's columns.

Both scores are the reward's. A response that failed, was cut off, or has no answer or no reward is in no pair, least of
all as the rejected one: nobody knows that it was wrong.
"""

import polars as pl
from pydantic import PositiveFloat

from tasks import tables
from tasks.stage import Strategy, stage


class Pairing(Strategy):
    """What strategies of this stage share.

    Called as `params(rated, refinements)`, where `rated` are the usable responses with their reward as `score`; gives
    `prompt_id, chosen_id, chosen, chosen_score, rejected_id, rejected, rejected_score, source` with both completions as
    text.
    """

    margin: PositiveFloat = 0.25
    """Smallest gap of the reward worth learning from, in its own units; ties never become pairs."""


@stage(outputs=[tables.pairs])
def pair(
    params: Pairing,
    prompts: pl.LazyFrame,
    responses: pl.LazyFrame,
    judgments: pl.LazyFrame,
    refinements: pl.LazyFrame,
) -> pl.LazyFrame:
    """Pairs of two different texts whose scores are at least `margin` apart."""
    paired = params(_rated(responses, judgments), refinements)
    gap = pl.col("chosen_score") - pl.col("rejected_score")
    worth = paired.filter(gap >= params.margin, pl.col("chosen") != pl.col("rejected"))
    asked = prompts.select(pl.col("id").alias("prompt_id"), "prompt")
    rows = worth.join(asked, on="prompt_id").sort("prompt_id", "chosen_id", "rejected_id")
    name = tables.ids("prompt_id", "chosen_id", "rejected_id")
    return rows.with_columns(name, chosen=_turn("chosen"), rejected=_turn("rejected"))


def _rated(responses: pl.LazyFrame, judgments: pl.LazyFrame) -> pl.LazyFrame:
    reward = judgments.filter("reward").drop_nulls("score").select(pl.col("response_id").alias("id"), "score")
    whole = pl.col("answer").is_not_null() & pl.col("finish_reason").ne_missing("length")
    return responses.filter(pl.col("error").is_null() & whole).join(reward, on="id")


def _turn(column: str) -> pl.Expr:
    return pl.concat_list(pl.struct(role=pl.lit("assistant"), content=pl.col(column)))
