"""The request cache: answers of engines, keyed by a hash of everything that determines them.

One SQLite file in WAL mode, shared by all rounds and safe with several processes. A batch of answers is one transaction:
after `kill -9` the next run misses at most the batches in flight. The file may be deleted at any time; a damaged one is
renamed to `….damaged`. It saves work and holds nothing that cannot be computed again.

Workers on several machines share no such file: SQLite's write-ahead log is for the processes of one machine. There an engine that
loads a model keeps a journal for each piece of a stage instead (`journalled`), small objects beside the piece's receipt, which a
retry reads first, on whatever machine it is. Engines that ask a server share one file without a write-ahead log (`over_machines`),
in the project's folder.

It sees every request and every answer, so it is what tells how far a stage is: a bar where somebody looks at a terminal, a
line now and then where the output goes to a log.
"""

import hashlib
import json
import sqlite3
import sys
import time
import uuid
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, TypeVar

from tasks.core.errors import StoreError
from tasks.core.objects import Absent, Place

T = TypeVar("T")

FILE, SHARED = "requests.sqlite", "shared.sqlite"
"""The cache of this machine, and the one that workers on several machines share."""
JOURNAL = Path("journal")
"""Stands for the folder of the cache where answers go into the journal of the piece that is worked at."""
FLUSH = 5.0
"""Seconds of answers that a journal may lose with its machine."""
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
    """Answers by key, as JSON values. Without a folder nothing is stored; with `JOURNAL` in its place they are in the journal of
    the piece that is worked at.
    """

    def __init__(self, folder: Path | None) -> None:
        self._in_journal = folder == JOURNAL
        self._path = None if folder is None or self._in_journal else Path(folder) / (SHARED if _over_machines else FILE)
        self._connection: sqlite3.Connection | None = None
        self._progress = Progress()

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Any]:
        """The cached answers of these keys. An answer with a wrong checksum counts as missing."""
        unique = list(dict.fromkeys(keys))
        found = self._stored(unique) if self._path is not None else {}
        if self._in_journal and _journal is not None:
            found = _journal.get(unique)
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
        if self._in_journal and _journal is not None:
            _journal.put(answers)
        if self._path is None or not answers:
            return
        values = [(k, json.dumps(v).encode()) for k, v in answers.items()]
        rows = [(k, zlib.crc32(value), value) for k, value in values]
        self._attempt(lambda c: _insert(c, rows), None)

    def close(self) -> None:
        """Closes the file; the next call opens it again. Ends the display of progress."""
        self._progress.close()
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
        assert self._path is not None
        self._path.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + BUSY_TIMEOUT
        while self._connection is None:
            connection = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT, isolation_level=None)
            try:
                connection.execute(f"PRAGMA journal_mode = {'DELETE' if _over_machines else 'WAL'}")
                connection.execute("PRAGMA synchronous = NORMAL")  # a kill loses nothing, a power cut the last batch
                connection.execute(TABLE)
                self._connection = connection
            except sqlite3.DatabaseError as error:
                connection.close()
                # while another process makes or closes the file, SQLite says at once that it is busy, and does not wait
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
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


_over_machines = False
_journal: "Journal | None" = None


def over_machines(is_so: bool) -> None:
    """Says of this process whether the caches that it opens are shared with workers on other machines. Such a worker prints no
    progress, for nobody looks at it.
    """
    global _over_machines
    _over_machines = is_so


class Journal:
    """Answers of one piece of a stage, in a folder or bucket: an object every `FLUSH` seconds of answering.

    What is put at once is in one object, so what an engine answers as one batch is found again as a whole or not at all.
    """

    def __init__(self, place: Place, prefix: str) -> None:
        self._place, self._prefix = place, f"{prefix}/"
        self._known: dict[bytes, Any] = {}
        self._fresh: dict[bytes, Any] = {}
        self._flushed = time.monotonic()
        for name in place.names(self._prefix):
            with suppress(Absent):  # a listing may be late
                stored = json.loads(zlib.decompress(place.read(name)))
                self._known |= {bytes.fromhex(k): value for k, value in stored.items()}

    def get(self, keys: Iterable[bytes]) -> dict[bytes, Any]:
        """The answers of these keys that are known."""
        return {k: self._known[k] for k in keys if k in self._known}

    def put(self, answers: Mapping[bytes, Any]) -> None:
        """Keeps answers."""
        self._known |= answers
        self._fresh |= answers
        if time.monotonic() - self._flushed > FLUSH:
            self.flush()

    def flush(self) -> None:
        """Writes what was not written yet."""
        if self._fresh:
            data = zlib.compress(json.dumps({k.hex(): v for k, v in self._fresh.items()}).encode(), 1)
            self._place.put_once(f"{self._prefix}{uuid.uuid4().hex}", data)
        self._fresh, self._flushed = {}, time.monotonic()

    def clear(self) -> None:
        """Deletes it: its piece has a receipt."""
        for name in self._place.names(self._prefix):
            self._place.delete(name)


@contextmanager
def journalled(place: Place, prefix: str) -> Iterator[Journal]:
    """Caches that were opened with `JOURNAL` read and write this journal within; afterwards it is gone, unless an error came."""
    global _journal
    _journal = Journal(place, prefix)
    try:
        yield _journal
        _journal.clear()
    except BaseException:
        _journal.flush()
        raise
    finally:
        _journal = None


class Progress:
    """How many of the requests to a model are answered, on stderr: a bar on a terminal, else a line every `LINE_EVERY` seconds
    of waiting. Requests that fail count as open, for they are answered by no answer. Total and count go on from one call of
    the engine to the next, so the total is what has been asked for so far.
    """

    def __init__(self, what: str = "requests answered") -> None:
        self.what = what
        self.total = self.done = 0
        self._began = self._told = time.monotonic()
        self._lines = 0
        self._bar: Any = None
        self._is_quiet = parent_process() is not None or _over_machines  # a worker's driver tells how far it is

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

    def close(self) -> None:
        """Takes the bar away; in a log, the last count follows earlier ones."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        elif self._lines:
            self._print()
        self._lines = 0

    def _show(self) -> None:
        is_terminal = sys.stderr.isatty()
        if self._is_quiet:
            return
        if is_terminal and sys.stderr is not sys.__stderr__:
            return  # whoever took the terminal draws on it
        if self._bar is None and is_terminal and self.total:
            from tqdm import tqdm

            self._bar = tqdm(
                total=self.total, unit=f" {self.what.split()[0]}", delay=BAR_AFTER, leave=False, dynamic_ncols=True
            )
        if self._bar is not None:
            self._bar.total = self.total
            self._bar.update(self.done - self._bar.n)
        elif time.monotonic() - self._told >= LINE_EVERY:
            self._print()

    def _print(self) -> None:
        self._told = time.monotonic()
        self._lines += 1
        seconds = self._told - self._began
        print(f"{self.done:,} of {self.total:,} {self.what}, {seconds:.0f} s", file=sys.stderr, flush=True)


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
