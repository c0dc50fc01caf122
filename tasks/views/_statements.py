"""Restricts `flywheel sql` to queries that read tables and files of the project and write nothing.

DuckDB reports the type of a statement, with two gaps: everything with a PIVOT has the type MULTI, and EXPLAIN ANALYZE runs
the statement that it explains. So the first keyword of the query itself is checked too.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import duckdb
from duckdb import StatementType

from tasks.core.errors import FlywheelError
from tasks.core.pointers import StoredPath

KINDS = {StatementType.SELECT, StatementType.EXPLAIN, StatementType.MULTI}
QUERIES = {
    "describe", "from", "pivot", "pivot_longer", "pivot_wider", "select", "show", "summarize", "table", "unpivot",
    "values", "with",
}  # fmt: skip
PREFIXES = {
    "(",
    ")",
    ",",
    "explain",
    "analyze",
    "verbose",
    "format",
    "json",
    "text",
    "html",
    "graphviz",
    "yaml",
    "mermaid",
}
"""Words that may precede the first keyword, of EXPLAIN and in parentheses."""


def check(con: duckdb.DuckDBPyConnection, sql: str) -> list[duckdb.Statement]:
    """The statements of a text.

    Raises:
        FlywheelError: at the first one that is not a query.
    """
    try:
        statements = con.extract_statements(sql)
    except duckdb.Error as error:
        raise FlywheelError(f"sql: {str(error).strip()}") from None
    for statement in statements:
        first = next((w for w in _words(statement.query) if w not in PREFIXES), "")
        if not _is_query(statement, first):
            raise FlywheelError(
                f"sql: {first.upper() or 'this'} is not a query; `flywheel sql` only reads (SELECT, FROM, WITH, "
                "SHOW, DESCRIBE, SUMMARIZE, PIVOT, EXPLAIN). --out FILE writes rows, --write-views FILE makes a database"
            )
    return statements


def _is_query(statement: duckdb.Statement, first: str) -> bool:
    try:
        return first in QUERIES and statement.type in KINDS
    except ValueError:  # a type of statement that DuckDB's Python package has no name for, such as UPDATE EXTENSIONS
        return False


def _words(sql: str) -> Iterator[str]:
    """Tokens in lower case, without comments."""
    text = sql.encode()
    tokens = duckdb.tokenize(sql)
    ends = [*(start for start, _ in tokens[1:]), len(text)]
    for (start, kind), end in zip(tokens, ends, strict=True):
        if kind != duckdb.token_type.comment:
            yield text[start:end].split()[0].decode().lower()


def confine(con: duckdb.DuckDBPyConnection, root: Path, files: Iterable[StoredPath], allow_files: bool) -> None:
    """Locks a connection's settings. Without `allow_files` it can only read `files`, and what `readable` names."""
    if not allow_files:
        folders, own = readable(root)
        beside = [f for f in files if not any(f.is_relative_to(folder) for folder in folders)]
        con.execute(f"set allowed_directories = {_sql_list(folders)}")
        con.execute(f"set allowed_paths = {_sql_list([*own, *beside])}")
        con.execute("set enable_external_access = false")
    con.execute("set lock_configuration = true")


def readable(root: Path) -> tuple[list[Path], list[Path]]:
    """The folders and files of a project that a query may read: those in `root`, without hidden ones, in which git, DVC and
    people keep settings and keys, and without links.
    """
    with os.scandir(root.resolve()) as entries:
        seen = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    folders = [Path(e.path) for e in seen if e.is_dir(follow_symlinks=False)]
    return folders, [Path(e.path) for e in seen if e.is_file(follow_symlinks=False)]


def _sql_list(paths: Iterable[StoredPath]) -> str:
    return f"[{', '.join(quoted(str(path)) for path in paths)}]::varchar[]"


def quoted(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"
