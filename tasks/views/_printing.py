"""Prints rows: as a table or line by line for people, as CSV, JSON or Parquet for programs.

On a terminal rows that are much wider than it are printed line by line, and what is longer than it goes through a pager. In a
pipe or file nothing is cut or wrapped.
"""

import csv
import json
import sys
from collections.abc import Iterator
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from tasks.core.errors import FlywheelError

Format = Literal["table", "line", "csv", "json", "parquet"]
FORMATS: tuple[Format, ...] = get_args(Format)
MAX_ROWS = 1000
"""Rows that are printed on a terminal."""
MAX_WRAPPED = 2
"""Widths of the terminal up to which a table wraps its texts."""
UNBOUNDED = 1_000_000
"""Columns of a pipe or file."""


def print_rows(rows: pa.Table, format: Format = "table") -> None:
    """Prints rows to the standard output."""
    match format:
        case "csv":
            _print_csv(rows)
        case "json":
            print(json.dumps(_values(rows), ensure_ascii=False, default=str))
        case "parquet":
            _print_parquet(rows)
        case _:
            _print_for_people(rows, format, _console())


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=UNBOUNDED)


def _print_for_people(rows: pa.Table, format: Format, console: Console) -> None:
    shown = rows.slice(0, MAX_ROWS) if console.is_terminal else rows
    parts = list(_layout(shown, format, console))
    hidden = rows.num_rows - shown.num_rows
    cut = f", the last {hidden} not shown; --format csv prints all" if hidden else ""
    parts.append(Text(f"{rows.num_rows} row{'s' * (rows.num_rows != 1)}{cut}"))
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    text = "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())
    if console.is_terminal:
        _page(text, console)
    else:
        console.file.write(text)


def _page(text: str, console: Console) -> None:
    """Prints a text, through a pager where it is longer than the terminal."""
    import click

    if text.count("\n") < console.height:
        console.file.write(text)
    else:
        click.echo_via_pager(text)


def _layout(rows: pa.Table, format: Format, console: Console) -> Iterator[RenderableType]:
    table = _table(rows)
    size = console.measure(table, options=console.options.update(max_width=UNBOUNDED))
    fits = size.minimum <= console.width and size.maximum <= MAX_WRAPPED * console.width  # no word is broken
    if format == "table" and (fits or not console.is_terminal):
        yield table
    else:
        yield from _lines(rows)


def _table(rows: pa.Table) -> Table:
    table = Table()
    for column in rows.schema:
        numeric = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
        table.add_column(Text(column.name), justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    for row in _values(rows):
        table.add_row(*(Text(_cell(v).replace("\n", "⏎")) for v in row.values()))
    return table


def _lines(rows: pa.Table) -> Iterator[RenderableType]:
    """A block for each row, a line for each column."""
    for number, row in enumerate(_values(rows), start=1):
        block = Table.grid(padding=(0, 2, 0, 0))
        block.add_column(style="bold", no_wrap=True)
        block.add_column(overflow="fold")
        for name, value in row.items():
            block.add_row(Text(name), Text(_chat(value) if _is_chat(value) else _cell(value)))
        yield Text(f"row {number}", style="dim")
        yield block


def _values(rows: pa.Table) -> list[dict[str, Any]]:
    return rows.to_pylist(maps_as_pydicts="strict")  # type: ignore[no-any-return]


def _is_chat(value: Any) -> bool:
    return bool(value) and isinstance(value, list) and all(isinstance(v, dict) and "role" in v for v in value)


def _chat(turns: list[dict[str, Any]]) -> str:
    return "\n".join(f"{turn['role']}: {turn.get('content')}" for turn in turns)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else _flat(value)


def _flat(value: Any) -> str:
    """A value as text; lists and structs as JSON."""
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict | tuple) else str(value)


def _print_csv(rows: pa.Table) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(rows.column_names)
    writer.writerows(["" if v is None else _flat(v) for v in row.values()] for row in _values(rows))


def _print_parquet(rows: pa.Table) -> None:
    if sys.stdout.isatty():
        raise FlywheelError("--format parquet: is no text; write --out FILE, or `> FILE`")
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink)
    sys.stdout.buffer.write(sink.getvalue())
