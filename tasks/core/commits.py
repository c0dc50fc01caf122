"""Results of stages in a bucket: parts first, then one conditional put that commits them.

    parts/3f/3f1f….parquet                    a part of a table or a file of a folder, by its sha256
    files/9a0c…                               manifest, metrics and plots of a stage, by their MD5, as dvc.lock names them
    commits/r1/judge/5d41…-0.json             says which files are the result of one plan on the same inputs

A commit is named by what was asked for (the plan and the digests of all inputs) and by how often that was made before, so two
drivers that make the same at the same time want to create the same object: one wins, and the other takes the winner's result
and says so. Nothing is looked up in a listing, which may lag. A stage whose plan and inputs have a commit already is not run: its
result is fetched, in a clone or after an edit that was taken back; where the project has that result and the stage is run all
the same, it is made again, and the next commit counts.

A kill before the commit leaves parts that nobody names, which `flywheel gc` deletes; after it, the next run fetches it.
"""

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from pydantic import BaseModel, ValidationError

from tasks.core import pointers
from tasks.core.errors import StoreError
from tasks.core.ids import content_id
from tasks.core.manifest import Manifest, Output, read_manifest
from tasks.core.objects import CHUNK, Absent, Place
from tasks.core.plan import Plan

THREADS = 8
"""Objects that are put or asked for at the same time."""
COMMITS, FILES, PARTS, RECEIPTS = "commits/", "files/", "parts/", "receipts/"
"""Prefixes of the names of all objects."""


PROBE = "probe"
"""An object that is there in every bucket, and that a put with If-None-Match must not replace."""
OVERWRITES = "{} replaces an object in spite of `If-None-Match: *`, so two machines could commit the same stage"
OTHER_STORE = "use a store that honours it (Amazon S3, MinIO, Ceph, Cloudflare R2 …), or take data: out of params.yaml"


class Commit(BaseModel):
    """What is committed: each small file by its path below the round's folder, with its MD5."""

    round: str
    stage: str
    files: dict[str, str]
    by: str
    """The machine and the process."""
    at: str


def identity(plan: Plan, inputs: dict[str, str]) -> str:
    """Names what a stage was asked for."""
    return f"{plan.round}/{plan.stage}/{content_id(plan.digest, json.dumps(inputs, sort_keys=True))}"


def said(place: Place, commit: Commit, when: str = "") -> str:
    """What a stage says whose result is one that was committed."""
    return f"{commit.stage}@{commit.round}: taken from {place.url}: {commit.by} committed it{when} at {commit.at}"


def latest(place: Place, asked: str) -> tuple[int, Commit | None]:
    """The number of the next commit of what was asked for, and the last one.

    Raises:
        StoreError: when that is no commit.
    """
    version, commit = 0, None
    while (found := _read(place, asked, version)) is not None:
        version, commit = version + 1, found
    return version, commit


def _name(asked: str, version: int) -> str:
    return f"{COMMITS}{asked}-{version}.json"


def _read(place: Place, asked: str, version: int) -> Commit | None:
    try:
        return Commit.model_validate_json(place.read(_name(asked, version)))
    except Absent:
        return None
    except ValidationError as error:
        raise StoreError(
            f"{place.address(_name(asked, version))} is no commit; delete it, and run the stage again"
        ) from error


# Putting


def creates_once(place: Place) -> bool:
    """Whether the store refuses to create an object that is there."""
    return not all(
        place.put_once(PROBE, uuid4().bytes) for _ in range(2)
    )  # else a repeated attempt takes it for its own


def require_conditional_puts(place: Place) -> None:
    """Refuses a store on which two processes could commit the same.

    Raises:
        StoreError: says what to do.
    """
    if not creates_once(place):
        raise StoreError(f"{OVERWRITES.format(place.url)}; {OTHER_STORE}. Nothing was made; the old version stays")


def put(place: Place, new: Path, manifest: Manifest, version: int) -> Manifest:
    """Puts the outputs in `new`, commits them as this version, and leaves pointers in the folders of tables; returns the
    manifest that is in force, which is another process's where that committed first.
    """
    _put_parts(place, new, manifest)
    asked, files = identity(manifest.plan, manifest.inputs), _put_files(place, new)
    commit = Commit(
        round=manifest.round,
        stage=manifest.stage,
        files=files,
        by=f"{socket.gethostname()}, process {os.getpid()}",
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    while not place.put_once(_name(asked, version), commit.model_dump_json(indent=1).encode()):
        theirs = new.with_name("theirs")
        if (winner := _read(place, asked, version)) and (taken := fetch(place, winner, asked, theirs)):
            shutil.rmtree(new)
            theirs.rename(new)
            print(said(place, winner, " first,"), flush=True)
            return taken
        version += 1
    for name, output in manifest.outputs.items():
        if output.kind == "table" and not (new / name / pointers.POINTER).is_file():
            shutil.rmtree(new / name)
            (new / name).mkdir()
            pointers.write(new / name, place, output)
    return manifest


def _put_parts(place: Place, new: Path, manifest: Manifest) -> None:
    parts = {
        pointers.object_name(part): new / name / part.file
        for name, output in manifest.outputs.items()
        if output.kind == "folder" or not (new / name / pointers.POINTER).is_file()  # whose parts workers put
        for part in output.parts
    }
    _at_once(lambda item: place.put_file(*item), parts.items())


def _put_files(place: Place, new: Path) -> dict[str, str]:
    small = sorted(f for folder in ("manifests", "metrics", "plots") for f in (new / folder).glob("*"))
    digests = {f: hashlib.md5(f.read_bytes(), usedforsecurity=False).hexdigest() for f in small}
    _at_once(lambda item: place.put_file(f"{FILES}{item[1]}", item[0]), digests.items())
    return {f.relative_to(new).as_posix(): md5 for f, md5 in digests.items()}


def _at_once(call, items: Iterable) -> None:  # type: ignore[no-untyped-def, type-arg]  # noqa: ANN001
    with ThreadPoolExecutor(THREADS) as threads:
        for done in [threads.submit(call, item) for item in items]:
            done.result()


# Fetching


def fetch(place: Place, commit: Commit, asked: str, new: Path) -> Manifest | None:
    """Writes what was committed into `new`: small files, pointers of tables, the files of folders. None where something of it
    is missing, not what was written or not what was asked for, or has a name that leads out of `new`, which is empty then.
    """
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        for path, md5 in commit.files.items():
            _write_file(place, f"{FILES}{md5}", _below(new, path), "md5", md5)
        manifest = read_manifest(new / "manifests" / f"{commit.stage}.json")
        if identity(manifest.plan, manifest.inputs) != asked:
            raise _Damaged(f"{place.url}: the commit of {asked} is of another plan or other inputs")
        for name, output in manifest.outputs.items():
            _below(new, name).mkdir()
            if output.kind == "table":
                pointers.write(new / name, place, output)
                check_parts(new, name, output)
            else:
                for part in output.parts:
                    _write_file(place, pointers.object_name(part), _below(new, name, part.file), "sha256", part.sha256)
    except (Absent, FileNotFoundError, _Damaged):
        shutil.rmtree(new)
        new.mkdir()
        return None
    return manifest


def renew(place: Place, commit: Commit, new: Path) -> None:
    """Puts the manifest of a commit that was fetched into `new` again: `flywheel gc` keeps what was taken within the last day as
    it does what was made then, for nobody has pushed it yet.
    """
    path = f"manifests/{commit.stage}.json"
    place.put_file(f"{FILES}{commit.files[path]}", new / path)


class _Damaged(StoreError):
    """An object that is not what was put."""


def _below(new: Path, *names: str) -> Path:
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in names):
        raise _Damaged(f"{'/'.join(names)!r} is no name of a file of a result")
    return new.joinpath(*names)


def _write_file(place: Place, name: str, path: Path, kind: str, digest: str) -> None:
    hashed, entry = hashlib.new(kind, usedforsecurity=False), place.entry(name)
    if entry is None:
        raise Absent(f"{place.address(name)} is missing")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for start in range(0, entry.bytes, CHUNK):
            chunk = place.read(name, start, min(start + CHUNK, entry.bytes))
            hashed.update(chunk)
            file.write(chunk)
    if hashed.hexdigest() != digest:
        raise _Damaged(f"{place.address(name)} is not what was written")


def check_parts(new: Path, name: str, output: Output) -> None:
    """Refuses a table in `new` of which a part is missing, or has another size, or was found to be changed when it was read.

    Raises:
        StoreError: naming the first.
    """
    from tasks.core import remembered

    root = new.parents[4]
    for _, damage in remembered.damages(root, [(new / name, output)], read=False):
        raise _Damaged(damage)
