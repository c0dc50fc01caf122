"""The request cache: answers that were already paid for, found again by what determines them.

One SQLite file in WAL mode, shared by all rounds and safe with several processes. A batch of answers is one
transaction: after `kill -9` the next run misses at most the batches in flight. It may be deleted at any time, and a
damaged one is set aside: it saves work and holds nothing that cannot be made again.

Code shared by several stages: an edit of this file does not make stages stale.
"""

import hashlib
import json
import sqlite3
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tasks.errors import StoreError

T = TypeVar("T")

FILE = "requests.sqlite"
TABLE = "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, crc INTEGER, value BLOB) WITHOUT ROWID"
WAIT = 60.0
"""Seconds to wait while another process writes."""
BULK = 500
"""Keys a look-up; SQLite allows 32,766 variables, and more brings nothing."""


def key(*parts: Any) -> bytes:
    """sha256 of everything that determines an answer; `parts` are JSON values (tuples count as lists)."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode("utf-8", "surrogatepass")).digest()


class RequestCache:
    """Answers by key, as JSON values. Without a folder it forgets everything at once."""

    def __init__(self, folder: Path | None) -> None:
        self._path = folder and Path(folder) / FILE
        self._connection: sqlite3.Connection | None = None

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Any]:
        """The answers that are known; one whose checksum is wrong counts as unknown."""
        if self._path is None:
            return {}
        unique = list(dict.fromkeys(keys))
        bulks = [unique[i : i + BULK] for i in range(0, len(unique), BULK)]
        rows = self._tried(lambda c: [row for bulk in bulks for row in _select(c, bulk)], [])
        return {k: json.loads(value) for k, crc, value in rows if zlib.crc32(value) == crc}

    def put(self, answers: Mapping[bytes, Any]) -> None:
        """Keeps a batch: all of it or, when the process dies, nothing. Raises StoreError when the disk is full."""
        if self._path is None or not answers:
            return
        values = [(k, json.dumps(v).encode()) for k, v in answers.items()]
        rows = [(k, zlib.crc32(value), value) for k, value in values]
        self._tried(lambda c: _insert(c, rows), None)

    def close(self) -> None:
        """Lets go of the file; the next call opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _tried(self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        """Does `work`; a damaged file is set aside, and the answer is `otherwise`."""
        try:
            return work(self._open())
        except sqlite3.OperationalError as error:
            self.close()
            raise StoreError(f"{self._path}: {error}; free some disk space, or end what holds the file") from error
        except sqlite3.DatabaseError as error:
            self.close()
            self._set_aside(error)
            return otherwise

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            assert self._path is not None
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self._path, timeout=WAIT, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")  # a kill loses nothing, a power cut the last batch
            self._connection.execute(TABLE)
        return self._connection

    def _set_aside(self, error: Exception) -> None:
        assert self._path is not None
        aside = self._path.with_name(f"{self._path.name}.damaged")
        warnings.warn(f"{self._path}: {error}; set aside as {aside.name}, its answers are made again", stacklevel=4)
        for suffix in ("", "-wal", "-shm"):
            path = self._path.with_name(self._path.name + suffix)
            if path.exists():  # another process may have been first
                path.replace(aside.with_name(aside.name + suffix))


def _select(connection: sqlite3.Connection, keys: list[bytes]) -> list[tuple[bytes, int, bytes]]:
    marks = ",".join("?" * len(keys))
    return connection.execute(f"SELECT key, crc, value FROM answers WHERE key IN ({marks})", keys).fetchall()


def _insert(connection: sqlite3.Connection, rows: list[tuple[bytes, int, bytes]]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", rows)
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK") if connection.in_transaction else None
        raise
