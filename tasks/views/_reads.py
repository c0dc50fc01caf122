"""Which rounds of which tables a query reads, so that the files of no other round are opened or checked.

The query is planned over empty stand-ins, one for each round of each table that it names, and those that are left in the plan
are read: DuckDB leaves out a round where a constant condition rules it out (`where round = 'r1'`). Only optimisations that
hold for any rows are on, none that look at statistics. A statement that is more than one SELECT, such as a PIVOT, reads every
round of the tables that it names.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
from duckdb import StatementType

from tasks.core.tables import TABLES
from tasks.views import _statements
from tasks.views._summaries import DOCS

ON = (
    "expression_rewriter",
    "filter_pullup",
    "filter_pushdown",
    "cte_inlining",
    "in_clause",
    "deliminator",
    "empty_result_pullup",
)
"""Optimisations that rewrite a query whatever the rows are."""
DYNAMIC = {"query", "query_table"}
"""Functions that are given the name of a table as a text, which may be put together."""
STAND_INS = "_stand_ins"


@dataclass(frozen=True)
class Reads:
    """What is read."""

    tables: dict[str, set[str]]
    """Table → rounds."""
    summaries: set[str]
    """Tables that are made from all manifests, and people's labels."""
    only: set[str] | None = None
    """The rounds of which summaries are made, where not of all."""

    @property
    def rounds(self) -> set[str]:
        """All rounds of which some table is read."""
        return {name for names in self.tables.values() for name in names}


def everything(rounds: Iterable[str]) -> Reads:
    """All tables of these rounds."""
    names = set(rounds)
    return Reads(dict.fromkeys(TABLES, names), DOCS.keys() - TABLES.keys())


def named(sql: str) -> set[str]:
    """The tables that a text names."""
    words = {word.lower() for word in re.findall(r"\w+", sql)}
    return set(DOCS) if DYNAMIC & words else DOCS.keys() & words


def reads(
    root: Path,
    sql: str,
    statements: Sequence[duckdb.Statement],
    rounds: Sequence[str],
    columns: dict[str, str],
    allow_files: bool,
) -> Reads:
    """What statements read of these rounds; `columns` declares those of each table."""
    names = named(sql)
    summaries, tables = names - TABLES.keys(), {table: set(rounds) for table in sorted(names & TABLES.keys())}
    if not tables or any(statement.type != StatementType.SELECT for statement in statements):
        return Reads(tables, summaries)
    places = [(table, name) for table in tables for name in rounds]
    try:
        con = _planner(root, places, tables, columns, allow_files)
        scans = {scan for s in statements for scan in _scans(con, s.query)}
    except duckdb.Error:  # the query itself will fail, or cannot be explained
        return Reads(tables, summaries)
    found = [place for n, place in enumerate(places) if f"{STAND_INS}.t{n}" in scans]
    return Reads(
        {t: {name for other, name in found if other == t} for t in tables},
        {s for s in summaries if f"main.{s}" in scans},
    )


def _planner(
    root: Path, places: list[tuple[str, str]], tables: Iterable[str], columns: dict[str, str], allow_files: bool
) -> duckdb.DuckDBPyConnection:
    con = duckdb.connect(config={"python_enable_replacements": False})
    off = [name for (name,) in con.sql("from duckdb_optimizers()").fetchall() if name not in ON]
    con.execute(f"set disabled_optimizers = '{','.join(off)}'; create schema {STAND_INS}")
    con.execute(";".join(f"create table {STAND_INS}.t{n} ({columns[table]})" for n, (table, _) in enumerate(places)))
    for table in DOCS:
        own = [(n, name) for n, (other, name) in enumerate(places) if other == table]
        branches = [f"select {_statements.quoted(name)} as round, * from {STAND_INS}.t{n}" for n, name in own]
        if table in tables and branches:
            con.execute(f"create view {table} as {' union all '.join(branches)}")
        else:
            first = "round varchar, " if table in TABLES else ""
            con.execute(f"create table {table} ({first}{columns[table]})")
    _statements.confine(con, root, [], allow_files)
    return con


def _scans(con: duckdb.DuckDBPyConnection, sql: str) -> Iterator[str]:
    """Schema and name of every table in the plan of a query."""
    [(_, plan)] = con.execute(f"explain (format json) {sql}").fetchall()
    yield from (".".join(scan.split(".")[-2:]) for scan in _tables(json.loads(plan)))


def _tables(nodes: list[dict[str, Any]]) -> Iterator[str]:
    for node in nodes:
        yield str(node.get("extra_info", {}).get("Table", ""))
        yield from _tables(node.get("children", []))
