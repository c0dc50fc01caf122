"""The best answer of a prompt against its worst."""

import polars as pl

from tasks.pair import Pairing


class BestWorst(Pairing):
    """Highest against lowest reward, one pair a prompt (Self-Rewarding, Yuan et al. 2024, arXiv:2401.10020).

    Of equally good or equally bad ones the likeliest is taken: the best that the model has, and the mistake that it
    really makes; then the first by id.
    """

    least: float | None = None
    """Reward that the chosen one must reach; null asks for none."""

    def apart(self) -> bool:
        """Always."""
        return True

    def __call__(self, rated: pl.LazyFrame, refinements: pl.LazyFrame) -> pl.LazyFrame:
        """One candidate a prompt."""
        chosen, rejected = _first(by=[True, True, False]), _first(by=[False, True, False])
        ends = rated.group_by("prompt_id").agg(
            chosen_id=chosen,
            chosen_score=pl.col("score").max(),
            rejected_id=rejected,
            rejected_score=pl.col("score").min(),
        )
        # the texts last, and only of those rows that can become pairs: they are most of what there is to read
        worth = ends.filter(pl.col("chosen_score") - pl.col("rejected_score") >= self.margin)
        if self.least is not None:
            worth = worth.filter(pl.col("chosen_score") >= self.least)
        for name in ("chosen", "rejected"):
            texts = rated.select(pl.col("id").alias(f"{name}_id"), pl.col("response").alias(name))
            worth = worth.join(texts, on=f"{name}_id")
        return worth.with_columns(source=pl.lit("responses"))


def _first(by: list[bool]) -> pl.Expr:
    """The id that comes first by score, mean log-probability and id, each descending or not; nulls last."""
    return pl.col("id").sort_by("score", "mean_logprob", "id", descending=by, nulls_last=True).first()
