"""Frames of the tables' columns: from rows, and columns of ids, seeds and chats for millions of rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tasks.core.tables import Table

if TYPE_CHECKING:
    import polars as pl

ROWS_PER_BATCH = 16_384
"""Rows that one thread hashes at a time."""
LONG = 256
"""Bytes of a text, in the mean, from which DuckDB takes twice as long as OpenSSL for its hash."""


def frame(table: Table, rows: Iterable[Mapping[str, Any]] = ()) -> pl.LazyFrame:
    """Rows as a frame with all of the table's columns; missing values are null."""
    import polars as pl

    empty = pl.DataFrame(pa.Table.from_batches([], table.schema))  # `schema.empty_table()` imports pandas: 0.3 s
    return pl.DataFrame(list(rows), schema=empty.schema).lazy()


def chats(column: pl.Series) -> list[tuple[tuple[str, str], ...]]:
    """A chat column as tuples of (role, content), as engines take chats; an empty tuple where a row has no chat."""
    turns = column.explode(empty_as_null=False, keep_nulls=False).struct.unnest().rows()
    ends = column.list.len().fill_null(0).cum_sum().to_list()
    return [tuple(turns[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


def ids(*columns: str | pl.Expr) -> pl.Expr:
    """`content_id` of each row's values, vectorised for millions of rows; null where one of the columns is null."""
    import polars as pl

    return _hashed(columns, "id", "substr(sha256(x), 1, 16)", pl.String(), lambda text: _sha256(text).hexdigest()[:16])


def seeds(*columns: str | pl.Expr) -> pl.Expr:
    """`seed_of` each row's values, vectorised like `ids`."""
    import polars as pl

    sql = "(('0x' || substr(sha256(x), 1, 16))::ubigint >> 1)::bigint"
    return _hashed(columns, "seed", sql, pl.Int64(), lambda text: int.from_bytes(_sha256(text).digest()[:8]) >> 1)


def _sha256(text: str) -> Any:
    return hashlib.sha256(text.encode())


def _hashed(
    columns: tuple[str | pl.Expr, ...], name: str, sql: str, kind: pl.DataType, one: Callable[[str], str | int]
) -> pl.Expr:
    """A hash of each row, by DuckDB where texts are short; `one` by one where they are long, which OpenSSL hashes faster."""
    import duckdb
    import polars as pl

    def hashed(texts: pl.Series) -> pl.Series:
        if len(texts) and texts.str.len_bytes().sum() > LONG * len(texts):
            rows = [None if text is None else one(text) for text in texts.to_list()]
            return pl.Series("y", rows, kind)
        batches = texts.alias("x").to_frame().to_arrow().to_batches(ROWS_PER_BATCH)
        table = pa.Table.from_batches(batches, pa.schema([("x", pa.large_string())]))
        return duckdb.default_connection().cursor().from_arrow(table).project(f"{sql} as y").pl()["y"]

    joined = pl.concat_str(columns, separator="\x1f")
    return joined.map_batches(hashed, return_dtype=kind, is_elementwise=True).alias(name)
