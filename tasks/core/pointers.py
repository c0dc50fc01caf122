"""Tables whose parts lie in a bucket: what is in their folder then, and how readers open it.

    data/round=r1/judgments/parts.json           all that the folder holds: the bucket, and each part with its sha256
    s3://bucket/prefix/parts/3f/3f1f….parquet    a part, named by its content

DVC versions the pointer as it does any file, so dvc.yaml, staleness and `dvc checkout` are the same as with parts in the
folder: equal content is an equal pointer. It says in which bucket the parts are, so a project may have rounds in several,
and in its folder, whatever is configured now. Models have their files here, too, for engines load them from a disk; the bucket
has a copy of each.

`ObjectPath` has what readers ask of a `Path`, so one function serves both.
"""

import io
import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, Literal

import duckdb
import polars as pl
from pydantic import BaseModel, ValidationError

from tasks.core import objects
from tasks.core.errors import StoreError, masked
from tasks.core.manifest import Output, Part
from tasks.core.objects import Absent, Entry, Place

POINTER = "parts.json"
AHEAD = 2**20
"""Bytes that are read at least: a Parquet footer and the pages around it come in one request."""
BLOCKS = 32
"""Blocks of that size that a connection of DuckDB keeps."""
DIGEST = re.compile("[0-9a-f]{64}")
DATA_URL = "DATA_URL"
CONFIGURED = Path("data/plan/data.json")
"""Where `data:` of params.yaml is found by stages, which do not read params.yaml."""
SCRATCH = ".flywheel"
"""Projects below this folder of another one are scratch: they keep what they make to themselves."""


class Pointer(BaseModel):
    """What a table's folder holds where its parts are in a bucket."""

    url: str
    digest: str
    parts: list[Part]

    @property
    def text(self) -> str:
        """The file's text: equal for equal content in the same bucket."""
        parts = [{"file": p.file, "bytes": p.bytes, "sha256": p.sha256, "rows": p.rows} for p in self.parts]
        return json.dumps({"url": self.url, "digest": self.digest, "parts": parts}, indent=1) + "\n"


class ObjectPath:
    """An object as readers see a file, and the folder whose pointer names it. Its size and times are asked for once."""

    def __init__(self, place: Place, name: str, folder: Path | None = None) -> None:
        self.place, self.object, self.folder = place, name, folder
        self._entry: Entry | Literal[False] | None = False

    def __str__(self) -> str:
        return self.place.address(self.object)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectPath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    @property
    def entry(self) -> Entry | None:
        """What the store says of it; None where it has none."""
        if self._entry is False:
            self._entry = self.place.entry(self.object)
        return self._entry

    def is_file(self) -> bool:
        """Whether it is there."""
        return self.entry is not None

    def stat(self) -> Any:
        """Size and times, and in the place of an inode what changes with the bytes.

        Raises:
            FileNotFoundError: when it is not there.
        """
        if self.entry is None:
            raise FileNotFoundError(str(self))
        time, tag = int(self.entry.modified * 1e9), int.from_bytes(self.entry.tag.encode()[-9:-1], "big") >> 1
        return SimpleNamespace(st_size=self.entry.bytes, st_mtime_ns=time, st_ctime_ns=time, st_ino=tag)

    def open(self, mode: str = "rb") -> BinaryIO:
        """Opens it for reading from any place in it."""
        return io.BufferedReader(_Reader(self), AHEAD)

    def sha256(self) -> str:
        """Its digest, from its bytes."""
        return self.place.sha256(self.object)

    def resolve(self) -> "ObjectPath":
        """Itself: it is no link."""
        return self

    def is_relative_to(self, folder: Path) -> bool:
        """Never: no folder holds it."""
        return False


StoredPath = Path | ObjectPath


class _Shared:
    """A file that several threads read, each at a place of its own: DuckDB's threads share one, and seek in it before each
    read.
    """

    closed = False

    def __init__(self, size: int, read: Callable[[int, int], bytes]) -> None:
        self.size, self._read, self._own = size, read, threading.local()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._own.at = offset + (0, self.tell(), self.size)[whence]
        return self.tell()

    def tell(self) -> int:
        return getattr(self._own, "at", 0)

    def read(self, count: int = -1) -> bytes:
        start = self.tell()
        found = self._read(start, self.size if count < 0 else min(start + count, self.size))
        self._own.at = start + len(found)
        return found

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        pass


class _Reader(io.RawIOBase):
    """Reads an object by ranges."""

    def __init__(self, path: ObjectPath) -> None:
        self.path, self.at, self.size = path, 0, path.stat().st_size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = offset + (0, self.at, self.size)[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: Any) -> int:
        found = self.path.place.read(self.path.object, self.at, min(self.at + len(buffer), self.size))
        buffer[: len(found)] = found
        self.at += len(found)
        return len(found)


def configured(root: Path) -> str | None:
    """Where stages of the project at `root` put the parts of what they write: the variable DATA_URL, else `data:` of params.yaml
    as it was planned; None for the project's own folder.

    Raises:
        StoreError: when the file of the plan is damaged.
    """
    if SCRATCH in root.resolve().parts:
        return None
    if named := os.environ.get(DATA_URL):
        return named
    try:
        return str(json.loads((root / CONFIGURED).read_text(encoding="utf-8"))["url"])
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError) as error:
        raise StoreError(f"{root / CONFIGURED} is damaged; `flywheel plan` writes it again") from error


def bucket(root: Path) -> Place | None:
    """The bucket of the project at `root`; None where it keeps parts in its folder.

    Raises:
        StoreError: for what is no address of a bucket.
    """
    url = configured(root)
    if url is not None and not url.startswith(objects.SCHEME):
        raise StoreError(f"{DATA_URL}={masked(url)}: name a bucket, such as s3://bucket/prefix, or unset it")
    return None if url is None else objects.place(url)


def object_name(part: Part) -> str:
    """The name of a part in a bucket.

    Raises:
        StoreError: for a manifest whose digest is none.
    """
    if not DIGEST.fullmatch(part.sha256):
        raise StoreError(f"{part.file}: {part.sha256!r} is no sha256")
    suffix = re.search(r"\.\w{1,20}$", part.file)
    return f"parts/{part.sha256[:2]}/{part.sha256}{suffix[0] if suffix else ''}"


def write(folder: Path, place: Place, output: Output) -> None:
    """Writes the pointer of a table whose parts are in a bucket into its empty folder."""
    (folder / POINTER).write_text(Pointer(url=place.url, digest=output.digest, parts=output.parts).text)


def read(folder: Path) -> Pointer | None:
    """The pointer in a table's folder; None where its parts are in the folder.

    Raises:
        StoreError: when the file is no pointer.
    """
    path = folder / POINTER
    try:
        return Pointer.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError as error:
        raise StoreError(
            f"{path} {CHANGED}: it is no pointer to parts ({error.error_count()} errors); restore it with `dvc checkout --force`"
        ) from error


CHANGED = "is not what was written"


def paths(pointer: Pointer, folder: Path, output: Output) -> list[StoredPath]:
    """The parts of an output by the pointer in its folder.

    Raises:
        StoreError: when the pointer is of another version than the manifest's.
    """
    if pointer.digest != output.digest:
        raise StoreError(
            f"{folder / POINTER} {CHANGED}: it is of another version than its manifest; restore both with "
            "`dvc checkout --force`, or run the stage again"
        )
    return objects_of(pointer.model_copy(update={"parts": output.parts}), folder)


def objects_of(pointer: Pointer | None, folder: Path) -> list[StoredPath]:
    """The parts that a pointer names."""
    if pointer is None:
        return []
    place = objects.place(pointer.url)
    return [ObjectPath(place, object_name(part), folder) for part in pointer.parts]


# Readers


def scan(files: Sequence[StoredPath], **how: Any) -> pl.LazyFrame:
    """The rows of Parquet files, in a folder or a bucket; `how` are options of polars' `scan_parquet`."""
    found = []  # polars reads files of one kind at a time
    for in_bucket, some in groupby(files, lambda file: isinstance(file, ObjectPath)):
        options = {"storage_options": objects.options()} if in_bucket else {}
        found.append(pl.scan_parquet([str(file) for file in some], glob=False, **options, **how))
    return found[0] if len(found) == 1 else pl.concat(found, how="diagonal_relaxed")


def attach(con: duckdb.DuckDBPyConnection, files: Iterable[StoredPath]) -> None:
    """Lets a connection read those of these files that are in a bucket, by their URL. DuckDB's own reader of S3 is an extension
    that it downloads, so it reads through this process; which files a query may open, DuckDB's settings say as ever.
    """
    if any(isinstance(file, ObjectPath) for file in files) and "s3" not in con.list_filesystems():
        con.register_filesystem(_filesystem())


def _filesystem() -> Any:
    from fsspec import AbstractFileSystem

    class Objects(AbstractFileSystem):
        protocol, cachable = "s3", False

        def __init__(self) -> None:
            super().__init__()
            self.known: dict[str, ObjectPath] = {}
            self.block = lru_cache(BLOCKS)(self._block)

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return path

        def _path(self, path: str) -> ObjectPath:
            url = path if path.startswith(objects.SCHEME) else objects.SCHEME + path
            if url not in self.known:
                bucket, _, name = url.removeprefix(objects.SCHEME).partition("/")
                self.known[url] = ObjectPath(objects.place(objects.SCHEME + bucket), name)
            return self.known[url]

        def _block(self, path: ObjectPath, number: int) -> bytes:
            end = min((number + 1) * AHEAD, path.stat().st_size)
            return path.place.read(path.object, number * AHEAD, end)

        def _read(self, path: ObjectPath, start: int, end: int) -> bytes:
            """Short ranges come from blocks that are kept: DuckDB reads a footer several times."""
            if end - start >= AHEAD:
                return path.place.read(path.object, start, end)
            first, last = start // AHEAD, max(end - 1, start) // AHEAD
            blocks = b"".join(self.block(path, number) for number in range(first, last + 1))
            return blocks[start - first * AHEAD : end - first * AHEAD]

        def _open(self, path: str, mode: str = "rb", **options: Any) -> _Shared:
            found = self._path(path)
            return _Shared(found.stat().st_size, partial(self._read, found))

        def info(self, path: str, **options: Any) -> dict[str, Any]:
            return {"name": path, "size": self._path(path).stat().st_size, "type": "file"}

        def glob(self, path: str, **options: Any) -> list[str]:
            return [path] if self._path(path).is_file() else []

        def modified(self, path: str) -> datetime:
            return datetime.fromtimestamp(self._path(path).stat().st_mtime_ns / 1e9, UTC)

        created = modified

    return Objects()


__all__ = ["Absent", "ObjectPath", "Pointer", "StoredPath", "attach", "bucket", "object_name", "paths", "read", "scan"]
