"""Keeps the majority's most novel responses."""

from typing import ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks.core.stage import Ability
from tasks.filter import FilterCase, Filtering, drop
from tasks.filter._vectors import Matrix, stacked, with_vectors


class Novelty(Filtering):
    """Keeps each prompt's responses with the majority's answer that are least like the others: EVOL-RL (Zhou et al.
    2025, arXiv:2509.15194), where the majority drives selection and novelty keeps it from collapsing. Of each prompt, u
    = 1 − (½·mean cosine to the others of its group + ½·max cosine to all others), cosines clipped to [0, 1] and u
    min–max scaled within the group, majority or minority. A sample of the majority scores ½ + ½u, one of the minority
    −1 + ½u.

    As in the authors' code a group's only sample takes the mean over all others and has the scaled u 1, and equally
    novel ones have ½. What is unparsable, −1 there, is dropped here by its own rule (`format`) and no neighbour of
    others.

    Our readings: the majority of a prompt are the samples that the reward judge passes; where it passes none, those of
    the prompt's highest reward, unless it failed them. So with `self_consistency` it is what has the highest share of
    the votes, all of it in a tie. A sample is read by the policy's own hidden states, and not by a separate embedding
    model.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset({"embeds"})

    model: str = "parent"
    """Name of the model whose hidden states are compared: an ancestor's, or one of the roster."""
    min_score: float = 0.5
    """Banded score that a response must reach: 0.5 takes the majority, which has 0.5 to 1; the minority has -1 to -0.5."""

    def opened_models(self) -> frozenset[str]:
        """The one `model`."""
        return frozenset({self.model})

    def per_prompt_only(self) -> bool:
        """Always."""
        return True

    def __call__(self, case: FilterCase) -> pl.LazyFrame:
        """`score` stays the reward; the better one of a prompt, and the margin, go by the banded score."""
        table, vectors = with_vectors(self.usable(case), case, self.model)
        scores = [self._banded(of_prompt, vectors) for _, of_prompt in self._usable(table, case).group_by("prompt_id")]
        banded = pl.concat([table.select("id").clear().with_columns(banded=pl.lit(None, pl.Float64)), *scores])
        rows = table.lazy().join(banded.lazy(), on="id", how="left").with_columns(reward="score", score="banded")
        short = self.min_score - pl.col("score")
        rows = self.best(drop(rows, {"novelty": (short > 0, short)}))
        margin = pl.when(pl.col("reason").is_null()).then(-short).otherwise("margin")
        return rows.with_columns(margin=margin).with_columns(score="reward")

    def _usable(self, table: pl.DataFrame, case: FilterCase) -> pl.DataFrame:
        """The rows that no rule dropped, with `majority`."""
        verdicts = case.judgments.filter("reward").select("verdict", id="response_id")
        rows = table.lazy().filter(pl.col("reason").is_null()).join(verdicts, on="id", how="left").sort("id")
        passed = (pl.col("verdict") == "pass").fill_null(False)
        leading = (pl.col("score") == pl.col("score").max().over("prompt_id")) & pl.col("verdict").is_null()
        return rows.with_columns(majority=passed | (leading & ~passed.any().over("prompt_id"))).collect()

    def _banded(self, rows: pl.DataFrame, vectors: dict[str, Matrix]) -> pl.DataFrame:
        majority = rows["majority"].to_numpy()
        u = novelty(stacked(vectors, rows["response"]), majority)
        return rows.select("id", banded=pl.Series(np.where(majority, 0.5 + 0.5 * u, -1 + 0.5 * u)))


def novelty(vectors: Matrix, majority: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The scaled u of each of a prompt's samples; `vectors` are of length 1."""
    cosines = np.clip(vectors @ vectors.T, 0, 1)
    other = ~np.eye(len(majority), dtype=bool)
    fellow = other & (majority[:, None] == majority[None, :])
    fellow = np.where(fellow.any(1, keepdims=True), fellow, other)
    mean = (cosines * fellow).sum(1) / np.maximum(fellow.sum(1), 1)
    u = 1 - 0.5 * mean - 0.5 * (cosines * other).max(1)
    for group in (majority, ~majority):
        u[group] = scaled(u[group])
    return u


def scaled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Min–max scaled to [0, 1]: 1 for a single value, ½ where all are equal up to rounding."""
    if len(values) < 2:
        return np.ones_like(values)
    span = values.max() - values.min()
    return (values - values.min()) / span if span > 1e-9 else np.full_like(values, 0.5)
