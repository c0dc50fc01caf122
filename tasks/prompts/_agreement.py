"""How much the parent's answers to a prompt agree."""

import polars as pl


def agreement(responses: pl.LazyFrame) -> pl.LazyFrame:
    """`prompt_id`, `answer`, `share`: the share, in (0, 1], that each answer has of its prompt's responses without an error
    and without a hint. A prompt none of whose responses has an answer is one row without either.
    """
    valid = responses.filter(pl.col("error").is_null(), pl.col("hinted").ne_missing(True))
    counts = valid.group_by("prompt_id").agg(k=pl.len())
    votes = valid.filter(pl.col("answer").is_not_null()).group_by("prompt_id", "answer").agg(votes=pl.len())
    return counts.join(votes, on="prompt_id", how="left").select(
        "prompt_id", "answer", share=pl.col("votes") / pl.col("k")
    )
