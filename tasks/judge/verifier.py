"""The domain's own executable check."""

import polars as pl

from tasks.core.judging import OPINION, ORPHAN, JudgeCase, Judging, Opinion, graded


class Verifier(Judging):
    """Whether the domain's executable check finds the response right: 1 for right, 0 for wrong, or the domain's own
    grade (verifiable rewards, Lambert et al. 2024, arXiv:2411.15124). What `Domain.verify` cannot check is an error.

    As the reward it makes a loop of reinforcement learning with verifiable rewards; beside another reward it shows how
    good that one is.
    """

    def per_prompt_only(self) -> bool:
        """Always."""
        return True

    def __call__(self, case: JudgeCase) -> pl.LazyFrame:
        """Scores in [0, 1], part by part."""

        def check(rows: pl.Series) -> pl.Series:
            return pl.Series([self._opinion(case, **row) for row in rows], dtype=OPINION)

        columns = pl.struct("problem", "response", "reference")
        verified = columns.map_batches(check, return_dtype=OPINION, is_elementwise=True).alias("opinion")
        return case.with_problems().select(pl.col("id").alias("response_id"), "prompt_id", verified).unnest("opinion")

    def _opinion(self, case: JudgeCase, problem: str | None, response: str, reference: str | None) -> Opinion:
        return ORPHAN if problem is None else graded([case.domain.verify(problem, response, reference)])
