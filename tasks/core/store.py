"""Tables and folders on disk: parts, manifests, digests; every write is atomic, every read is checked.

    data/round=r1/
        judgments/part-00000.parquet      an output of the stage `judge`
        metrics/judge.json                its metrics
        manifests/judge.json              describes its result; without it the stage has not run
        .staging/judge/new/…              a version being written: the same paths, not committed
        .staging/judge/ready/…            a committed version that is being moved into place

A stage writes all its outputs under `new`, fsyncs them and renames `new` to `ready`. That one rename is the commit. A
kill before it leaves the old version; after it, the next reader or writer of the round moves `ready` into place. Nothing is overwritten in place (pyarrow and polars destroy the old file if they are killed during a write), so a
full disk leaves the old version too.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Literal, TypeVar

import polars as pl
from filelock import FileLock, Timeout

from tasks.core import commits, pointers
from tasks.core._checks import check, metrics, view
from tasks.core._parts import Frame, extent, row_groups, write_parts
from tasks.core._staging import PAUSE, names_in, recover, roll_forward, sync, sync_folder
from tasks.core.errors import Busy, FlywheelError, StoreError
from tasks.core.manifest import ROUND, Manifest, Output, Part, read_manifest
from tasks.core.objects import Place
from tasks.core.plan import Plan
from tasks.core.pointers import ObjectPath, StoredPath
from tasks.core.tables import TABLES, Table

T = TypeVar("T")
DISK_FULL = 1 << 20
"""Bytes of free disk space below which an error counts as a full disk."""
PATIENCE = 10.0
"""Seconds for which a reader retries while another process commits."""
CHANGED = pointers.CHANGED
REMAKE = "restore it with `dvc checkout --force` or `dvc pull`, or run the stage again"
"""What brings a file back that is gone."""
RESTORE = "restore it with `dvc checkout --force` or `dvc pull`, or delete its manifest and run its stage again"
"""What mends a file that is not as it was written."""
REWRITE = "run its stage again (`dvc repro --force --single-item STAGE@ROUND`), which puts it there again"
"""What mends an object in a bucket."""
LOCK_TIMEOUT = 0.5
"""Seconds that a writer waits for a lock: a reader may hold it that long while it moves a version into place."""


def round_folder(root: Path, name: str) -> Path:
    """Folder of a round's or base's outputs."""
    return root / "data" / f"{ROUND}{name}"


def round_of(path: Path) -> str:
    """The round or base among whose outputs a file lies.

    Raises:
        ValueError: when it is among none.
    """
    folder = next((part for part in reversed(path.parts) if part.startswith(ROUND)), None)
    if folder is None:
        raise ValueError(f"{path} is no round's")
    return folder.removeprefix(ROUND)


# Reading


_look: ContextVar[dict[Path, dict[str, Manifest]] | None] = ContextVar("look", default=None)


@contextmanager
def one_look() -> Iterator[None]:
    """While the block runs, the manifests of a round are looked up once: for commands that ask for those of all rounds several
    times.
    """
    token = _look.set({})
    try:
        yield
    finally:
        _look.reset(token)


def manifests(root: Path, name: str) -> dict[str, Manifest]:
    """The manifests of a round by stage. Moves committed versions into place first."""
    look, folder = _look.get(), round_folder(root, name)
    if look is None:
        return _manifests(folder)
    if folder not in look:
        look[folder] = _manifests(folder)
    return look[folder]


def _manifests(folder: Path) -> dict[str, Manifest]:
    recover(folder)
    place = folder / "manifests"
    stages = sorted(file.removesuffix(".json") for file in names_in(place) if file.endswith(".json"))
    return {stage: read_manifest(place / f"{stage}.json") for stage in stages}


def lost_manifests(root: Path, name: str, made: Iterable[str]) -> list[str]:
    """Stages of a round that ran, for their metrics are there, and that are not among `made`, those with a manifest."""
    files = names_in(round_folder(root, name) / "metrics")
    return sorted({file.removesuffix(".json") for file in files if file.endswith(".json")} - set(made))


def find(root: Path, name: str, output: str) -> tuple[Path, Output]:
    """The path of a round's output, and its entry in the manifest.

    Raises:
        StoreError: when no stage of the round has written it.
    """
    for manifest in manifests(root, name).values():
        if output in manifest.outputs:
            return round_folder(root, name) / output, manifest.outputs[output]
    raise StoreError(f"{name} has no {output!r} yet; `flywheel run {name}` makes it")


def has(root: Path, name: str, output: str) -> bool:
    """Whether a stage of the round has written an output, even if its files were damaged since."""
    return any(output in manifest.outputs for manifest in manifests(root, name).values())


def verify(place: Path, output: Output) -> None:
    """Reads every part and checks it against its digest.

    Raises:
        StoreError: naming the file that is missing, cut short or changed.
    """
    files = paths(place, output)
    if any(isinstance(path, ObjectPath) for path in files):  # no object changes unseen: what is remembered of it holds
        from tasks.core import remembered

        remembered.verify(place.parents[2], [(place, output)])
        return
    for path, part in zip(files, output.parts, strict=True):
        whole = path.is_file() and path.stat().st_size == part.bytes
        if text := damage(path, part, sha256(path) if whole else None):
            raise StoreError(text)


def paths(place: Path, output: Output) -> list[StoredPath]:
    """The files of the parts of the output in `place`, or their objects where they are in a bucket.

    Raises:
        StoreError: for a part that lies out of that folder, and for a pointer that is not the manifest's.
    """
    if output.kind == "table" and (pointer := pointers.read(place)):
        return pointers.paths(pointer, place, output)
    if odd := [p.file for p in output.parts if p.file.startswith("/") or ".." in p.file.split("/")]:
        raise StoreError(f"{place}: its manifest names the file {odd[0]!r}, which is not below it; {RESTORE}")
    return [place / part.file for part in output.parts]


def damage(path: StoredPath, part: Part, digest: str | None) -> str | None:
    """What is wrong with a part's file, whose sha256 is `digest`, and how it is mended; None where nothing is."""
    what, mend = (str(path), RESTORE) if isinstance(path, Path) else (f"{path}, a part of {path.folder},", REWRITE)
    if not path.is_file():
        return f"{what} is missing; {mend}"
    if (size := path.stat().st_size) != part.bytes:
        return f"{what} has {size:,} bytes, its manifest says {part.bytes:,}; {mend}"
    if digest != part.sha256:
        return f"{what} {CHANGED} (its sha256 differs from the manifest's); {mend}"
    return None


def _verified(root: Path, name: str, output: str, keep: Callable[[Part], bool] | None = None) -> tuple[Path, Output]:
    place, entry = find(root, name, output)
    if keep is not None:
        entry = entry.model_copy(update={"parts": [p for p in entry.parts if keep(p)] or entry.parts[:1]})
    verify(place, entry)
    return place, entry


def scan(root: Path, name: str, table: str, keep: Callable[[Part], bool] | None = None) -> tuple[pl.LazyFrame, str]:
    """A checked table of a round, and its digest. With `keep` only the parts are read and checked that it says, or one, for the
    columns, where it says none.
    """
    place, output = steady(root, [name], lambda: _verified(root, name, table, keep))
    return _lazy(place, output), output.digest


def read(root: Path, name: str, table: str) -> pl.DataFrame:
    """The rows of a checked table of a round, in memory. All are of one version, even if another is committed meanwhile."""
    return steady(root, [name], lambda: _lazy(*_verified(root, name, table)).collect())


def _lazy(place: Path, output: Output) -> pl.LazyFrame:
    return pointers.scan(paths(place, output))


def folder(root: Path, name: str, output: str) -> tuple[Path, str]:
    """A checked folder of a round, and its digest."""
    place, entry = steady(root, [name], lambda: _verified(root, name, output))
    return place, entry.digest


def steady(root: Path, names: Iterable[str], attempt: Callable[[], T], patience: float = PATIENCE) -> T:
    """Calls `attempt` until no stage of these rounds commits while it runs, and returns its result.

    A commit moves outputs into place one by one, so a concurrent reader may see a mix of two versions, which looks like
    damage. After `patience` seconds the last result, or its error, counts.
    """
    places, end = [round_folder(root, name) for name in names], monotonic() + patience
    while True:
        before = _versions(places)
        for place in places if (look := _look.get()) else ():
            look.pop(place, None)
        try:
            result, error = attempt(), None
        except Exception as raised:  # StoreError, or an error of DuckDB or polars
            result, error = None, raised
        if monotonic() > end or (before == _versions(places) and not any(map(_is_moving, places))):
            break
        sleep(PAUSE)
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def _versions(places: Iterable[Path]) -> dict[Path, tuple[int, int]]:
    """inode and modification time of every manifest: a commit changes them even where the content is equal."""
    versions = {}
    for path in (p for place in places for p in (place / "manifests").glob("*.json")):
        with suppress(FileNotFoundError):
            versions[path] = (path.stat().st_ino, path.stat().st_mtime_ns)
    return versions


def _is_moving(place: Path) -> bool:
    """Whether a process is moving a committed version of this round into place."""
    return any(is_held(ready.parent / "lock") for ready in place.glob(".staging/*/ready"))


def is_held(lock: Path) -> bool:
    """Whether a process holds a lock."""
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


# Writing


@dataclass(frozen=True)
class Checked:
    """A table whose parts were written and checked elsewhere, piece by piece."""

    output: Output
    bring: Callable[[Part, Path], None]
    """Puts a part into a file of the project; parts in a bucket stay there."""
    lost: Callable[[], None] = lambda: None
    """Is called where parts are gone, so that the next try makes them again."""


class Draft:
    """A version of a stage's outputs that is being written. Readers see it once it is committed."""

    def __init__(self, place: Path, stage: str, bucket: Place | None = None) -> None:
        self.place, self.stage, self.bucket = place, stage, bucket
        self.staging = place / ".staging" / stage
        self.new = self.staging / "new"
        self.address = f"{stage}@{place.name.partition('=')[2]}"
        self.outputs: dict[str, Output] = {}
        self.plots: dict[str, str] = {}
        self.version = 0
        """Number of the next commit in the bucket of this plan on these inputs."""

    def restored(self, plan: Plan, inputs: dict[str, str]) -> Manifest | None:
        """Takes what the bucket has of this plan on these inputs, made on another machine or before the plan was edited; None
        where it has nothing whole, or where what is here is of that plan already and shall be made again.
        """
        if self.bucket is None:
            return None
        commits.require_conditional_puts(self.bucket)
        asked = commits.identity(plan, inputs)
        self.version, commit = commits.latest(self.bucket, asked)
        kept = self.place / "manifests" / f"{self.stage}.json"
        with suppress(StoreError, FileNotFoundError):
            here = read_manifest(kept)
            if commits.identity(here.plan, here.inputs) == asked:
                return None
        manifest = commit and commits.fetch(self.bucket, commit, asked, self.new)
        if commit is not None and manifest is not None:
            commits.renew(self.bucket, commit, self.new)
            print(commits.said(self.bucket, commit), flush=True)
            self._publish()
        return manifest

    def table(self, table: Table, frame: "Frame | Iterator[Frame] | Checked") -> dict[str, float]:
        """Writes a table in parts, checks it and returns its metrics. Several frames are computed one after the other.

        Raises:
            CheckFailed: naming rows that break a check or share a key.
        """
        to = self.new / table.name
        to.mkdir(parents=True)
        if isinstance(frame, Checked):
            return self._take(table, frame)
        with closing(frame) if isinstance(frame, Generator) else nullcontext():  # closes its engine when a write fails
            write_parts(to, table, [frame] if isinstance(frame, Frame) else frame)
        con = view(to, sorted(to.glob("*.parquet")))
        check(table, con, self.address)
        self.outputs[table.name] = _describe(to, "table")
        return metrics(table, con)

    def _take(self, table: Table, given: "Checked") -> dict[str, float]:
        to = self.new / table.name
        if self.bucket is not None:
            pointers.write(to, self.bucket, given.output)
            try:
                commits.check_parts(self.new, table.name, given.output)  # workers may have put them days ago
            except StoreError:
                given.lost()
                raise
        for part in given.output.parts if self.bucket is None else ():
            given.bring(part, to / part.file)
        self.outputs[table.name] = given.output
        return metrics(table, view(to, paths(to, given.output)))

    def folder(self, name: str) -> Path:
        """Makes an output folder; `describe_folder` records its files."""
        to = self.new / name
        to.mkdir(parents=True)
        return to

    def file(self, name: str, text: str) -> None:
        """Writes a small file below the round's folder, such as `metrics/judge.json`."""
        to = self.new / name
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(text)
        if name.startswith("plots/"):
            self.plots[name] = sha256(to)

    def describe_folder(self, name: str) -> None:
        """Records the files of a folder once they are written."""
        self.outputs[name] = _describe(self.new / name, "folder")

    def commit(self, manifest: Manifest) -> Manifest:
        """Commits all outputs and the manifest in one rename. Where parts go to a bucket, they and the commit are put there
        first; where another process has committed the same plan on the same inputs meanwhile, its result is taken.

        Returns:
            The manifest that is in force.

        Raises:
            StoreError: for a metric that is not finite, which JSON cannot hold.
        """
        for name, value in manifest.metrics.items():
            if not isfinite(value):
                raise StoreError(
                    f"{self.address}: the metric {name} is {value}; leave out what could not be measured. "
                    "Nothing was written; the old version stays"
                )
        manifest = manifest.model_copy(update={"plots": self.plots})
        self.file(f"manifests/{self.stage}.json", manifest.text)
        if self.bucket is not None:
            manifest = commits.put(self.bucket, self.new, manifest, self.version)
        self._publish()
        return manifest

    def _publish(self) -> None:
        sync(self.new)
        self.new.rename(self.staging / "ready")
        sync_folder(self.staging)
        roll_forward(self.place, self.staging)


@contextmanager
def writing(root: Path, name: str, stage: str) -> Iterator[Draft]:
    """Yields a draft of a stage's outputs, and locks them against other writers.

    Raises:
        Busy: when another process runs this stage.
        StoreError: when the disk is full; the old version stays.
    """
    place = round_folder(root, name)
    draft = Draft(place, stage, pointers.bucket(root))
    draft.staging.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(FileLock(draft.staging / "lock", timeout=LOCK_TIMEOUT))
        except Timeout as error:
            raise Busy(f"{draft.address} is being run by another process; wait for it, or stop it") from error
        try:
            roll_forward(place, draft.staging)
            for leftover in (draft.new, draft.staging / "spill", draft.staging / "theirs"):  # of a killed process
                shutil.rmtree(leftover, ignore_errors=True)
            draft.new.mkdir()
            yield draft
        except BaseException as error:
            full = _is_full(draft.staging, error)  # before the removal below frees space
            shutil.rmtree(draft.new, ignore_errors=True)  # under the lock: afterwards it may belong to the next run
            if full:
                raise StoreError(
                    f"{draft.address}: the disk is full ({place}); free some space and run it again. {_NOTHING_LOST}"
                ) from error
            raise


_NOTHING_LOST = "Nothing already made is lost."


def _is_full(place: Path, error: BaseException) -> bool:
    """Whether the disk is full: writers of weights and checkpoints raise other errors than OSError for that."""
    if isinstance(error, OSError) and error.errno is not None:  # shutil.Error has none
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if not isinstance(error, Exception) or isinstance(error, FlywheelError):
        return False
    return os.strerror(errno.ENOSPC) in str(error) or shutil.disk_usage(place).free < DISK_FULL


def _describe(place: Path, kind: Literal["table", "folder"]) -> Output:
    files = sorted(p for p in place.rglob("*") if p.is_file())
    with ThreadPoolExecutor() as threads:
        digests = list(threads.map(sha256, files))
    named = zip(files, digests, strict=True)
    parts = [Part(file=str(p.relative_to(place)), bytes=p.stat().st_size, sha256=sha) for p, sha in named]
    rows = None
    if kind == "table":
        parts = [p.model_copy(update=_contents(place / p.file)) for p in parts]
        rows = sum(p.rows or 0 for p in parts)
    return Output(kind=kind, digest=digest((p.file, p.sha256) for p in parts), rows=rows, parts=parts)


def _contents(file: Path) -> dict[str, Any]:
    """What the entry of a table's part says of its rows."""
    groups = row_groups(file)
    first, last = extent(groups)
    return {"rows": sum(g.rows for g in groups), "first": first, "last": last}


# Digests


def sha256(path: StoredPath) -> str:
    """The sha256 of a file, in hexadecimal."""
    if isinstance(path, ObjectPath):
        return path.sha256()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(pairs: Iterable[tuple[str, str]]) -> str:
    """The sha256 over (name, digest) pairs."""
    return hashlib.sha256(json.dumps(sorted(pairs)).encode()).hexdigest()


__all__ = [
    "TABLES", "Draft", "Manifest", "Output", "Part", "manifests", "read", "read_manifest", "scan", "steady", "writing",
]  # fmt: skip
