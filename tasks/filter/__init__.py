"""Filter: which responses are good enough to learn from. Every response is kept or dropped, with reason and margin.

The rules, in the order in which they speak; the first that objects is the reason:
- `error` it failed; `format` it has no answer, or was cut off; `short`, `long` in tokens; `unjudged` it has no reward;
- the name of a judge whose score it also needs (`require`) and whose score was too low; `no_` and that name where that
  judge gave none, because it was not asked or could not be read;
- the strategy's own rule on the reward (`score`);
- `duplicate` of a better response to the same prompt; `rank` enough better ones for its prompt were kept;
- whatever the strategy adds.

"Better" is: higher reward, then higher score of the judge `rank_by` (by default the mean log-probability), then id.
"""

from collections.abc import Mapping

import polars as pl
from pydantic import NonNegativeInt, PositiveInt

from tasks import tables
from tasks.stage import Strategy, stage

NO_MARGIN = pl.lit(None, pl.Float64)


class Selection(Strategy):
    """What strategies of this stage share. Called as `params(prompts, responses, judgments)`, gives `filtered`."""

    per_prompt: PositiveInt = 1
    """Most responses kept a prompt."""
    rank_by: str | None = None
    """Judge that ranks responses of equal reward; null ranks by mean log-probability: the likeliest first."""
    require: dict[str, float] = {}
    """Least scores that other judges must have given too, as in `{self_judge: 0.5}`: a response that such a judge scored
    lower is dropped with the reason `self_judge`, one that it did not score with `no_self_judge`."""
    shortest: NonNegativeInt = 1
    """Fewest tokens."""
    longest: PositiveInt | None = None
    """Most tokens; null has no limit."""
    finished: bool = True
    """Drop what was cut off at the engine's `max_tokens`."""


@stage(outputs=[tables.filtered])
def filter(params: Selection, prompts: pl.LazyFrame, responses: pl.LazyFrame, judgments: pl.LazyFrame) -> pl.LazyFrame:
    """Every response, kept or dropped, by prompt."""
    decided = params(prompts, responses, judgments)
    return decided.with_columns(kept=pl.col("reason").is_null()).sort("prompt_id", "id")


def scored(params: Selection, responses: pl.LazyFrame, judgments: pl.LazyFrame) -> pl.LazyFrame:
    """Responses with their reward as `score`, what ranks equal ones as `rank`, and a null `reason` and `margin`."""
    given = judgments.select(pl.col("response_id").alias("id"), "judge", "reward", "score")
    rows = responses.join(given.filter("reward").select("id", "score"), on="id", how="left")
    if params.rank_by is None:
        rows = rows.with_columns(rank="mean_logprob")
    else:
        ranks = given.filter(pl.col("judge") == params.rank_by).select("id", rank="score")
        rows = rows.join(ranks, on="id", how="left")
    for judge in params.require:
        theirs = given.filter(pl.col("judge") == judge).select("id", pl.col("score").alias(f"by {judge}"))
        rows = rows.join(theirs, on="id", how="left")
    return rows.with_columns(reason=pl.lit(None, pl.String), margin=NO_MARGIN)


def drop(rows: pl.LazyFrame, rules: Mapping[str, tuple[pl.Expr, pl.Expr]]) -> pl.LazyFrame:
    """Rows that no rule dropped before get the first of these whose condition holds: reason to (condition, margin)."""
    reason, margin = pl.col("reason"), pl.col("margin")
    for name, (objects, missed_by) in rules.items():
        now = reason.is_null() & objects.fill_null(False)
        reason = pl.when(now).then(pl.lit(name)).otherwise(reason)
        margin = pl.when(now).then(missed_by).otherwise(margin)
    return rows.with_columns(reason=reason, margin=margin.cast(pl.Float64))


def usable(rows: pl.LazyFrame, params: Selection) -> pl.LazyFrame:
    """Drops what failed, has the wrong form or length, has no reward, or another judge refused."""
    tokens, cut = pl.col("tokens"), pl.lit(params.finished) & (pl.col("finish_reason") == "length")
    longest = pl.lit(params.longest, pl.Int64)
    return drop(
        rows,
        {
            "error": (pl.col("error").is_not_null(), NO_MARGIN),
            "format": (pl.col("answer").is_null() | cut, NO_MARGIN),
            "short": (tokens < params.shortest, params.shortest - tokens),
            "long": (tokens > longest, tokens - longest),
            "unjudged": (pl.col("score").is_null(), NO_MARGIN),
            **{name: rule for judge, least in params.require.items() for name, rule in _required(judge, least).items()},
        },
    )


def _required(judge: str, least: float) -> dict[str, tuple[pl.Expr, pl.Expr]]:
    score = pl.col(f"by {judge}")
    return {judge: (score < least, least - score), f"no_{judge}": (score.is_null(), NO_MARGIN)}


def best(rows: pl.LazyFrame, params: Selection) -> pl.LazyFrame:
    """Of what is left, keeps the `per_prompt` best different texts of each prompt; `rank` misses by places."""
    left = pl.col("reason").is_null()
    # hashes are sorted with the rows and not texts, and told apart for all columns together
    rows = better_first(rows.with_columns(text=pl.col("response").hash()), within="prompt_id")
    rows = rows.with_columns(prompt=pl.col("prompt_id").rle_id())
    again = ~pl.struct("prompt", "text", left).hash().is_first_distinct()
    rows = drop(rows, {"duplicate": (again, NO_MARGIN)})
    so_far = left.cum_sum()
    place = so_far - pl.when(pl.col("prompt").diff() != 0).then(so_far - left).forward_fill().fill_null(0)
    return drop(rows, {"rank": (place > params.per_prompt, place - params.per_prompt)})


def better_first(rows: pl.LazyFrame, *, within: str | None = None) -> pl.LazyFrame:
    """Sorted by reward, then rank, both highest first, then id; where `within` names a column, by that first."""
    by, down = ["score", "rank", "id"], [True, True, False]
    return rows.sort(*([within] if within else []), *by, descending=[False] * bool(within) + down, nulls_last=True)
