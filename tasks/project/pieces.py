"""Splits large tables into ranges of prompt ids that each fit into memory."""

from typing import Any

import polars as pl

BYTES = 2**28
"""Bytes of responses per piece."""
MAX_ROWS = 2**20
"""Most responses per piece, however small they are."""
IDS_PER_PIECE = 64
"""Prompt ids sampled for each piece."""
SAMPLES = 8
"""Slices of the table that are measured to estimate the size of a row."""


def ranges(responses: pl.LazyFrame) -> list[tuple[str | None, str | None]]:
    """Half-open ranges (low, high) of prompt ids with at most about `BYTES` of responses each; None is unbounded. Empty for
    a small table.

    The size of a row is that of the largest of `SAMPLES` slices. Bounds are quantiles of a sample of prompt ids; they are
    exact for a table sorted by prompt, as `generate` writes it.
    """
    count = responses.select(pl.len()).collect().item()
    if count <= MAX_ROWS // IDS_PER_PIECE:
        return []
    size = max(1, MAX_ROWS // IDS_PER_PIECE // SAMPLES)
    slices = pl.collect_all([responses.slice(n * (count - size) // (SAMPLES - 1), size) for n in range(SAMPLES)])
    piece = min(MAX_ROWS, max(IDS_PER_PIECE, BYTES * size // max(1, *(s.estimated_size() for s in slices))))
    if count <= piece:
        return []
    step = piece // IDS_PER_PIECE
    sample = responses.select("prompt_id").with_row_index("row").filter(pl.col("row") % step == 0)
    ids = sample.collect(engine="streaming")["prompt_id"].drop_nulls().sort()
    ends = ids.gather_every(IDS_PER_PIECE)[1:].unique(maintain_order=True).to_list()
    return list(zip([None, *ends], [*ends, None], strict=True))


def within(arguments: dict[str, Any], low: str | None, high: str | None) -> dict[str, Any]:
    """The arguments with their tables filtered to a range of prompts."""

    def rows(frame: pl.LazyFrame) -> pl.LazyFrame:
        prompt = pl.col("prompt_id" if "prompt_id" in frame.collect_schema() else "id")
        above = [prompt >= low] if low else []
        below = [(prompt < high) if low else (prompt < high).fill_null(True)] if high else []
        return frame.filter(*above, *below)

    return {k: rows(v) if isinstance(v, pl.LazyFrame) else v for k, v in arguments.items()}
