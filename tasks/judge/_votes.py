"""Weighted votes for final answers, for the judges that count them."""

import polars as pl

from tasks.core.judging import opinion

DIGITS = 12
"""Sums of weights are rounded to so many decimals: two answers with the same votes shall be equal, whatever the order."""


def weighted_votes(responses: pl.LazyFrame, weight: pl.Expr) -> pl.LazyFrame:
    """The responses by prompt, answer and id, with their `weight` (null where they have no vote), and with the summed weight
    of their answer's votes as `votes` and of all votes to their prompt as `cast`.
    """
    rows = responses.sort("prompt_id", "answer", "id")  # float sums depend on the order
    rows = rows.with_columns(weight=pl.when(pl.col("answer").is_not_null()).then(weight).cast(pl.Float64))
    summed = pl.col("weight").sum()
    return rows.with_columns(
        votes=summed.over("prompt_id", "answer").round(DIGITS), cast=summed.over("prompt_id").round(DIGITS)
    )


def share() -> pl.Expr:
    """An answer's share of the votes to its prompt; null where nobody has a vote."""
    return pl.when(pl.col("cast") > 0).then(pl.col("votes") / pl.col("cast"))


def elected(rows: pl.LazyFrame, score: pl.Expr, error: pl.Expr | str) -> pl.LazyFrame:
    """A judge's frame from `weighted_votes`; where a response has no vote, or no score, it is an error.

    Verdict: pass with strictly the most votes, fail with fewer than another answer, none in a tie at the top.
    """
    votes, top = pl.col("votes"), pl.col("top")
    voting = pl.col("weight").is_not_null()
    rows = rows.with_columns(top=votes.filter(voting).max().over("prompt_id"))
    leaders = pl.col("answer").filter(voting & (votes == top)).n_unique().over("prompt_id")
    verdict = pl.when(votes < top).then(pl.lit("fail")).when(leaders == 1).then(pl.lit("pass"))
    reason = pl.when(pl.col("answer").is_null()).then(pl.lit("no answer in the response")).otherwise(
        pl.lit(error) if isinstance(error, str) else error
    )  # fmt: skip
    return opinion(rows, pl.when(voting).then(score), reason, pl.when(voting).then(verdict))
