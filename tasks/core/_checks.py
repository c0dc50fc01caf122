"""A table's checks and metrics: SQL over the parts that were just written."""

from collections.abc import Sequence
from pathlib import Path

import duckdb

from tasks.core import pointers
from tasks.core.errors import CheckFailed
from tasks.core.pointers import StoredPath
from tasks.core.tables import Table


def check(table: Table, con: duckdb.DuckDBPyConnection, address: str) -> None:
    """Runs a table's checks over the view of its parts. Null fails a check, unlike in SQL's CHECK constraints.

    Raises:
        CheckFailed: naming the check and up to three rows that break it.
    """
    key = ", ".join(f'"{k}"' for k in table.key)
    checks = {f"{table.key[0]} is not null": f'"{table.key[0]}" is not null'} | table.checks
    counts = [f"count(*) filter (where ({predicate}) is not true)" for predicate in checks.values()]
    duplicates = f"count(*) - count(distinct hash({key}))"  # hashes are cheaper to compare than keys
    broken = con.execute(f"select {', '.join([duplicates, *counts])} from t").fetchall()[0]  # one scan for all checks
    rows = [f"select {key} from t where ({predicate}) is not true limit 3" for predicate in checks.values()]
    repeated = f"select {key} from t group by {key} having count(*) > 1 limit 3"
    named = zip(broken, [f"unique {key}", *checks], [repeated, *rows], strict=True)
    queries = {name: query for count, name, query in named if count}
    for name, query in queries.items():
        if rows := con.execute(query).fetchall():
            keys = ", ".join("/".join(map(str, r)) for r in rows)
            raise CheckFailed(
                f"{address}, table {table.name}: rows {keys} break the check '{name}'; the old version stays"
            )


def metrics(table: Table, con: duckdb.DuckDBPyConnection) -> dict[str, float]:
    """A table's metrics, by name, over the view of its parts."""
    return dict(sorted(con.execute(table.metrics).fetchall())) if table.metrics else {}


def view(place: Path, files: Sequence[StoredPath]) -> duckdb.DuckDBPyConnection:
    """A database with the view `t` of the files of the table in `place`."""
    spill = str(place.parents[1] / "spill")  # within the stage's staging folder
    con = duckdb.connect(config={"memory_limit": "1GB", "preserve_insertion_order": False, "temp_directory": spill})
    con.execute("set enable_progress_bar = false")  # it would mix with the stage's output
    pointers.attach(con, files)
    con.from_parquet([str(file) for file in files]).create_view("t")  # a list is not globbed
    return con
