"""Keeps what reaches a reward: with vote shares, majority answers only."""

import polars as pl
from pydantic import PositiveInt

from tasks.filter import FilterCase, Filtering, better_first, drop


class Threshold(Filtering):
    """Keeps each prompt's best responses whose reward reaches a threshold: rejection sampling, as in RFT (Yuan et al.
    2023, arXiv:2308.01825) and ReST-EM (Singh et al. 2023, arXiv:2312.06585).

    With self-consistency as the reward and its defaults: of each prompt whose majority has at least 40 % of the votes,
    the likeliest response with the majority's answer.
    """

    min_reward: float = 0.4
    """Reward that a response must reach, in the reward's own units."""
    per_level: PositiveInt | None = None
    """Most responses kept a level, the best first, so that easy problems do not crowd out hard ones; null has no
    limit."""

    def per_prompt_only(self) -> bool:
        """Unless there is a limit a level."""
        return self.per_level is None

    def __call__(self, case: FilterCase) -> pl.LazyFrame:
        """A kept row's margin is its distance to `min_reward`; a dropped one's, by how much it missed its rule."""
        score = pl.col("score")
        rows = drop(self.usable(case), {"score": (score < self.min_reward, self.min_reward - score)})
        rows = self.best(rows)
        if self.per_level is not None:
            rows = self._level_limit(rows, case.prompts, self.per_level)
        margin = pl.when(pl.col("reason").is_null()).then(score - self.min_reward).otherwise("margin")
        return rows.with_columns(margin=margin)

    def _level_limit(self, rows: pl.LazyFrame, prompts: pl.LazyFrame, limit: int) -> pl.LazyFrame:
        levels = prompts.select("level", prompt_id="id")
        rows = better_first(rows.join(levels, on="prompt_id", how="left"))
        place = pl.col("reason").is_null().cum_sum().over("level")
        return drop(rows, {"level": (place > limit, place - limit)})
