"""One table of all benchmarks: each adds its rows, printed by itself or, together with the others', by `make bench`."""

import json
import os
from pathlib import Path

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

FILE = "BENCHMARK_ROWS"
"""Environment variable that names the file in which rows are gathered."""
COLUMNS = ("what", "this project", "against", "ratio", "goal")
Row = tuple[str, str, str, float | None, float | None, bool]


def add(what: str, ours: str, theirs: str, ratio: float | None, goal: float | None, least: bool = False) -> None:
    """Adds a row; a goal is the most that the ratio may be, or with `least` the least."""
    row = (what, ours, theirs, ratio, goal, least)
    show([row])
    if FILE in os.environ:
        with Path(os.environ[FILE]).open("a") as file:
            file.write(json.dumps(row) + "\n")


def gathered() -> list[Row]:
    """The rows of all benchmarks that ran."""
    path = Path(os.environ[FILE])
    return [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def reached(row: Row) -> bool:
    """Whether the ratio is at its goal; a row without one is."""
    *_, ratio, goal, least = row
    return ratio is None or goal is None or (ratio >= goal if least else ratio <= goal)


def show(rows: list[Row]) -> None:
    """Prints rows as a table that Markdown understands too."""
    table = Table(*COLUMNS, box=MARKDOWN)
    for row in rows:
        what, ours, theirs, ratio, goal, least = row
        sign = "" if goal is None else f"{'≥' if least else '≤'} {goal:g}" + ("" if reached(row) else ": missed")
        table.add_row(what, ours, theirs, "" if ratio is None else f"{ratio:.3g}", sign)
    Console(width=140).print(table)
