"""Keeps what reaches a reward: with vote shares, majority answers only."""

import polars as pl
from pydantic import PositiveInt

from tasks.filter import FilterCase, Filtering, candidates, drop
from tasks.filter._cutoff import cutoffs, in_room


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
        """Every candidate."""
        return candidates(self._with_levels(self._best(case), case))

    def fold(self, summaries: pl.LazyFrame) -> pl.DataFrame:
        """The last candidate of each level that is within its limit."""
        return cutoffs(summaries, pl.lit(self.per_level))

    def __call__(self, case: FilterCase) -> pl.LazyFrame:
        """A kept row's margin is its distance to `min_reward`; that of one beyond the limit of its level, to the reward of the
        last one kept there; that of others, by how much they missed their rule.
        """
        rows = self._best(case)
        if self.per_level is not None:
            rows = in_room(self._with_levels(rows, case), self.overview(case))
            rows = drop(rows, {"level": (~pl.col("in_room"), pl.col("last") - pl.col("score"))})
        margin = pl.when(pl.col("reason").is_null()).then(pl.col("score") - self.min_reward).otherwise("margin")
        return rows.with_columns(margin=margin)

    def _best(self, case: FilterCase) -> pl.LazyFrame:
        """The rows of which each prompt's best are not dropped."""
        score = pl.col("score")
        return self.best(drop(self.usable(case), {"score": (score < self.min_reward, self.min_reward - score)}))

    def _with_levels(self, rows: pl.LazyFrame, case: FilterCase) -> pl.LazyFrame:
        levels = case.prompts.select("level", prompt_id="id")
        return rows.join(levels, on="prompt_id", how="left", maintain_order="left")
