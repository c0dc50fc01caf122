"""A refinement that succeeded against the failed answer that it came from."""

import polars as pl

from tasks.pair import Pairing

PASS = 1.0
"""The score of a success whose answer no response of its prompt gave, so that the reward never saw it."""


class Refined(Pairing):
    """Refined against failed, one pair a criticised response: the likeliest of its successful refinements.

    As the wrong→right case of SCL (Self-Correction Learning, arXiv:2410.04055): the pair's prompt is the original
    question, so the critique is needed only to make the data. The chosen score is the best reward of any response to
    that prompt with the refinement's answer (for a vote: the majority's), or 1 when none gave it.
    """

    def apart(self) -> bool:
        """Always."""
        return True

    def __call__(self, rated: pl.LazyFrame, refinements: pl.LazyFrame) -> pl.LazyFrame:
        """One candidate a response that was refined with success."""
        likeliest = (
            refinements.filter(pl.col("success") & pl.col("error").is_null())
            .sort("mean_logprob", "id", descending=[True, False], nulls_last=True)
            .unique("response_id", keep="first", maintain_order=True)
            .select("response_id", "answer", chosen_id="id", chosen="response")
        )
        rejected = rated.select("prompt_id", response_id="id", rejected="response", rejected_score="score")
        worth = rated.drop_nulls("answer").group_by("prompt_id", "answer").agg(chosen_score=pl.col("score").max())
        return (
            likeliest.join(rejected, on="response_id")
            .join(worth, on=["prompt_id", "answer"], how="left")
            .with_columns(pl.col("chosen_score").fill_null(PASS), source=pl.lit("refinements"))
            .rename({"response_id": "rejected_id"})
        )
