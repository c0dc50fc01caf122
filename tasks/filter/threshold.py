"""Keeps what reaches a reward: with vote shares, majority answers only."""

import polars as pl
from pydantic import PositiveInt

from tasks.filter import Selection, best, better_first, drop, scored, usable


class Threshold(Selection):
    """Rejection sampling by a threshold (RFT, Yuan et al. 2023, arXiv:2308.01825; ReST-EM, Singh et al. 2023,
    arXiv:2312.06585).

    With self-consistency as the reward and its defaults: of each prompt whose majority has at least 40 % of the votes,
    the likeliest response with the majority's answer.
    """

    least: float = 0.4
    """Reward that a response must reach, in the reward's own units."""
    per_level: PositiveInt | None = None
    """Most responses kept a level, the best first, so that easy problems do not crowd out hard ones; null has no
    limit."""

    def apart(self) -> bool:
        """Unless there is a limit a level."""
        return self.per_level is None

    def __call__(self, prompts: pl.LazyFrame, responses: pl.LazyFrame, judgments: pl.LazyFrame) -> pl.LazyFrame:
        """A kept row's margin is its distance to `least`; a dropped one's, by how much it missed its rule."""
        score = pl.col("score")
        rows = usable(scored(self, responses, judgments), self)
        rows = best(drop(rows, {"score": (score < self.least, self.least - score)}), self)
        if self.per_level is not None:
            rows = self._level_limit(rows, prompts, self.per_level)
        return rows.with_columns(
            margin=pl.when(pl.col("reason").is_null()).then(score - self.least).otherwise("margin")
        )

    def _level_limit(self, rows: pl.LazyFrame, prompts: pl.LazyFrame, limit: int) -> pl.LazyFrame:
        levels = prompts.select(pl.col("id").alias("prompt_id"), "level")
        rows = better_first(rows.join(levels, on="prompt_id", how="left"))
        place = pl.col("reason").is_null().cum_sum().over("level")
        return drop(rows, {"level": (place > limit, place - limit)})
