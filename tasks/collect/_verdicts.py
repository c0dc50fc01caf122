"""Answers that the round's judge called right or wrong."""

import polars as pl

from tasks.collect import CollectCase


def judged(case: CollectCase, min_reward: float | None) -> pl.LazyFrame:
    """Answers with `label` and `reward`, as `after_prompt` takes them: true where the reward judge's verdict is `pass`, or,
    with `min_reward`, where the reward is at least that. Left out are responses that failed or gave no answer, those that the
    judge could not score, and, without `min_reward`, those of which it said neither pass nor fail.
    """
    verdicts = case.judgments.filter("reward").select(
        "verdict", id="response_id", reward=pl.col("score").cast(pl.Float64)
    )
    answers = case.responses.filter(pl.col("error").is_null(), pl.col("answer").is_not_null())
    label = pl.col("verdict") == "pass" if min_reward is None else pl.col("reward") >= min_reward
    rows = answers.join(verdicts, on="id").with_columns(label=label).drop_nulls(["reward", "label"])
    return rows.select("prompt_id", "model", "label", "reward", response_id="id", text="response")
