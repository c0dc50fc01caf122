"""Keeps the best part: for rewards that only rank, where no threshold means anything."""

import polars as pl
from pydantic import Field

from tasks.filter import ROUNDING, FilterCase, Filtering, better_first, candidates, drop, with_overview


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
        return candidates(self.best(self.usable(case)))

    def fold(self, summaries: pl.DataFrame) -> pl.DataFrame:
        """Whether each candidate is `in_room`, and the reward of the last one that is."""
        ordered = better_first(summaries.lazy()).collect()
        room = max(1, int(len(ordered) * self.fraction + ROUNDING))
        in_room, last = pl.int_range(pl.len()) < room, pl.lit(ordered["score"].head(room).min(), pl.Float64)
        return ordered.select("prompt_id", "id", in_room=in_room, last=last)

    def __call__(self, case: FilterCase) -> pl.LazyFrame:
        """The margin is the distance to the reward of the last response kept."""
        rows = with_overview(self.best(self.usable(case)), self.overview(case))
        score, last = pl.col("score"), pl.col("last")
        rows = drop(rows, {"score": (~pl.col("in_room"), last - score)})
        return rows.with_columns(margin=pl.when(pl.col("reason").is_null()).then(score - last).otherwise("margin"))
