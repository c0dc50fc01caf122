"""The domain's own executable check."""

import polars as pl

from tasks.judge import OPINION, ORPHAN, Case, graded
from tasks.stage import Strategy


class Verifier(Strategy):
    """`Domain.verify`: 1 for right, 0 for wrong, or the domain's own grade; what it cannot check is an error.

    As the reward it makes the verifiable-reward loop; beside another reward it shows how good that one is.
    """

    def apart(self) -> bool:
        """Always."""
        return True

    def __call__(self, case: Case) -> pl.LazyFrame:
        """Scores in [0, 1], part by part."""

        def check(rows: pl.Series) -> pl.Series:
            return pl.Series([self._opinion(case, **row) for row in rows], dtype=OPINION)

        asked = pl.struct("problem", "response", "reference")
        checked = asked.map_batches(check, return_dtype=OPINION, is_elementwise=True).alias("opinion")
        return case.asked().select(pl.col("id").alias("response_id"), "prompt_id", checked).unnest("opinion")

    def _opinion(self, case: Case, problem: str | None, response: str, reference: str | None) -> dict[str, object]:
        return graded([ORPHAN if problem is None else case.domain.verify(problem, response, reference)])
