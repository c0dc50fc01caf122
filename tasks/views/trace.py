"""The lineage of a row, by the ids of parents that rows carry."""

import json
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import duckdb

from tasks.core.errors import FlywheelError, UnknownName
from tasks.core.tables import TABLES
from tasks.views.catalog import connect, consistently

Step = tuple[str, dict[str, Any]]
"""(table name, row)."""
Ancestors = dict[str, list[str | None]]
"""Round → its parent and anchor."""


def show(root: Path, id: str, round: str | None = None) -> None:
    """Prints the lineage of a row, a line per row: table, round, values as JSON."""
    for table, row in consistently(root, lambda: trace(connect(root), id, round)):
        values = {k: v for k, v in row.items() if v is not None and k != "round"}
        print(table, row["round"], json.dumps(values, ensure_ascii=False, default=str))


def trace(con: duckdb.DuckDBPyConnection, id: str, round: str | None = None) -> list[Step]:
    """The lineage of a row, nearest first.

    From a training row, pair or preference to its responses, their prompt and the example prompts of its author, with
    every verdict on a response, the filter's decision, and the round whose model wrote it. Equal texts have equal ids in
    every round, so an id is looked up in its row's own round first, then in the ancestors.

    Raises:
        FlywheelError: when no table has a row with that id, or when several rounds have one and `round` is None.
    """
    ancestors = {name: named for name, *named in con.sql("select round, parent, anchor from rounds").fetchall()}
    steps: list[Step] = []
    queue = deque([(_lineage([_start(con, id, round, list(ancestors))], ancestors), id)])
    seen = set(queue)
    while queue:
        for table, row in _mentions(con, *queue.popleft()):
            steps.append((table, row))
            fresh = [search for search in _parents(row, ancestors) if search not in seen]
            seen.update(fresh)
            queue += fresh
    return steps + [("rounds", r) for r in _authors(con, {row.get("model") for _, row in steps})]


def _start(con: duckdb.DuckDBPyConnection, id: str, round: str | None, known: list[str]) -> str:
    matches = [r for r in known if any(_mentions(con, (r,), id))]
    if round is not None and round not in known:
        raise UnknownName("round or base", round, known)
    if not matches or (round is not None and round not in matches):
        where = f"; {', '.join(matches)} has one" if matches else ""
        raise FlywheelError(
            f"no table{f' of {round}' if round else ''} has a row with the id {id!r}{where}; "
            "an id is 16 hexadecimal digits from an `id` column"
        )
    if round is None and len(matches) > 1:
        raise FlywheelError(f"{', '.join(matches)} have a row with the id {id!r}; name one of them with --round")
    return round or matches[0]


def _lineage(names: Iterable[str | None], ancestors: Ancestors) -> tuple[str, ...]:
    """These rounds and their ancestors: nearest first, parents before anchors."""
    lineage: dict[str, None] = {}
    queue = deque(names)
    while queue:
        if (name := queue.popleft()) and name not in lineage:
            lineage[name] = None
            queue += ancestors.get(name, [])
    return tuple(lineage)


def _mentions(con: duckdb.DuckDBPyConnection, rounds: tuple[str, ...], id: str) -> Iterator[Step]:
    """Rows with this id in the first of these rounds that has one; for a response also its judgments."""
    steps: list[Step] = []
    for table in TABLES.values():
        keys = ["id"] if "id" in table.schema.names else []
        keys += ["response_id"] if table.name == "judgments" else []
        if keys:
            where = f"list_contains($rounds, round) and ({' or '.join(f'{k} = $id' for k in keys)})"
            rows = con.sql(f"from {table.name} where {where} order by id", params={"id": id, "rounds": list(rounds)})
            steps += [(table.name, row) for row in rows.to_arrow_table().to_pylist()]
    owners = {row["round"] for _, row in steps}
    nearest = next((r for r in rounds if r in owners), None)
    yield from ((table, row) for table, row in steps if row["round"] == nearest)


def _parents(row: dict[str, Any], ancestors: Ancestors) -> list[tuple[tuple[str, ...], str]]:
    """Parents of a row as (rounds to search, id). A replayed row is an ancestor's row of the same id."""
    if row.get("source") == "replay":
        return [(_lineage(ancestors[row["round"]], ancestors), row["id"])]
    ids = [v for k, v in row.items() if k.endswith("_id") and v]
    rounds = _lineage([row["round"]], ancestors)
    return [(rounds, id) for id in ids + (row.get("parents") or [])]


def _authors(con: duckdb.DuckDBPyConnection, models: set[str | None]) -> list[dict[str, Any]]:
    sql = "select * from rounds where list_contains($models, model) order by round"
    rows = con.sql(sql, params={"models": sorted(m for m in models if m)})
    return rows.to_arrow_table().to_pylist()
