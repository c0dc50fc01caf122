"""What is stored now: the rounds, the parts of their tables, and queries over them, while stages may be writing.

A part that is missing or was cut short is left out and named; the others are shown. The connection reads files of the project
by a list of parts, and no text of a visitor becomes SQL.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import duckdb

from tasks.core import labels, pointers, store
from tasks.core.errors import FlywheelError, StoreError, UnknownName
from tasks.core.labels import Label
from tasks.core.pointers import StoredPath
from tasks.core.store import Manifest
from tasks.core.tables import TABLES
from tasks.project import params
from tasks.views import _statements
from tasks.views.catalog import connect

T = TypeVar("T")
Row = dict[str, Any]
SETTINGS = {"python_enable_replacements": False, "memory_limit": "4GB"}


@dataclass(frozen=True)
class Stored:
    """A table of a round, as it is on disk."""

    round: str
    table: str
    parts: tuple[StoredPath, ...]
    """The whole ones."""
    counts: tuple[int, ...]
    """Rows of each of them."""
    version: str
    """Digest of the table: equal rows, equal version."""
    damage: tuple[str, ...] = ()
    """What is wrong with the other parts."""

    @property
    def rows(self) -> int:
        """All rows of the whole parts."""
        return sum(self.counts)

    def sql(self, parts: Sequence[StoredPath] | None = None) -> str:
        """The table in a FROM clause, or some parts of it."""
        chosen = self.parts if parts is None else parts
        files = ", ".join(_statements.quoted(str(path)) for path in chosen)
        return f"read_parquet([{files}], hive_partitioning = false)"


class Live:
    """A project's rounds and tables, as they are at the moment of a call."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.con = duckdb.connect(config=SETTINGS)
        self.con.execute("set parquet_metadata_cache = true")
        self._params: tuple[tuple[int, int], dict[str, Any]] | None = None
        self._catalog: tuple[object, duckdb.DuckDBPyConnection] | None = None
        self._lock = Lock()

    # Rounds

    def blocks(self) -> dict[str, dict[str, Any]]:
        """The bases and rounds of params.yaml, and those that are only on disk, with what params.yaml says of each.

        Raises:
            ParamsError: when the folder is no project, or its params.yaml cannot be read.
        """
        content = self._content()
        groups = [content.get(kind) or {} for kind in ("bases", "rounds")]
        known = {name: block or {} for group in groups if isinstance(group, dict) for name, block in group.items()}
        return known | {name: {} for name in self._on_disk() if name not in known}

    def check_round(self, name: str) -> None:
        """Refuses a round that is neither in params.yaml nor on disk.

        Raises:
            UnknownName: with the nearest ones.
        """
        if name not in (blocks := self.blocks()):
            raise UnknownName("round or base", name, blocks)

    def manifests(self, name: str) -> dict[str, Manifest]:
        """The manifests of a round by stage."""
        return store.manifests(self.root, name)

    def metrics(self, name: str) -> dict[str, float]:
        """All metrics of a round."""
        return {n: value for manifest in self.manifests(name).values() for n, value in manifest.metrics.items()}

    def steady(self, names: Iterable[str], read: Callable[[], T]) -> T:
        """What `read` returns when no stage of these rounds commits while it runs."""
        return store.steady(self.root, list(names), read)

    def _content(self) -> dict[str, Any]:
        file = self.root / params.FILE
        stamp = _stamp(file) if file.is_file() else (0, 0)
        if self._params is None or self._params[0] != stamp:
            self._params = (stamp, params.plain(params.read(self.root)))
        return self._params[1]

    def _on_disk(self) -> list[str]:
        return sorted(p.name.removeprefix("round=") for p in (self.root / "data").glob("round=*"))

    # Tables

    def table(self, name: str, table: str) -> Stored | None:
        """A table of a round; None where no stage of it has written the table."""
        for manifest in self.manifests(name).values():
            if output := manifest.outputs.get(table):
                place, whole, damage = store.round_folder(self.root, name) / table, [], []
                for path, part in zip(store.paths(place, output), output.parts, strict=True):
                    if path.is_file() and path.stat().st_size == part.bytes:
                        whole.append((path, part.rows or 0))
                    else:
                        damage.append(str(store.damage(path, part, None)))
                pointers.attach(self.con, (path for path, _ in whole))
                paths, counts = zip(*whole, strict=True) if whole else ((), ())
                return Stored(name, table, paths, counts, output.digest, tuple(damage))
        return None

    def tables(self, name: str) -> dict[str, Stored]:
        """The tables that stages of a round have written, in the order in which a row goes through them."""
        return {table: stored for table in TABLES if (stored := self.table(name, table))}

    def query(self, sql: str, **given: Any) -> list[Row]:
        """The rows of a query.

        Raises:
            StoreError: when a file cannot be read.
        """
        try:
            rows = self.con.cursor().sql(sql, params=given)
            return rows.to_arrow_table().to_pylist(maps_as_pydicts="strict")
        except duckdb.Error as error:
            raise StoreError(_unreadable(error)) from None

    def select(self, name: str, table: str, what: str, where: str, **given: Any) -> list[Row]:
        """Rows of a table of a round; none where it has not been written, or no part of it is whole."""
        stored = self.table(name, table)
        if stored is None or not stored.parts:
            return []
        return self.query(f"select {what} from {stored.sql()} where {where}", **given)

    def damage(self, name: str) -> list[str]:
        """What is wrong with the parts of a round's tables."""
        return [text for stored in self.tables(name).values() for text in stored.damage]

    def catalog(self) -> duckdb.DuckDBPyConnection:
        """A connection with the SQL views over all rounds, made anew when a round or params.yaml changed.

        Raises:
            StoreError: when a file of some round is missing or damaged.
        """
        names = [name for name in self.blocks() if store.round_folder(self.root, name).is_dir()]
        version = (self._params and self._params[0], [(n, self.manifests(n), self.tables(n)) for n in names])
        with self._lock:
            if self._catalog is None or self._catalog[0] != version:
                con = connect(self.root)
                con.execute("set parquet_metadata_cache = true")
                self._catalog = (version, con)
            return self._catalog[1].cursor()

    # Labels

    def labels(self) -> tuple[list[Label], list[str]]:
        """All labels of all people; none, and why, where a file of them cannot be read."""
        try:
            return labels.read(self.root / labels.FOLDER), []
        except FlywheelError as error:
            return [], [f"labels cannot be read: {error}"]


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns


def _unreadable(error: duckdb.Error) -> str:
    text = str(error).strip()
    return f"a stored file cannot be read: {text}; `flywheel verify` names every damaged file"
