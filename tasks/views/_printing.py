"""Prints rows as a table, CSV or JSON. Only a table is truncated."""

import csv
import json
import sys
from typing import Any

import pyarrow as pa

MAX_ROWS, MAX_WIDTH = 200, 60
"""Rows of a printed table, and characters of a cell."""


def _print_table(rows: pa.Table) -> None:
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid()
    for column in rows.schema:
        numeric = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
        grid.add_column(Text(column.name), justify="right" if numeric else "left")
    for row in rows.slice(0, MAX_ROWS).to_pylist():
        grid.add_row(*(Text(_cell(v)) for v in row.values()))
    console = Console() if sys.stdout.isatty() else Console(width=10_000)  # do not wrap in a pipe or file
    console.print(grid)
    hidden = rows.num_rows - MAX_ROWS
    console.print(
        f"{rows.num_rows} row{'s' * (rows.num_rows != 1)}" + (f", the last {hidden} not shown" if hidden > 0 else "")
    )


def _cell(value: Any) -> str:
    text = "" if value is None else f"{value:.6g}" if isinstance(value, float) else _flat(value)
    text = text.replace("\n", "⏎")
    return text if len(text) <= MAX_WIDTH else text[: MAX_WIDTH - 1] + "…"


def _flat(value: Any) -> str:
    """A value as text; lists and structs as JSON."""
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict | tuple) else str(value)


def _print_csv(rows: pa.Table) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(rows.column_names)
    writer.writerows(["" if v is None else _flat(v) for v in row.values()] for row in rows.to_pylist())


def _print_json(rows: pa.Table) -> None:
    print(json.dumps(rows.to_pylist(maps_as_pydicts="strict"), ensure_ascii=False, default=str))


PRINTERS = {"table": _print_table, "csv": _print_csv, "json": _print_json}
