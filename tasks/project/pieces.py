"""Splits large tables into ranges of prompt ids that each fit into memory, and runs a stage piece after piece.

What strategies must know of all prompts comes from a first pass: `summaries` of each piece, folded into `overviews`, which
`rows` of each piece takes. The three are functions of their arguments and of data frames alone, so that a driver may run
pieces in other processes; `passes` runs them here.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import polars as pl

from tasks.core import pointers
from tasks.core._parts import PROMPTS, RowGroup, row_groups
from tasks.core.manifest import Part
from tasks.core.pointers import StoredPath
from tasks.core.stage import ONLY, Overviews, Stage, Strategy

BYTES = 2**28
"""Bytes of responses per piece."""
MAX_ROWS = 2**20
"""Most responses per piece, however small they are."""
MAX_REQUESTS = 2**17
"""Most responses per piece where models are asked: each becomes a chat, a request and an answer, which are Python's."""
MAX_PROMPTS = 2**14
"""Most prompts per piece where they are answered."""
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
    strategies, responses = list(by_member(arguments).values()), arguments.get("responses")
    if not isinstance(responses, pl.LazyFrame) or not _is_divisible(stage, strategies):
        return []
    return ranges(responses, _limit(stage, strategies))


def cut(stage: Stage, strategies: Iterable[Strategy], files: Sequence[StoredPath]) -> list[Piece]:
    """The pieces in which a stage is to be run, by the footers of the files of the table that it goes by; empty where it sees all
    rows at once. They depend on nothing but the files, so that it does not matter where, or by how many, they are worked off.
    """
    chosen = list(strategies)
    if not _is_divisible(stage, chosen):
        return []
    groups = [group for found in _footers(files) for group in found]
    most = _most(groups, _limit(stage, chosen))
    if sum(group.rows for group in groups) <= most:
        return []
    return between(groups, most) or ranges(pointers.scan(files), most)


def goes_by(stage: Stage) -> str | None:
    """The argument whose rows are cut into pieces: the round's responses, or the prompts that are to be answered."""
    own = {i.argument for i in stage.inputs if not i.ancestor and not i.opened}
    return next((name for name in ("responses", "prompts") if name in own), None)


def overlaps(part: Part, low: str | None, high: str | None) -> bool:
    """Whether a part may have rows of a range of prompts. Of one whose prompts are not recorded nobody knows."""
    if part.first is None or part.last is None:
        return True
    return (high is None or part.first < high) and (low is None or part.last >= low)


def between(groups: Sequence[RowGroup], most: int) -> list[Piece]:
    """Pieces of about `most` rows that begin where a row group does: whole parts, and whole groups of a large part. Empty where
    the groups are not sorted by prompt.
    """
    starts: list[str] = []
    rows, last = 0, ""
    for group in groups:
        if group.first is None or group.last is None:
            return []
        if rows and rows + group.rows > most and last <= group.first and group.first > (starts or [""])[-1]:
            starts.append(group.first)
            rows = 0
        rows, last = rows + group.rows, max(last, group.last)
        if rows > 2 * most:
            return []
    return list(zip([None, *starts], [*starts, None], strict=True)) if starts else []


def _footers(files: Sequence[StoredPath]) -> list[list[RowGroup]]:
    with ThreadPoolExecutor() as threads:
        return list(threads.map(row_groups, files))


def _most(groups: Sequence[RowGroup], limit: int) -> int:
    """Rows of a piece, by the size of the largest ones."""
    size = max((group.bytes / group.rows for group in groups if group.rows), default=1.0)
    return min(limit, max(IDS_PER_PIECE, int(BYTES / max(size, 1.0))))


def _is_divisible(stage: Stage, strategies: Sequence[Strategy]) -> bool:
    """Whether each of a stage's strategies can do with the rows of some prompts."""
    if not strategies or len(stage.tables) != 1 or goes_by(stage) is None:
        return False
    return all(s.per_prompt_only() or s.needs_overview() for s in strategies)


def _limit(stage: Stage, strategies: Sequence[Strategy]) -> int:
    """Most rows of a piece of the table that the stage goes by."""
    if goes_by(stage) == "prompts":
        return MAX_PROMPTS
    return min(MAX_REQUESTS, MAX_ROWS) if any(s.opened_models() for s in strategies) else MAX_ROWS


def passes(stage: Stage, arguments: Mapping[str, Any], pieces: list[Piece]) -> Iterator[pl.LazyFrame]:
    """The rows of each piece. A first pass is made only where a strategy needs an overview."""
    strategies = {name: s for name, s in by_member(arguments).items() if s.needs_overview()}
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
    return {name: s.fold(pl.concat([piece[name] for piece in by_piece]).lazy()) for name, s in strategies.items()}


def rows(stage: Stage, arguments: Mapping[str, Any], piece: Piece, overviews: Overviews = None) -> Any:
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
    prompt = next(name for name in PROMPTS if name in responses.collect_schema())
    sample = responses.select(prompt).with_row_index("row").filter(pl.col("row") % step == 0)
    ids = sample.collect(engine="streaming")[prompt].drop_nulls().sort()
    ends = ids.gather_every(IDS_PER_PIECE)[1:].unique(maintain_order=True).to_list()
    return list(zip([None, *ends], [*ends, None], strict=True))


def within(arguments: Mapping[str, Any], low: str | None, high: str | None) -> dict[str, Any]:
    """The arguments with their tables filtered to a range of prompts. What has no prompts stays whole."""

    def rows(frame: pl.LazyFrame) -> pl.LazyFrame:
        column = next((c for c in PROMPTS if c in frame.collect_schema()), None)
        if column is None:
            return frame
        prompt = pl.col(column)
        above = [prompt >= low] if low else []
        below = [(prompt < high) if low else (prompt < high).fill_null(True)] if high else []
        return frame.filter(*above, *below)

    return {k: rows(v) if isinstance(v, pl.LazyFrame) else v for k, v in arguments.items()}


def by_member(arguments: Mapping[str, Any]) -> dict[str, Strategy]:
    """The strategies of a stage by member."""
    return arguments["members"] if "members" in arguments else {ONLY: arguments["strategy"]}
