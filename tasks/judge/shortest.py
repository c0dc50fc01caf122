"""The shortest finished answer is the best."""

import polars as pl

from tasks.core.judging import JudgeCase, Judging, opinion


class Shortest(Judging):
    """The share of the prompt's answers that are no shorter than this one, itself included: first finish search
    (Agarwal et al. 2025, arXiv:2505.18149). The paper takes, of several samples that are drawn at the same time, the
    one that ends first.

    Our reading, which ranks all: the score is the share of answers that end no earlier. Answers end in the order of
    their tokens; those that were cut off end together, after all others. So the shortest finished answer has 1, and of
    N answers the last one 1/N.
    """

    def per_prompt_only(self) -> bool:
        """Always."""
        return True

    def __call__(self, case: JudgeCase) -> pl.LazyFrame:
        """Scores in (0, 1]; only ranks, so no verdict. A response without an answer or a count of tokens is an error."""
        timed = pl.col("answer").is_not_null() & pl.col("tokens").is_not_null()
        cut = (pl.col("finish_reason") == "length").fill_null(False)
        end = pl.when(timed).then(pl.when(cut).then(pl.lit(float("inf"))).otherwise(pl.col("tokens").cast(pl.Float64)))
        rows = case.responses.with_columns(end=end)
        no_earlier = pl.col("end").rank("max", descending=True).over("prompt_id")
        reason = pl.when(pl.col("answer").is_null()).then(pl.lit("no answer in the response")).otherwise(
            pl.lit("the engine gave no number of tokens")
        )  # fmt: skip
        return opinion(rows, no_earlier / pl.col("end").count().over("prompt_id"), reason)
