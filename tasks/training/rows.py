"""Rows as trainers take them: in Arrow files that are mapped into memory, so that what a trainer holds does not grow with
them. What a trainer makes of them, tokens first, lies in files beside them, for `datasets` writes where it reads.
"""

import secrets
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, concatenate_datasets  # noqa: TID253  (the file is about training; whoever trains imports it late)

from tasks.training import ranks

PIECE = 5_000
"""Rows at once."""
FOLDER = "rows"
"""Folder of the files, in a trainer's scratch folder."""


def on_disk(frames: Iterable[pl.DataFrame], folder: Path) -> Dataset:
    """Rows of one schema, one frame after the other, of which there is one at least; what `folder` held is gone. Of several ranks
    the first writes them.
    """
    path = folder / "rows.arrow"
    with ranks.first_then_others():
        if ranks.is_first():
            shutil.rmtree(folder, ignore_errors=True)  # rows that a killed run left
            folder.mkdir(parents=True)
            _write(frames, path)
        return Dataset.from_file(str(path))


def _write(frames: Iterable[pl.DataFrame], path: Path) -> None:
    stream = None
    with path.open("wb") as file:
        for frame in frames:
            table = frame.to_arrow()
            stream = stream or pa.ipc.new_stream(file, table.schema)
            stream.write_table(table)
        if stream is None:
            raise ValueError("there are no rows to train on")
        stream.close()


def lengths(rows: Dataset, column: str) -> list[int]:
    """How long the list in each row is."""
    pieces = rows.select_columns([column]).with_format("arrow").iter(PIECE)
    return [n for piece in pieces for n in pc.list_value_length(piece[column]).to_pylist()]


def with_columns(
    rows: Dataset, compute: Callable[[dict[str, list[Any]]], dict[str, list[Any]]], at_once: int
) -> Dataset:
    """With the columns that `compute` gives of some rows' columns; it is called with a multiple of `at_once` rows, and with
    what is left at the end. It asks a model, so nothing that it gave before is taken from a file.
    """
    size = at_once * max(1, PIECE // at_once)
    return rows.map(compute, batched=True, batch_size=size, new_fingerprint=secrets.token_hex(8))


def with_blank(rows: Dataset, blank: Callable[[dict[str, Any]], dict[str, Any]]) -> tuple[Dataset, int]:
    """With one row more, the first as `blank` changes it, and its index."""
    changed = Dataset.from_list([rows[0] | blank(rows[0])], features=rows.features)
    return concatenate_datasets([rows, changed]), len(rows)


def with_last(rows: Dataset, column: str, value: Any) -> Dataset:
    """With another value in a column's last row."""
    last = len(rows) - 1
    changed = rows.select([last]).map(lambda row: row | {column: value}, new_fingerprint=secrets.token_hex(8))
    return concatenate_datasets([rows.select(range(last)), changed.cast(rows.features)])
