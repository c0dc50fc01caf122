"""Keeps the best part: for rewards that only rank, where no threshold means anything."""

import polars as pl
from pydantic import Field

from tasks.filter import ROUNDING, FilterCase, Filtering, candidates, drop
from tasks.filter._cutoff import cutoffs, in_room


class TopFraction(Filtering):
    """Keeps the best part by reward of each prompt's `per_prompt` best responses, all prompts together: RAFT,
    reward-ranked fine-tuning (Dong et al. 2023, arXiv:2304.06767).
    """

    fraction: float = Field(0.5, gt=0, le=1)
    """Share of these that is kept, rounded down, but at least one."""

    def needs_overview(self) -> bool:
        """Always: all prompts compete."""
        return True

    def summary(self, case: FilterCase) -> pl.LazyFrame:
        """Every candidate."""
        return candidates(self._best(case))

    def fold(self, summaries: pl.LazyFrame) -> pl.DataFrame:
        """The last candidate that is kept."""
        share = (pl.col("rows") * self.fraction + ROUNDING).floor()
        return cutoffs(summaries, pl.max_horizontal(share, 1))

    def __call__(self, case: FilterCase) -> pl.LazyFrame:
        """The margin is the distance to the reward of the last response kept."""
        rows = in_room(self._best(case), self.overview(case))
        score, last = pl.col("score"), pl.col("last")
        rows = drop(rows, {"score": (~pl.col("in_room"), last - score)})
        return rows.with_columns(margin=pl.when(pl.col("reason").is_null()).then(score - last).otherwise("margin"))

    def _best(self, case: FilterCase) -> pl.LazyFrame:
        """The rows of which each prompt's best are not dropped, all of one level."""
        return self.best(self.usable(case)).with_columns(level=pl.lit(0, pl.Int32))
