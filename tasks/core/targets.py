"""The target of a prompt: the answer that the filter likes best, for all who criticise and pair its responses."""

import polars as pl


def targets(prompts: pl.LazyFrame, responses: pl.LazyFrame, filtered: pl.LazyFrame) -> pl.LazyFrame:
    """`prompt_id`, `problem`, `response_id` and `target`, the answer of the prompt's kept response of rank 1.

    A prompt of which nothing was kept, or that cannot be used itself, has no target.
    """
    best = filtered.filter(pl.col("rank") == 1).select("id")
    answers = responses.select("prompt_id", response_id="id", target="answer").drop_nulls("target")
    problems = prompts.filter(pl.col("error").is_null()).select("problem", prompt_id="id")
    rows = answers.join(best, left_on="response_id", right_on="id", how="semi").join(problems, on="prompt_id")
    return rows.select("prompt_id", "problem", "response_id", "target")
