"""Tables and folders on disk: parts, manifests, digests; every write is atomic, every read is checked.

    data/round=r1/
        judgments/part-00000.parquet      an output of the stage `judge`
        metrics/judge.json                its metrics
        manifests/judge.json              what is true of its result; without it the stage did not happen
        .staging/judge/new/…              a version being written: the same paths, not yet in force
        .staging/judge/ready/…            a version that is whole: it is in force, and on its way to its place

A stage writes all its outputs under `new`, fsyncs them and renames `new` to `ready`. That one rename is the commit: a
kill before it leaves the old version, a kill after it the new one, because whoever reads or writes the round next first
moves what is `ready` into place. Nothing is ever overwritten in place (pyarrow and polars destroy the old file if they
are killed while they do that), so a full disk leaves the old version too.

This file is shared by all stages: an edit of it does not make stages stale.
"""

import errno
import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, nullcontext
from itertools import chain, islice
from math import isfinite
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from pydantic import BaseModel

from tasks.errors import Busy, CheckFailed, FlywheelError, StoreError
from tasks.tables import TABLES, Table

Frame = pl.LazyFrame | pl.DataFrame
ROWS_PER_GROUP = 16_384
GROUPS_PER_PART = 4
WRITERS = 2
"""Parts that are encoded at the same time."""
LEAST_ROOM = 1 << 20
"""Bytes; with less, whatever went wrong went wrong for want of them."""


class Part(BaseModel):
    """A file of an output: its path below the output, its size in bytes, its sha256; rows where it holds a table."""

    file: str
    bytes: int
    sha256: str
    rows: int | None = None


class Output(BaseModel):
    """A table or folder that a stage wrote."""

    kind: Literal["table", "folder"]
    digest: str
    """sha256 over the parts' names and digests: equal content, equal digest."""
    rows: int | None = None
    parts: list[Part]


class Manifest(BaseModel):
    """What is true of a stage's result."""

    round: str
    stage: str
    outputs: dict[str, Output]
    inputs: dict[str, str]
    """Digest of every input by argument name."""
    params: dict[str, Any]
    code: dict[str, str]
    """sha256 of every file whose edit makes the stage stale."""
    seed: int
    versions: dict[str, str]
    metrics: dict[str, float]
    tokens: dict[str, int]
    seconds: dict[str, float]
    """`start` (process start-up, imports and model loading), `model`, `run`, and `write` with what is worked off only
    while it is written."""
    started: str
    finished: str


def round_folder(root: Path, name: str) -> Path:
    """Where a round's or base's outputs lie."""
    return root / "data" / f"round={name}"


# Reading


def manifests(root: Path, name: str) -> dict[str, Manifest]:
    """The manifests of a round by stage, after whatever was committed has been moved into place."""
    folder = round_folder(root, name)
    recover(folder)
    paths = sorted((folder / "manifests").glob("*.json"))
    return {p.stem: _parse(p) for p in paths}


def _parse(path: Path) -> Manifest:
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValueError as error:
        raise StoreError(
            f"{path}: not a manifest ({error.__class__.__name__}); delete it and run its stage again"
        ) from error


def find(root: Path, name: str, output: str) -> tuple[Path, Output]:
    """The place and the manifest's entry of an output of a round.

    Raises:
        StoreError: when no stage of the round has written it.
    """
    for manifest in manifests(root, name).values():
        if output in manifest.outputs:
            return round_folder(root, name) / output, manifest.outputs[output]
    raise StoreError(f"{name} has no {output!r} yet; `flywheel run {name}` makes what is missing")


def has(root: Path, name: str, output: str) -> bool:
    """Whether a stage of the round has written an output, damaged since or not."""
    return any(output in manifest.outputs for manifest in manifests(root, name).values())


def verify(place: Path, output: Output) -> None:
    """Checks every part against its digest.

    Raises:
        StoreError: naming the file that is missing, cut short or changed.
    """
    for part in output.parts:
        path = place / part.file
        again = "restore it with `dvc checkout --force`, or delete its manifest and run the stage again"
        if not path.is_file():
            raise StoreError(f"{path} is missing; {again}")
        if path.stat().st_size != part.bytes:
            raise StoreError(f"{path} has {path.stat().st_size} bytes, its manifest says {part.bytes}; {again}")
        if sha256(path) != part.sha256:
            raise StoreError(f"{path} is not what was written (its sha256 differs from the manifest's); {again}")


def scan(root: Path, name: str, table: str) -> tuple[pl.LazyFrame, str]:
    """A checked table of a round, and its digest."""
    place, output = find(root, name, table)
    verify(place, output)
    files = [place / p.file for p in output.parts]
    return pl.scan_parquet(files, glob=False), output.digest


def folder(root: Path, name: str, output: str) -> tuple[Path, str]:
    """A checked folder of a round, and its digest."""
    place, found = find(root, name, output)
    verify(place, found)
    return place, found.digest


# Writing


class Draft:
    """A version of a stage's outputs that is being written; in force once it is committed, not before."""

    def __init__(self, place: Path, stage: str) -> None:
        self.place, self.stage = place, stage
        self.staging = place / ".staging" / stage
        self.new = self.staging / "new"
        self.address = f"{stage}@{place.name.partition('=')[2]}"
        self.outputs: dict[str, Output] = {}

    def table(self, table: Table, frame: Frame | Iterator[Frame]) -> dict[str, float]:
        """Writes a table part by part, checks it, and gives its metrics. Of several frames one is made after the other.

        Raises:
            CheckFailed: naming rows that break a check or share a key.
        """
        to = self.new / table.name
        to.mkdir(parents=True)
        with closing(frame) if isinstance(frame, Generator) else nullcontext():  # its engine is, when a write fails
            _write_parts(to, table, [frame] if isinstance(frame, Frame) else frame)
        con = _view(to)
        _check(table, con, self.address)
        self.outputs[table.name] = _describe(to, "table")
        return dict(sorted(con.execute(table.metrics).fetchall())) if table.metrics else {}

    def folder(self, name: str) -> Path:
        """A place for a folder's files; described at commit."""
        to = self.new / name
        to.mkdir(parents=True)
        return to

    def file(self, name: str, text: str) -> None:
        """A small file below the round's folder, such as `metrics/judge.json`."""
        to = self.new / name
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(text)

    def describe_folder(self, name: str) -> None:
        """Takes down the files of a folder that has been filled."""
        self.outputs[name] = _describe(self.new / name, "folder")

    def commit(self, manifest: Manifest) -> None:
        """Puts everything in force at once: the manifest closes it.

        Raises:
            StoreError: for a metric that is not finite, which no reader of JSON could read back.
        """
        for name, value in manifest.metrics.items():
            if not isfinite(value):
                raise StoreError(
                    f"{self.address}: the metric {name} is {value}; leave out what could not be measured. "
                    "Nothing was written; the old version stays"
                )
        self.file(f"manifests/{self.stage}.json", manifest.model_dump_json(indent=1))
        _sync(self.new)
        self.new.rename(self.staging / "ready")
        _sync_folder(self.staging)
        _roll_forward(self.place, self.staging)


@contextmanager
def writing(root: Path, name: str, stage: str) -> Iterator[Draft]:
    """A draft of a stage's outputs, while no other process can write them.

    Raises:
        Busy: when another process is at it.
        StoreError: when the disk is full; the old version stays.
    """
    place = round_folder(root, name)
    draft = Draft(place, stage)
    draft.staging.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(FileLock(draft.staging / "lock", timeout=0))
        except Timeout as error:
            raise Busy(f"{draft.address} is being run by another process; wait for it, or end it") from error
        try:
            _roll_forward(place, draft.staging)
            for left in (draft.new, draft.staging / "spill"):  # by a kill
                shutil.rmtree(left, ignore_errors=True)
            draft.new.mkdir()
            yield draft
        except BaseException as error:
            full = _is_full(draft.staging, error)  # before what was half written is taken away
            shutil.rmtree(draft.new, ignore_errors=True)  # with the lock held: later it may be the next run's
            if full:
                raise StoreError(
                    f"{draft.address}: the disk is full ({place}); free room and run it again. {_KEPT}"
                ) from error
            raise


_KEPT = "Nothing already made is lost."


def _is_full(place: Path, error: BaseException) -> bool:
    """Whether it was for want of room: the writers of weights and checkpoints do not raise OSError for that."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if not isinstance(error, Exception) or isinstance(error, FlywheelError):
        return False
    return os.strerror(errno.ENOSPC) in str(error) or shutil.disk_usage(place).free < LEAST_ROOM


def recover(place: Path) -> None:
    """Moves into place what was committed by a process that was killed before it could do so itself."""
    for ready in place.glob(".staging/*/ready"):
        with FileLock(ready.parent / "lock"):
            _roll_forward(place, ready.parent)


def _roll_forward(place: Path, staging: Path) -> None:
    ready, old = staging / "ready", staging / "old"
    if ready.is_dir():
        for source in _entries(ready):
            target = place / source.relative_to(ready)
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_dir():
                shutil.rmtree(old, ignore_errors=True)
                target.rename(old)
            source.rename(target)
            _sync_folder(target.parent)
        shutil.rmtree(ready)
    shutil.rmtree(old, ignore_errors=True)


def _entries(ready: Path) -> list[Path]:
    """What moves as one: outputs as whole folders, small files one by one, the manifest last."""
    shared = [ready / n for n in ("metrics", "plots", "manifests")]
    whole = sorted(p for p in ready.iterdir() if p not in shared)
    return whole + [f for s in shared if s.is_dir() for f in sorted(s.iterdir())]


def _write_parts(to: Path, table: Table, frames: Iterable[Frame]) -> None:
    """Writes frames that are one table. Parts are encoded in threads while the next rows are made."""
    groups = _groups((batch for frame in frames for batch in _batches(frame, table.schema)), table.schema)
    with ThreadPoolExecutor(WRITERS) as threads:
        begun = deque[Future[None]]()
        for number, first in enumerate(groups):
            if len(begun) > WRITERS:  # memory holds so many parts, and one that waits for a thread
                begun.popleft().result()
            rows: SimpleQueue[pa.Table | None] = SimpleQueue()
            try:
                begun.append(threads.submit(_write_part, to / f"part-{number:05d}.parquet", table.schema, rows))
                for group in chain([first], islice(groups, GROUPS_PER_PART - 1)):
                    rows.put(group)
                    for part in begun:
                        if part.done():  # or has failed: nothing more need be made then
                            part.result()
            finally:
                rows.put(None)
        for written in begun:
            written.result()


def _write_part(path: Path, schema: pa.Schema, groups: "SimpleQueue[pa.Table | None]") -> None:
    # texts and ids hardly repeat: a dictionary would be a fifth of the time, and zstd finds what does repeat
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as writer:
        while (group := groups.get()) is not None:
            writer.write_table(group)


def _batches(frame: Frame, schema: pa.Schema) -> Iterator[pa.Table]:
    rows = frame.lazy().select(schema.names).collect_batches(chunk_size=ROWS_PER_GROUP, maintain_order=True)
    # a slice of a column of lists is converted with the items of the whole column: take its own rows first
    own = pl.all().gather(pl.int_range(pl.len()))
    return (some.select(own).to_arrow().cast(schema) for some in rows)


def _groups(batches: Iterable[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """Regroups batches into row groups of a fixed size, so that equal rows give equal bytes; at least one, maybe empty."""
    held, some = pa.Table.from_batches([], schema), False
    for batch in batches:
        held = pa.concat_tables([held, batch])
        while held.num_rows >= ROWS_PER_GROUP:
            yield held.slice(0, ROWS_PER_GROUP).combine_chunks()
            held, some = held.slice(ROWS_PER_GROUP), True
    if held.num_rows or not some:
        yield held.combine_chunks()


def _check(table: Table, con: duckdb.DuckDBPyConnection, address: str) -> None:
    """Runs a table's checks over the view of its parts. A check must be true: null is not, as it would be in SQL's own constraints.

    Raises:
        CheckFailed: naming the check and up to three rows that break it.
    """
    key = ", ".join(f'"{k}"' for k in table.key)
    checks = {f"{table.key[0]} is not null": f'"{table.key[0]}" is not null'} | table.checks
    counts = [f"count(*) filter (where ({predicate}) is not true)" for predicate in checks.values()]
    again = (
        f"count(*) - count(distinct hash({key}))"  # equal keys have equal hashes, and numbers are cheaper to tell apart
    )
    broken = con.execute(f"select {', '.join([again, *counts])} from t").fetchall()[0]  # one look at the table for all
    rows = [f"select {key} from t where ({predicate}) is not true limit 3" for predicate in checks.values()]
    shared = f"select {key} from t group by {key} having count(*) > 1 limit 3"
    named = zip(broken, [f"unique {key}", *checks], [shared, *rows], strict=True)
    queries = {name: query for count, name, query in named if count}
    for name, query in queries.items():
        if rows := con.execute(query).fetchall():
            shown = ", ".join("/".join(map(str, r)) for r in rows)
            raise CheckFailed(
                f"{address}, table {table.name}: rows {shown} break the check '{name}'; the old version stays"
            )


def _view(place: Path) -> duckdb.DuckDBPyConnection:
    """A database whose view `t` is the table written in `place`."""
    spill = str(place.parents[1] / "spill")  # what does not fit into memory goes below the stage's staging place
    con = duckdb.connect(config={"memory_limit": "1GB", "preserve_insertion_order": False, "temp_directory": spill})
    con.execute("set enable_progress_bar = false")  # it would be among what the stage says
    con.from_parquet([str(p) for p in sorted(place.glob("*.parquet"))]).create_view("t")  # a list is no pattern
    return con


def _describe(place: Path, kind: Literal["table", "folder"]) -> Output:
    files = sorted(p for p in place.rglob("*") if p.is_file())
    with ThreadPoolExecutor() as threads:
        digests = list(threads.map(sha256, files))
    named = zip(files, digests, strict=True)
    parts = [Part(file=str(p.relative_to(place)), bytes=p.stat().st_size, sha256=found) for p, found in named]
    rows = None
    if kind == "table":
        parts = [p.model_copy(update={"rows": pq.read_metadata(place / p.file).num_rows}) for p in parts]
        rows = sum(p.rows or 0 for p in parts)
    return Output(kind=kind, digest=digest((p.file, p.sha256) for p in parts), rows=rows, parts=parts)


# Digests


def sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(pairs: Iterable[tuple[str, str]]) -> str:
    """The sha256 over (name, digest) pairs."""
    return hashlib.sha256(json.dumps(sorted(pairs)).encode()).hexdigest()


def _sync(place: Path) -> None:
    for path in place.rglob("*"):
        if path.is_dir():
            _sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _sync_folder(place)


def _sync_folder(place: Path) -> None:
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


__all__ = ["TABLES", "Draft", "Manifest", "Output", "Part", "manifests", "scan", "writing"]
