"""Keeps the best part: for rewards that only rank, where no threshold means anything."""

import polars as pl
from pydantic import Field

from tasks.filter import ROUNDING, FilterCase, Filtering, better_first, drop


class TopFraction(Filtering):
    """Keeps the best part by reward of each prompt's `per_prompt` best responses, all prompts together: RAFT,
    reward-ranked fine-tuning (Dong et al. 2023, arXiv:2304.06767).
    """

    fraction: float = Field(0.5, gt=0, le=1)
    """Share of these that is kept, rounded down, but at least one."""

    def __call__(self, case: FilterCase) -> pl.LazyFrame:
        """The margin is the distance to the reward of the last response kept."""
        rows = better_first(self.best(self.usable(case)))
        candidate, score = pl.col("reason").is_null(), pl.col("score")
        room = (candidate.sum() * self.fraction + ROUNDING).floor().clip(lower_bound=1)
        rows = rows.with_columns(in_room=candidate & (candidate.cum_sum() <= room))
        rows = rows.with_columns(last=score.filter(pl.col("in_room")).min())
        rows = drop(rows, {"score": (~pl.col("in_room"), pl.col("last") - score)})
        return rows.with_columns(margin=pl.when(candidate).then(score - pl.col("last")).otherwise("margin"))
