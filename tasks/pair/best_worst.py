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
        ends = _first(rated, descending=True, name="chosen").join(
            _first(rated, descending=False, name="rejected"), on="prompt_id"
        )
        # the texts last, and only of those rows that can become pairs: they are most of what there is to read
        worth = ends.filter(pl.col("chosen_score") - pl.col("rejected_score") >= self.margin)
        if self.least is not None:
            worth = worth.filter(pl.col("chosen_score") >= self.least)
        for name in ("chosen", "rejected"):
            texts = rated.select(pl.col("id").alias(f"{name}_id"), pl.col("response").alias(name))
            worth = worth.join(texts, on=f"{name}_id")
        return worth.with_columns(source=pl.lit("responses"))


def _first(rated: pl.LazyFrame, *, descending: bool, name: str) -> pl.LazyFrame:
    ordered = rated.sort("score", "mean_logprob", "id", descending=[descending, True, False], nulls_last=True)
    first = ordered.unique("prompt_id", keep="first", maintain_order=True)
    return first.select("prompt_id", pl.col("id").alias(f"{name}_id"), pl.col("score").alias(f"{name}_score"))
