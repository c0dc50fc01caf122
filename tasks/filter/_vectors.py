"""Responses as unit vectors of a model's hidden states."""

from collections.abc import Iterable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks.filter import NO_MARGIN, FilterCase, drop

Matrix = NDArray[np.float64]
"""A unit vector in each row."""


def with_vectors(rows: pl.LazyFrame, case: FilterCase, model: str) -> tuple[pl.DataFrame, dict[str, Matrix]]:
    """The rows by id, and the unit vectors of the responses that are not dropped, by text: a response is read as it is, and
    equal ones once. One of which there is no vector is dropped with the reason `no_vector`.
    """
    table = rows.sort("id").collect()
    vectors = _embedded(case, model, table.filter(pl.col("reason").is_null())["response"])
    missing = ~pl.col("response").is_in(list(vectors))
    return drop(table.lazy(), {"no_vector": (missing, NO_MARGIN)}).collect(), vectors


def stacked(vectors: dict[str, Matrix], texts: Iterable[str]) -> Matrix:
    """The vectors of texts, one a row."""
    return np.array([vectors[text] for text in texts])


def _embedded(case: FilterCase, model: str, responses: pl.Series) -> dict[str, Matrix]:
    texts = sorted(set(responses))
    if not texts:
        return {}  # no model is loaded
    with case.models.open(model) as policy:
        results = dict(policy.embed(texts))
    made = {t: np.array(results[n].vector, np.float64) for n, t in enumerate(texts) if results[n].error is None}
    return {
        text: vector / norm for text, vector in made.items() if np.isfinite(norm := np.linalg.norm(vector)) and norm
    }
