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
        best = _first(rated, descending=True, name="chosen")
        if self.least is not None:
            best = best.filter(pl.col("chosen_score") >= self.least)
        worst = _first(rated, descending=False, name="rejected")
        return best.join(worst, on="prompt_id").with_columns(source=pl.lit("responses"))


def _first(rated: pl.LazyFrame, *, descending: bool, name: str) -> pl.LazyFrame:
    ordered = rated.sort("score", "mean_logprob", "id", descending=[descending, True, False], nulls_last=True)
    first = ordered.unique("prompt_id", keep="first", maintain_order=True)
    ours = {f"{name}_id": "id", name: "response", f"{name}_score": "score"}
    return first.select("prompt_id", **ours)
