"""A coin: the control arm. What a round gains with this reward, it gains without any judgment."""

import polars as pl

from tasks.core.ids import seed_of
from tasks.core.judging import JudgeCase, Judging, opinion


class Random(Judging):
    """A score drawn uniformly from [0, 1), whatever the response (random rewards, Shao et al. 2025, arXiv:2506.10947).
    It is a hash of the seed and the response's id.
    """

    def per_prompt_only(self) -> bool:
        """Always."""
        return True

    def __call__(self, case: JudgeCase) -> pl.LazyFrame:
        """Scores in [0, 1); no verdict."""

        def draw(ids: pl.Series) -> pl.Series:
            # 53 bits fill a float's mantissa, so that no draw is rounded up to 1
            return pl.Series([(seed_of(case.seed, "random", i) >> 10) / 2**53 for i in ids], dtype=pl.Float64)

        score = pl.col("id").map_batches(draw, return_dtype=pl.Float64, is_elementwise=True)
        return opinion(case.responses, score, "no score")
