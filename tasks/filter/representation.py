"""Keeps responses that are far from each other in the model's hidden states."""

from typing import ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from tasks.core.stage import Ability
from tasks.filter import NO_MARGIN, ROUNDING, FilterCase, Filtering, drop, with_overview
from tasks.filter._vectors import Matrix, stacked, with_vectors

NO_VECTORS = pl.Series("vector", [], pl.List(pl.Float64))


class Representation(Filtering):
    """Keeps responses whose hidden states are far from those already kept: representation-based exploration (Tuyls et
    al. 2025, arXiv:2510.11686).

    Our reading: candidates are the `per_prompt` best responses of each prompt that reach `min_reward`. The first by id
    is kept, then again and again the one whose distance 1 − cosine to the nearest kept one is largest, over the whole
    round (greedy farthest-point choice, Gonzalez 1985, doi:10.1016/0304-3975(85)90224-5). Of equally far ones the first
    by id, a hash of content, is taken. The authors use elliptic bonuses instead.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset({"embeds"})

    model: str = "parent"
    """Name of the model whose hidden states are compared: an ancestor's, or one of the roster."""
    min_reward: float = 0.4
    """Reward that a response must reach, in the reward's own units."""
    fraction: float = Field(0.5, gt=0, le=1)
    """Share of the candidates that is kept, rounded down, but at least one."""
    count: PositiveInt | None = None
    """Candidates that are kept, in place of `fraction`."""

    def opened_models(self) -> frozenset[str]:
        """The one `model`."""
        return frozenset({self.model})

    def needs_overview(self) -> bool:
        """Always: all candidates of the round are compared."""
        return True

    def summary(self, case: FilterCase) -> pl.LazyFrame:
        """Every candidate and its vector, null where there is none."""
        table, vectors = with_vectors(self._best(case), case, self.model)
        rows = table.filter(pl.col("reason").is_null())
        vector = pl.Series("vector", stacked(vectors, rows["response"])).arr.to_list() if len(rows) else NO_VECTORS
        missing = table.filter(reason="no_vector").select("prompt_id", "id")
        return pl.concat([rows.select("prompt_id", "id", vector), missing], how="diagonal").lazy()

    def fold(self, summaries: pl.LazyFrame) -> pl.DataFrame:
        """Which candidates are kept (null without a vector), and their distances."""
        rows = summaries.collect()
        chosen = self._chosen(rows.drop_nulls("vector").sort("id"))
        return rows.select("prompt_id", "id").join(chosen, on="id", how="left")

    def __call__(self, case: FilterCase) -> pl.LazyFrame:
        """The margin of a kept row is its distance to the nearest one kept before it, null for the first; that of one
        dropped as `near`, by how much its distance misses that of the last one kept. Ranks go by reward.
        """
        rows = with_overview(self._best(case), self.overview(case))
        kept = pl.col("kept_now")
        rows = drop(rows, {"no_vector": (kept.is_null(), NO_MARGIN), "near": (~kept, pl.col("missed"))})
        return rows.with_columns(margin=pl.when(pl.col("reason").is_null()).then("distance").otherwise("margin"))

    def _best(self, case: FilterCase) -> pl.LazyFrame:
        """The rows of which each prompt's best are not dropped."""
        score = pl.col("score")
        return self.best(drop(self.usable(case), {"score": (score < self.min_reward, self.min_reward - score)}))

    def _chosen(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Of candidates by id, which are kept, and their distances."""
        count = min(self.count or max(1, int(len(rows) * self.fraction + ROUNDING)), len(rows))
        vectors = rows["vector"].explode().to_numpy().reshape(len(rows), -1) if count else np.empty(0)
        order, distances = farthest_first(vectors, count) if count else ([], np.empty(0))
        kept = np.isin(np.arange(len(rows)), order)
        first = np.isin(np.arange(len(rows)), order[:1])
        last = distances[order[-1]] if len(order) > 1 else np.inf
        missed = np.where(kept | np.isinf(last), np.nan, last - distances)
        columns = {"kept_now": kept, "distance": np.where(first, np.nan, distances), "missed": missed}
        return rows.select("id", *[pl.Series(n, v, nan_to_null=True) for n, v in columns.items()])


def farthest_first(vectors: Matrix, count: int) -> tuple[list[int], NDArray[np.float64]]:
    """The rows in the order in which they are chosen, from the first row on, and the distance of each to the nearest of those
    that were chosen before it; of those not chosen, before the last one was. `vectors` are of length 1.
    """
    order, distances = [0], 1 - vectors @ vectors[0]
    chosen = np.arange(len(vectors)) == 0
    while len(order) < count:
        farthest = int(np.argmax(np.where(chosen, -np.inf, np.round(distances, 9))))  # rounded: ties are by position
        order.append(farthest)
        chosen[farthest] = True
        if len(order) < count:
            nearer = np.minimum(distances, 1 - vectors @ vectors[farthest])
            distances = np.where(chosen, distances, nearer)
    return order, distances
