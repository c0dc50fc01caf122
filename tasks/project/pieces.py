"""Splits large tables into ranges of prompt ids that each fit into memory, and runs a stage piece after piece.

What strategies must know of all prompts comes from a first pass: `summaries` of each piece, folded into `overviews`, which
`rows` of each piece takes. The three are functions of their arguments and of data frames alone, so that a driver may run
pieces in other processes; `passes` runs them here.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import polars as pl

from tasks.core.stage import ONLY, Overviews, Stage, Strategy

BYTES = 2**28
"""Bytes of responses per piece."""
MAX_ROWS = 2**20
"""Most responses per piece, however small they are."""
MAX_REQUESTS = 2**17
"""Most responses per piece where models are asked: each becomes a chat, a request and an answer, which are Python's."""
IDS_PER_PIECE = 64
"""Prompt ids sampled for each piece."""
SAMPLES = 8
"""Slices of the table that are measured to estimate the size of a row."""
Piece = tuple[str | None, str | None]
"""A half-open range (low, high) of prompt ids; None is unbounded."""


def pieces(stage: Stage, arguments: Mapping[str, Any]) -> list[Piece]:
    """The pieces in which a stage is to be run; empty where it sees all rows at once: its table is small, or one of its
    strategies wants that.
    """
    strategies, responses = _strategies(arguments).values(), arguments.get("responses")
    if not strategies or not isinstance(responses, pl.LazyFrame) or len(stage.tables) != 1:
        return []
    if not all(s.per_prompt_only() or s.needs_overview() for s in strategies):
        return []
    asks = any(s.opened_models() for s in strategies)
    return ranges(responses, min(MAX_REQUESTS, MAX_ROWS) if asks else MAX_ROWS)


def passes(stage: Stage, arguments: Mapping[str, Any], pieces: list[Piece]) -> Iterator[pl.LazyFrame]:
    """The rows of each piece. A first pass is made only where a strategy needs an overview."""
    strategies = {name: s for name, s in _strategies(arguments).items() if s.needs_overview()}
    given = overviews(strategies, (summaries(stage, arguments, p) for p in pieces)) if strategies else None
    for piece in pieces:
        yield rows(stage, arguments, piece, given)


def summaries(stage: Stage, arguments: Mapping[str, Any], piece: Piece) -> dict[str, pl.DataFrame]:
    """First pass over a piece: a summary by each member that needs an overview.

    Raises:
        TypeError: for a stage without a first pass, whose strategies cannot have one.
    """
    if stage.first_pass is None:
        raise TypeError(f"{stage.name} declares no `first_pass`, and one of its strategies needs an overview")
    taken = {name: arguments[name] for name in stage.first_pass_arguments}
    return {name: frame.collect() for name, frame in stage.first_pass(**within(taken, *piece)).items()}


def overviews(
    strategies: Mapping[str, Strategy], summaries: Iterable[Mapping[str, pl.DataFrame]]
) -> dict[str, pl.DataFrame]:
    """Each member's overview of all pieces, whose summaries come in the order of the pieces."""
    by_piece = list(summaries)
    return {name: s.fold(pl.concat([piece[name] for piece in by_piece])) for name, s in strategies.items()}


def rows(stage: Stage, arguments: Mapping[str, Any], piece: Piece, overviews: Overviews = None) -> pl.LazyFrame:
    """Second pass, or the only one: the rows that a stage makes of a piece."""
    own = within(arguments, *piece)
    if overviews is not None:
        lazy = {name: overview.lazy() for name, overview in overviews.items()}
        own["overviews"] = {name: frame.collect() for name, frame in within(lazy, *piece).items()}
    return stage.function(**own)


def ranges(responses: pl.LazyFrame, max_rows: int | None = None) -> list[Piece]:
    """Ranges of prompt ids with at most about `BYTES`, and `max_rows`, of responses each. Empty for a small table.

    The size of a row is that of the largest of `SAMPLES` slices. Bounds are quantiles of a sample of prompt ids; they are
    exact for a table sorted by prompt, as `generate` writes it.
    """
    count = responses.select(pl.len()).collect().item()
    if count <= MAX_ROWS // IDS_PER_PIECE:
        return []
    size = max(1, MAX_ROWS // IDS_PER_PIECE // SAMPLES)
    slices = pl.collect_all([responses.slice(n * (count - size) // (SAMPLES - 1), size) for n in range(SAMPLES)])
    most = BYTES * size // max(1, *(s.estimated_size() for s in slices))
    piece = min(max_rows or MAX_ROWS, max(IDS_PER_PIECE, most))
    if count <= piece:
        return []
    step = max(1, piece // IDS_PER_PIECE)
    sample = responses.select("prompt_id").with_row_index("row").filter(pl.col("row") % step == 0)
    ids = sample.collect(engine="streaming")["prompt_id"].drop_nulls().sort()
    ends = ids.gather_every(IDS_PER_PIECE)[1:].unique(maintain_order=True).to_list()
    return list(zip([None, *ends], [*ends, None], strict=True))


def within(arguments: Mapping[str, Any], low: str | None, high: str | None) -> dict[str, Any]:
    """The arguments with their tables filtered to a range of prompts. What has no prompts stays whole."""

    def rows(frame: pl.LazyFrame) -> pl.LazyFrame:
        column = next((c for c in ("prompt_id", "id") if c in frame.collect_schema()), None)
        if column is None:
            return frame
        prompt = pl.col(column)
        above = [prompt >= low] if low else []
        below = [(prompt < high) if low else (prompt < high).fill_null(True)] if high else []
        return frame.filter(*above, *below)

    return {k: rows(v) if isinstance(v, pl.LazyFrame) else v for k, v in arguments.items()}


def _strategies(arguments: Mapping[str, Any]) -> dict[str, Strategy]:
    """The strategies of a stage by member."""
    return arguments["members"] if "members" in arguments else {ONLY: arguments["strategy"]}
