"""The request cache: answers of engines, keyed by a hash of everything that determines them.

One SQLite file in WAL mode, shared by all rounds and safe with several processes. A batch of answers is one transaction:
after `kill -9` the next run misses at most the batches in flight. The file may be deleted at any time; a damaged one is
renamed to `….damaged`. It saves work and holds nothing that cannot be computed again.
"""

import hashlib
import json
import sqlite3
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tasks.core.errors import StoreError

T = TypeVar("T")

FILE = "requests.sqlite"
TABLE = "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, crc INTEGER, value BLOB) WITHOUT ROWID"
BUSY_TIMEOUT = 60.0
"""Seconds to wait while another process writes."""
KEYS_PER_QUERY = 500
"""SQLite allows 32,766 variables; more than this is no faster."""


def key(*parts: Any) -> bytes:
    """sha256 of everything that determines an answer. `parts` are JSON values (tuples count as lists)."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode("utf-8", "surrogatepass")).digest()


class RequestCache:
    """Answers by key, as JSON values. Without a folder nothing is stored."""

    def __init__(self, folder: Path | None) -> None:
        self._path = folder and Path(folder) / FILE
        self._connection: sqlite3.Connection | None = None

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Any]:
        """The cached answers of these keys. An answer with a wrong checksum counts as missing."""
        if self._path is None:
            return {}
        unique = list(dict.fromkeys(keys))
        chunks = [unique[i : i + KEYS_PER_QUERY] for i in range(0, len(unique), KEYS_PER_QUERY)]
        rows = self._attempt(lambda c: [row for chunk in chunks for row in _select(c, chunk)], [])
        return {k: json.loads(value) for k, crc, value in rows if zlib.crc32(value) == crc}

    def put(self, answers: Mapping[bytes, Any]) -> None:
        """Stores a batch in one transaction: all of it or nothing.

        Raises:
            StoreError: when the disk is full.
        """
        if self._path is None or not answers:
            return
        values = [(k, json.dumps(v).encode()) for k, v in answers.items()]
        rows = [(k, zlib.crc32(value), value) for k, value in values]
        self._attempt(lambda c: _insert(c, rows), None)

    def close(self) -> None:
        """Closes the file; the next call opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _attempt(self, query: Callable[[sqlite3.Connection], T], default: T) -> T:
        """Runs `query`. A damaged file is renamed, and `default` returned."""
        try:
            return query(self._open())
        except sqlite3.OperationalError as error:
            self.close()
            raise StoreError(
                f"{self._path}: {error}; free some disk space, or end the process that locks the file"
            ) from error
        except sqlite3.DatabaseError as error:
            self.close()
            self._set_aside(error)
            return default

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            assert self._path is not None
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")  # a kill loses nothing, a power cut the last batch
            self._connection.execute(TABLE)
        return self._connection

    def _set_aside(self, error: Exception) -> None:
        assert self._path is not None
        aside = self._path.with_name(f"{self._path.name}.damaged")
        warnings.warn(f"{self._path}: {error}; set aside as {aside.name}, its answers are computed again", stacklevel=4)
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
