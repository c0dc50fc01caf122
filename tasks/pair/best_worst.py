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
        best = ["score", "mean_logprob", "id"]
        ordered = rated.select("prompt_id", *best).sort(best, descending=[True, True, False], nulls_last=True)
        # of each prompt the first of each score, the best score first
        firsts = ordered.filter(pl.struct("prompt_id", "score").is_first_distinct())
        named = {f"chosen_{n}": pl.col(n).first() for n in ("id", "score")} | {
            f"rejected_{n}": pl.col(n).last() for n in ("id", "score")
        }
        ends = firsts.group_by("prompt_id").agg(**named)
        # the texts last, and only of those rows that can become pairs: they are most of what there is to read
        worth = ends.filter(pl.col("chosen_score") - pl.col("rejected_score") >= self.margin)
        if self.least is not None:
            worth = worth.filter(pl.col("chosen_score") >= self.least)
        for name in ("chosen", "rejected"):
            texts = rated.select(pl.col("id").alias(f"{name}_id"), pl.col("response").alias(name))
            worth = worth.join(texts, on=f"{name}_id")
        return worth.with_columns(source=pl.lit("responses"))
