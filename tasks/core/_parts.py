"""Parquet parts: rows in groups of a fixed size, written by threads while the next rows are computed.

Equal rows give equal bytes: how rows are cut into groups and parts depends on their number alone.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.core.pointers import ObjectPath
from tasks.core.tables import Table

Frame = pl.LazyFrame | pl.DataFrame
PROMPTS = ("prompt_id", "id")
"""Where a row has its prompt's id: in the first of these columns that its table has."""
ROWS_PER_GROUP = 16_384
GROUPS_PER_PART = 4
WRITERS = 2
"""Parts that are encoded at the same time."""
ORDERED = ("id", "prompt_id")
"""Texts whose least and greatest value are kept, for a range of prompts is looked up by them. Of other texts they are not:
DuckDB 2.0 takes a column that holds one text and nulls for null throughout, where it is written without a dictionary."""


class RowGroup(NamedTuple):
    """A row group of a part: its rows, their size in bytes before compression, and its least and greatest prompt id, which are
    None where a row has no prompt.
    """

    rows: int
    bytes: int
    first: str | None
    last: str | None


def row_groups(file: Path | ObjectPath) -> list[RowGroup]:
    """The row groups of a part, from its footer alone."""
    metadata = pq.read_metadata(file if isinstance(file, Path) else file.open("rb"))
    names = metadata.schema.to_arrow_schema().names
    key = next((name for name in PROMPTS if name in names), None)
    groups = (metadata.row_group(n) for n in range(metadata.num_row_groups))
    return [RowGroup(group.num_rows, group.total_byte_size, *_extent(group, key)) for group in groups]


def _extent(group: pq.RowGroupMetaData, key: str | None) -> tuple[str | None, str | None]:
    columns = (group.column(n) for n in range(group.num_columns))
    statistics = next((c.statistics for c in columns if c.path_in_schema == key), None)
    if statistics is None or not statistics.has_min_max or statistics.null_count:
        return None, None
    return statistics.min, statistics.max


def extent(groups: Sequence[RowGroup]) -> tuple[str | None, str | None]:
    """The least and greatest prompt id of row groups; None where one of them has a row without a prompt, or none has rows."""
    firsts, lasts = [g.first for g in groups if g.rows], [g.last for g in groups if g.rows]
    if not firsts or None in firsts:
        return None, None
    return min(f for f in firsts if f is not None), max(k for k in lasts if k is not None)


def write_parts(to: Path, table: Table, frames: Iterable[Frame]) -> None:
    """Writes frames as one table. Threads encode parts while the next rows are computed."""
    groups = _groups((batch for frame in frames for batch in _batches(frame, table.schema)), table.schema)
    with ThreadPoolExecutor(WRITERS) as threads:
        parts = deque[Future[None]]()
        for number, first in enumerate(groups):
            if len(parts) > WRITERS:  # so many parts in memory, and one that waits for a thread
                parts.popleft().result()
            rows: SimpleQueue[pa.Table | None] = SimpleQueue()
            try:
                parts.append(threads.submit(_write_part, to / f"part-{number:05d}.parquet", table.schema, rows))
                for group in chain([first], islice(groups, GROUPS_PER_PART - 1)):
                    rows.put(group)
                    for part in parts:
                        if part.done():  # raises the error of a part that failed: stop early
                            part.result()
            finally:
                rows.put(None)
        for part in parts:
            part.result()


def _write_part(path: Path, schema: pa.Schema, groups: "SimpleQueue[pa.Table | None]") -> None:
    # texts and ids hardly repeat: a dictionary would cost a fifth of the time, and zstd compresses what repeats
    statistics = [
        f.name for f in schema if f.name in ORDERED or not (pa.types.is_string(f.type) or pa.types.is_nested(f.type))
    ]
    with pq.ParquetWriter(
        path, schema, compression="zstd", use_dictionary=False, write_statistics=statistics
    ) as writer:
        while (group := groups.get()) is not None:
            writer.write_table(group)


def _batches(frame: Frame, schema: pa.Schema) -> Iterator[pa.Table]:
    rows = frame.lazy().select(schema.names).collect_batches(chunk_size=ROWS_PER_GROUP, maintain_order=True)
    # to_arrow of a sliced list column copies the items of the whole column: gather the slice's rows first
    lists = [field.name for field in schema if pa.types.is_nested(field.type)]
    own = [pl.col(name).gather(pl.int_range(pl.len())) for name in lists]
    return (batch.with_columns(own).to_arrow().cast(schema) for batch in rows)


def _groups(batches: Iterable[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """Row groups of a fixed size, so that equal rows give equal bytes. At least one group, which may be empty."""
    buffer, any_group = pa.Table.from_batches([], schema), False
    for batch in batches:
        buffer = pa.concat_tables([buffer, batch])
        while buffer.num_rows >= ROWS_PER_GROUP:
            yield buffer.slice(0, ROWS_PER_GROUP).combine_chunks()
            buffer, any_group = buffer.slice(ROWS_PER_GROUP), True
    if buffer.num_rows or not any_group:
        yield buffer.combine_chunks()
