"""The request cache: answers of engines, keyed by a hash of everything that determines them.

One SQLite file in WAL mode, shared by all rounds and safe with several processes. A batch of answers is one transaction:
after `kill -9` the next run misses at most the batches in flight. The file may be deleted at any time; a damaged one is
renamed to `….damaged`. It saves work and holds nothing that cannot be computed again.

It sees every request and every answer, so it is what tells how far a stage is: a bar where somebody looks at a terminal, a
line now and then where the output goes to a log.
"""

import hashlib
import json
import sqlite3
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
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
LINE_EVERY = 10.0
"""Seconds between two lines on progress in a log."""
BAR_AFTER = 2.0
"""Seconds after which a bar appears: what is over by then needs none."""


def key(*parts: Any) -> bytes:
    """sha256 of everything that determines an answer. `parts` are JSON values (tuples count as lists)."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode("utf-8", "surrogatepass")).digest()


class RequestCache:
    """Answers by key, as JSON values. Without a folder nothing is stored."""

    def __init__(self, folder: Path | None) -> None:
        self._path = folder and Path(folder) / FILE
        self._connection: sqlite3.Connection | None = None
        self._progress = Progress()

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Any]:
        """The cached answers of these keys. An answer with a wrong checksum counts as missing."""
        unique = list(dict.fromkeys(keys))
        found = self._stored(unique) if self._path is not None else {}
        self._progress.ask(len(unique), len(found))
        return found

    def _stored(self, unique: list[bytes]) -> dict[bytes, Any]:
        chunks = [unique[i : i + KEYS_PER_QUERY] for i in range(0, len(unique), KEYS_PER_QUERY)]
        rows = self._attempt(lambda c: [row for chunk in chunks for row in _select(c, chunk)], [])
        return {k: json.loads(value) for k, crc, value in rows if zlib.crc32(value) == crc}

    def put(self, answers: Mapping[bytes, Any]) -> None:
        """Stores a batch in one transaction: all of it or nothing.

        Raises:
            StoreError: when the disk is full.
        """
        self._progress.answered(len(answers))
        if self._path is None or not answers:
            return
        values = [(k, json.dumps(v).encode()) for k, v in answers.items()]
        rows = [(k, zlib.crc32(value), value) for k, value in values]
        self._attempt(lambda c: _insert(c, rows), None)

    def close(self) -> None:
        """Closes the file; the next call opens it again. Ends the display of progress."""
        self._progress.end()
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
        aside = set_aside(self._path)
        warnings.warn(f"{self._path}: {error}; set aside as {aside.name}, its answers are computed again", stacklevel=4)


def set_aside(path: Path) -> Path:
    """Renames a damaged SQLite file, with its write-ahead log, to `….damaged`, in the place of an earlier one."""
    aside = path.with_name(f"{path.name}.damaged")
    for suffix in ("", "-wal", "-shm"):
        aside.with_name(aside.name + suffix).unlink(missing_ok=True)
        with suppress(FileNotFoundError):  # it has no log, or another process was first
            path.with_name(path.name + suffix).replace(aside.with_name(aside.name + suffix))
    return aside


class Progress:
    """How many of the requests to a model are answered, on stderr: a bar on a terminal, else a line every `LINE_EVERY` seconds
    of waiting. Requests that fail count as open, for they are answered by no answer. Total and count go on from one call of
    the engine to the next, so the total is what has been asked for so far.
    """

    def __init__(self) -> None:
        self.total = self.done = 0
        self._began = self._told = time.monotonic()
        self._lines = 0
        self._bar: Any = None

    def ask(self, count: int, known: int) -> None:
        """So many requests are asked for, of which so many are answered."""
        if self.done >= self.total:  # nobody waited since the last answer
            self._told = time.monotonic()
        self.total += count
        self.done += known
        self._show()

    def answered(self, count: int) -> None:
        """So many answers have arrived."""
        self.done += count
        self._show()

    def end(self) -> None:
        """Takes the bar away; in a log, the last count follows earlier ones."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        elif self._lines:
            self._print()
        self._lines = 0

    def _show(self) -> None:
        is_terminal = sys.stderr.isatty()
        if is_terminal and sys.stderr is not sys.__stderr__:
            return  # whoever took the terminal draws on it
        if self._bar is None and is_terminal and self.total:
            from tqdm import tqdm

            self._bar = tqdm(total=self.total, unit=" requests", delay=BAR_AFTER, leave=False, dynamic_ncols=True)
        if self._bar is not None:
            self._bar.total = self.total
            self._bar.update(self.done - self._bar.n)
        elif time.monotonic() - self._told >= LINE_EVERY:
            self._print()

    def _print(self) -> None:
        self._told = time.monotonic()
        self._lines += 1
        seconds = self._told - self._began
        print(f"{self.done:,} of {self.total:,} requests answered, {seconds:.0f} s", file=sys.stderr, flush=True)


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
