"""Digests that were checked once: which sha256 a stored file had when it was last read, by its size, times and inode.

    .flywheel/digests.sqlite      a row for each file; several processes may use it, and it may be deleted at any time

Parts in a bucket have their URL for a path, and their tag for an inode. Queries, traces and reports read a part's bytes for its digest once, and after that only when the file changed. What is
remembered is what the bytes were, not that they were right, so a manifest that changes is compared anew. A disk that changes
bytes by itself leaves times as they are: stages and `flywheel verify` read every byte, whatever is remembered.
"""

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

from tasks.core import store
from tasks.core.errors import StoreError
from tasks.core.manifest import Output, Stamp, is_settled, stamp
from tasks.core.pointers import ObjectPath, StoredPath

FILE = Path(".flywheel/digests.sqlite")
TABLE = """create table if not exists digests
           (path text primary key, size integer, modified integer, changed integer, inode integer, sha256 text) without rowid"""
BUSY_TIMEOUT = 0.5
"""Seconds to wait while another process writes; after that the file is read and not remembered."""
PATHS_PER_QUERY = 500
REQUESTS = 16
"""Objects whose size is asked for at the same time."""
Outputs = Iterable[tuple[Path, Output]]
"""The folder of each output, and its entry in a manifest."""


def verify(root: Path, outputs: Outputs) -> None:
    """Checks every part of these outputs against its digest; reads only files that have changed since they were last read.

    Raises:
        StoreError: naming the first file that is missing, cut short or changed.
    """
    for _, damage in damages(root, outputs):
        raise StoreError(damage)


def damages(root: Path, outputs: Outputs, read: bool = True) -> Iterator[tuple[StoredPath, str]]:
    """What is wrong with the parts of these outputs: each such file, and a text about it. Without `read` those are taken for
    right whose bytes were never read.
    """
    parts = [item for place, output in outputs for item in zip(store.paths(place, output), output.parts, strict=True)]
    with ThreadPoolExecutor(REQUESTS) as threads:  # a bucket is asked for each
        list(threads.map(ObjectPath.is_file, {path for path, _ in parts if isinstance(path, ObjectPath)}))
    whole = {path: stat for path, part in parts if (stat := _stamp(path)) and stat[0] == part.bytes}
    known = _digests(root, whole, read)
    assumed = {} if read else {path: part.sha256 for path, part in parts}
    yield from (
        (path, text) for path, part in parts if (text := store.damage(path, part, known.get(path, assumed.get(path))))
    )


def _stamp(path: StoredPath) -> Stamp | None:
    try:
        return stamp(path)
    except FileNotFoundError:
        return None


def _digests(root: Path, files: Mapping[StoredPath, Stamp], read: bool) -> dict[StoredPath, str]:
    """The sha256 of each file, as far as it can be read; without `read`, of those that were read before."""
    names = {path: os.path.relpath(path, root) if isinstance(path, Path) else str(path) for path in files}
    memory = _recall(root / FILE, list(names.values()))
    known = {
        path: memory[names[path]][1] for path, seen in files.items() if memory.get(names[path], ((), ""))[0] == seen
    }
    unknown = [path for path in files if path not in known] if read else []
    settled = [
        p for p in unknown if isinstance(p, ObjectPath) or is_settled(files[p])
    ]  # before they are read, which takes time
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        digests = dict(zip(unknown, threads.map(store.sha256, unknown), strict=True))
    if rows := [(names[path], *files[path], digests[path]) for path in settled]:
        _remember(root / FILE, rows)
    return known | digests


def _recall(file: Path, names: list[str]) -> dict[str, tuple[Stamp, str]]:
    """What is remembered of these files: stamp and sha256. Nothing where the memory cannot be read."""
    if not file.is_file():
        return {}
    memory: dict[str, tuple[Stamp, str]] = {}
    try:
        with closing(sqlite3.connect(file, timeout=BUSY_TIMEOUT)) as connection:
            for start in range(0, len(names), PATHS_PER_QUERY):
                some = names[start : start + PATHS_PER_QUERY]
                marks = ",".join("?" * len(some))
                rows = connection.execute(f"select * from digests where path in ({marks})", some)
                memory |= {path: (tuple(seen), digest) for path, *seen, digest in rows}
    except sqlite3.OperationalError:  # another process writes, or made the file a moment ago
        return memory
    except sqlite3.DatabaseError:  # damaged: it holds nothing that the files do not
        with suppress(OSError):
            file.unlink()
        return {}
    return memory


def _remember(file: Path, rows: list[tuple[str | int, ...]]) -> None:
    with suppress(OSError, sqlite3.Error):  # a full or read-only disk: the files will be read again
        file.parent.mkdir(exist_ok=True)
        with closing(sqlite3.connect(file, timeout=BUSY_TIMEOUT)) as connection, connection:
            connection.execute(TABLE)
            connection.executemany("insert or replace into digests values (?, ?, ?, ?, ?, ?)", rows)
