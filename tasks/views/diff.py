"""What differs between two rounds, or between a round and an older version of itself: settings, rows, outcomes.

    flywheel diff r1 r2                     the whole
    flywheel diff r2@v1 r2 --table pairs    one table, with more examples
    flywheel diff r1 r2 --sql "select key, response_old, response_new from diff_responses where change = 'changed'"

For SQL every table that both have is there three times: `old_<table>`, `new_<table>`, and `diff_<table>` with a row for each
row that differs: change (gone, added, changed), key, columns (the names of those that differ), and each column of the table
as `<column>_old` and `<column>_new`. `_diff_tables.py` says which rows are matched with which.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import duckdb
import pyarrow as pa
from pydantic_core import to_json
from rich.console import Console

from tasks.core import store
from tasks.core.errors import FlywheelError, UnknownName
from tasks.core.tables import TABLES
from tasks.views import _diff_outcomes as outcomes
from tasks.views import _diff_settings as settings
from tasks.views import _statements
from tasks.views._diff_sides import open_sides
from tasks.views._diff_summary import Version, changes, version
from tasks.views._diff_tables import Database, TableDiff, open_database

__all__ = ["Diff", "Version", "changes", "compare", "compare_table", "query", "show", "version"]
EXAMPLES, EXAMPLES_OF_A_TABLE = 2, 5
"""Of each kind of difference."""
T = TypeVar("T")


@dataclass(frozen=True)
class Diff:
    """All that differs between two sides."""

    old: str
    new: str
    settings: settings.SettingsDiff
    tables: dict[str, TableDiff]
    """Of the tables that both have."""
    only: dict[str, str]
    """Table → the side that alone has it."""
    majorities: outcomes.Majorities | None = None
    verdicts: list[outcomes.Verdicts] = field(default_factory=list)
    swaps: outcomes.Swaps | None = None
    exams: list[outcomes.Exam] = field(default_factory=list)


def compare(root: Path, old: str, new: str, examples: int = EXAMPLES) -> Diff:
    """All that differs between two rounds or bases, each as it is or at a git revision (`r2@v1`).

    Raises:
        UnknownName: for a round that does not exist.
        FlywheelError: when both sides are the same, one has no data, or a revision or its data cannot be found.
        StoreError: when files were changed.
    """
    return _steady(root, old, new, lambda: _compare(root, old, new, examples))


def compare_table(root: Path, old: str, new: str, table: str, examples: int = EXAMPLES_OF_A_TABLE) -> TableDiff:
    """What differs in one table.

    Raises:
        UnknownName: for a table that does not exist.
        StoreError: when one side does not have it.
    """
    _known(table)

    def attempt() -> TableDiff:
        with open_sides(root, old, new) as sides, open_database(*sides) as db:
            db.load(table)
            return db.table(table, examples)

    return _steady(root, old, new, attempt)


def show(
    root: Path,
    old: str,
    new: str,
    table: str | None = None,
    as_json: bool = False,
    html: Path | None = None,
    console: Console | None = None,
) -> None:
    """Prints what differs, in all or in one table; as JSON, or as a page in the file `html`.

    Raises:
        FlywheelError: as `compare`; also when the file cannot be written, belongs to the project, or is another kind of file.
    """
    if table and html:
        raise FlywheelError("--html writes the whole comparison, with every table; leave out --table")
    if html:
        from tasks.views import _diff_html, _page_base

        _page_base.refuse(root, html)
        _page_base.write(root, html, _diff_html.page(compare(root, old, new, EXAMPLES_OF_A_TABLE)))
        print(f"{html}: {old} → {new}")
        return
    difference = compare_table(root, old, new, table) if table else compare(root, old, new)
    if as_json:
        print(to_json(difference, indent=1, inf_nan_mode="strings").decode())
        return
    from tasks.views import _diff_printing as printing

    console = console or printing.console()
    if isinstance(difference, Diff):
        printing.show(difference, console)
    else:
        printing.show_table(old, new, str(table), difference, console)


def query(root: Path, old: str, new: str, sql: str, as_json: bool = False) -> None:
    """Prints the rows of a query over both sides and their differences. Nothing but these tables can be read.

    Raises:
        StoreError: when one side does not have a table that the query names.
        FlywheelError: for a statement that is not a query, and for DuckDB's errors.
    """
    from tasks.views._printing import print_rows

    print_rows(_steady(root, old, new, lambda: _query(root, old, new, sql)), "json" if as_json else "table")


def _compare(root: Path, old: str, new: str, examples: int) -> Diff:
    with open_sides(root, old, new) as sides, open_database(*sides) as db:
        return Diff(
            old,
            new,
            settings.compare(*sides),
            {name: db.table(name, examples) for name in TABLES if db.has(name)},
            {name: side.label for name in TABLES if not db.has(name) for side in sides if side.output(name)},
            outcomes.majorities(db, examples),
            outcomes.verdicts(db, examples),
            outcomes.swaps(db, examples),
            _exams(db, examples),
        )


def _exams(db: Database, examples: int) -> list[outcomes.Exam]:
    if not db.has("evals") or db.is_equal("evals"):
        return []
    before, after = (store.scan(side.root, side.name, "evals")[0] for side in db.sides.values())
    return outcomes.exams(before, after, examples)


def _query(root: Path, old: str, new: str, sql: str) -> pa.Table:
    with open_sides(root, old, new) as sides, open_database(*sides) as db:
        _statements.check(db.con, sql)
        _prepare(db, {word.lower() for word in re.findall(r"\w+", sql)})
        files = [file for side in sides for name in TABLES if side.output(name) for file in side.parts(name)]
        try:
            _statements.confine(db.con, root, files, allow_files=False)
            result = db.con.sql(sql)
            rows = pa.table({}) if result is None else result.to_arrow_table()
            names = rows.column_names
            return rows.rename_columns([n if names.index(n) == i else f"{n}_{i}" for i, n in enumerate(names)])
        except duckdb.CatalogException as error:
            raise _unknown_table(db, error) from None
        except duckdb.Error as error:
            raise FlywheelError(f"sql: {str(error).strip()}") from None


def _prepare(db: Database, words: set[str]) -> None:
    """Makes the views that a query names; all of them where it asks for their names."""
    listing = bool(words & {"show", "tables", "duckdb_views"})
    for name in TABLES:
        if f"diff_{name}" in words or (listing and db.has(name)):
            db.match(name)
        elif words & {f"old_{name}", f"new_{name}"}:
            db.load(name)


def _unknown_table(db: Database, error: duckdb.Error) -> FlywheelError:
    missing = re.search(r"Table with name (\S+) does not exist", str(error))
    if missing is None:
        return FlywheelError(f"sql: {str(error).strip()}")
    known = [f"{kind}_{name}" for kind in ("diff", "old", "new") for name in TABLES if db.has(name)]
    return UnknownName("table", missing[1], known, "sql")


def _steady(root: Path, old: str, new: str, read: Callable[[], T]) -> T:
    """Calls `read` until no stage of either round commits while it runs."""
    return store.steady(root, {text.partition("@")[0] for text in (old, new) if "@" not in text}, read)


def _known(table: str) -> None:
    if table not in TABLES:
        raise UnknownName("table", table, TABLES, "--table")
