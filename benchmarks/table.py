"""One table of all benchmarks: each adds its rows, printed by itself or, together with the others', by `make bench`."""

import json
import os
from pathlib import Path

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

FILE = "BENCHMARK_ROWS"
"""Environment variable that names the file to which every benchmark appends its rows."""
COLUMNS = ("what", "this project", "against", "ratio", "goal")
Row = tuple[str, str, str, float | None, float | None, bool]


def add(what: str, ours: str, theirs: str, ratio: float | None, goal: float | None, at_least: bool = False) -> None:
    """Adds a row; a goal is the largest ratio that meets it, or with `at_least` the smallest."""
    row = (what, ours, theirs, ratio, goal, at_least)
    show([row])
    if FILE in os.environ:
        with Path(os.environ[FILE]).open("a") as file:
            file.write(json.dumps(row) + "\n")


def all_rows() -> list[Row]:
    """The rows of all benchmarks that ran."""
    path = Path(os.environ[FILE])
    return [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def meets_goal(row: Row) -> bool:
    """Whether the ratio is at its goal; a row without one is."""
    *_, ratio, goal, at_least = row
    return ratio is None or goal is None or (ratio >= goal if at_least else ratio <= goal)


def show(rows: list[Row]) -> None:
    """Prints rows as a table that Markdown understands too."""
    table = Table(*COLUMNS, box=MARKDOWN)
    for row in rows:
        what, ours, theirs, ratio, goal, at_least = row
        sign = "" if goal is None else f"{'≥' if at_least else '≤'} {goal:g}" + ("" if meets_goal(row) else ": missed")
        table.add_row(what, ours, theirs, "" if ratio is None else f"{ratio:.3g}", sign)
    Console(width=140).print(table)
