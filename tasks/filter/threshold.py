"""Keeps what reaches a reward: with vote shares, majority answers only."""

import polars as pl
from pydantic import PositiveInt

from tasks.filter import FilterCase, Filtering, better_first, candidates, drop, with_overview


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

    def needs_overview(self) -> bool:
        """Where there is a limit a level."""
        return self.per_level is not None

    def summary(self, case: FilterCase) -> pl.LazyFrame:
        """Every candidate, with its level."""
        levels = case.prompts.select("level", prompt_id="id")
        return candidates(self._best(case)).join(levels, on="prompt_id", how="left")

    def fold(self, summaries: pl.DataFrame) -> pl.DataFrame:
        """The candidates beyond the limit of their level, and by how many places."""
        place = pl.int_range(1, pl.len() + 1).over("level")
        ranked = better_first(summaries.lazy()).select("prompt_id", "id", beyond=place - self.per_level)
        return ranked.filter(pl.col("beyond") > 0).collect()

    def __call__(self, case: FilterCase) -> pl.LazyFrame:
        """A kept row's margin is its distance to `min_reward`; a dropped one's, by how much it missed its rule."""
        rows = self._best(case)
        if self.per_level is not None:
            rows = with_overview(rows, self.overview(case))
            rows = drop(rows, {"level": (pl.col("beyond").is_not_null(), pl.col("beyond"))})
        margin = pl.when(pl.col("reason").is_null()).then(pl.col("score") - self.min_reward).otherwise("margin")
        return rows.with_columns(margin=margin)

    def _best(self, case: FilterCase) -> pl.LazyFrame:
        """The rows of which each prompt's best are not dropped."""
        score = pl.col("score")
        return self.best(drop(self.usable(case), {"score": (score < self.min_reward, self.min_reward - score)}))
