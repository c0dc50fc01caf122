"""What of a bucket nothing names any more: parts, commits and receipts of results that no revision of git and no working tree has.

A part is kept where a manifest names it that lies in a working tree of this repository (experiments of DVC that run included),
or whose MD5 stands in the dvc.lock of any revision that a branch, a tag, a stash, a remote's branch, an experiment or the reflog
reaches; where a commit of the last day names it, made or taken on any machine; and where a receipt of a stage that was at work
within the last day does. What is younger than a day is kept, for its commit may be under way. Ages are by the store's clock.

What names others goes first: a kill in between leaves nothing that names what is gone.

A bucket's prefix belongs to one repository, and this looks at one clone: what others have not pushed, or what was not fetched, is
not seen. A listing that lags does no harm: it leaves new objects out, and each old one is asked for once more before it goes.
"""

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import ValidationError

from tasks.core import pointers
from tasks.core.commits import COMMITS, FILES, PARTS, PROBE, RECEIPTS, Commit
from tasks.core.errors import FlywheelError, StoreError
from tasks.core.manifest import Manifest, Part, read_manifest
from tasks.core.objects import Absent, Entry, Place
from tasks.project import lockfile

DAY = 24 * 3600.0
"""Seconds for which an object is kept whatever names it."""
THREADS = 16
SMALL = re.compile(r"data/round=[^/]+/(manifests|metrics|plots)/[^/]+")
"""The small files of a stage, of which the bucket has copies by their MD5."""


@dataclass(frozen=True)
class Garbage:
    """What may be deleted."""

    place: Place
    kept: int
    """Objects that something names."""
    young: int
    """Objects that nothing names but a commit of the last day, or that are younger than a day."""
    unnamed: list[Entry]
    """What may go, by name."""
    revisions: int
    """Versions of dvc.lock in git."""
    rounds: set[str] = field(default_factory=set)
    """Whose commits are among it."""
    elsewhere: int = 0
    """Manifests in dvc.lock of which neither the bucket nor DVC's cache has a copy: their parts were never here."""


def find(root: Path, place: Place) -> Garbage:
    """Lists the bucket and what names its objects.

    Raises:
        FlywheelError: in a shallow clone, which lacks revisions; for a manifest that cannot be read.
    """
    entries, now = list(place.entries()), _now(place)
    receipts = _working([e for e in entries if e.name.startswith(RECEIPTS)], now)
    at_work = set(_named_by(place, receipts))  # first: a stage commits, and deletes its receipts then
    made = list(place.entries(COMMITS))
    with ThreadPoolExecutor(THREADS) as threads:
        commits = dict(zip((e.name for e in made), threads.map(lambda e: _commit(place, e), made), strict=True))
    written = {e.name: e.modified for e in [*entries, *made]}
    recent = [c for name, c in commits.items() if c and now - _last_use(name, c, written) <= DAY]
    locks = _locks(root)
    locked = {item for lock in locks for item in _small_files(lock)}
    here = list(_stored_manifests(root))
    fetched, elsewhere = _fetch(root, place, {md5 for folder, md5 in locked if folder == "manifests"})
    taken, _ = _fetch(root, place, {md5 for md5 in map(_manifest_of, recent) if md5})
    named = {md5 for _, md5 in locked} | {md5 for _, small in here for md5 in small}
    keep = {pointers.object_name(part) for m in [*(m for m, _ in here), *fetched] for part in _parts(m)}
    keep |= {f"{FILES}{md5}" for md5 in named} | {e.name for e in receipts} | at_work
    keep |= set(_commits_of(commits, named))
    ours = [e for e in entries if _is_ours(e.name) and e.name not in keep]
    young = {pointers.object_name(part) for manifest in taken for part in _parts(manifest)}
    young |= {f"{FILES}{md5}" for commit in recent for md5 in commit.files.values()}
    young |= set(_commits_of(commits, {md5 for commit in recent for md5 in commit.files.values()}))
    old = [e for e in ours if now - e.modified > DAY and e.name not in young]
    rounds = {name.split("/")[1] for name in (e.name for e in old) if name.startswith(COMMITS)}
    return Garbage(
        place, len(keep & {e.name for e in entries}), len(ours) - len(old), old, len(locks), rounds, elsewhere
    )


def delete(root: Path, garbage: Garbage) -> int:
    """Deletes what nothing names, and returns how many objects. One that was put again meanwhile stays, and so does what a
    working tree names by now.
    """
    naming = [e for e in garbage.unnamed if e.name.startswith((COMMITS, RECEIPTS))]
    deleted = _delete_all(garbage.place, naming)
    taken = {pointers.object_name(part) for manifest, _ in _stored_manifests(root) for part in _parts(manifest)}
    rest = [e for e in garbage.unnamed if e not in naming and e.name not in taken]
    return deleted + _delete_all(garbage.place, rest)


def _delete_all(place: Place, entries: list[Entry]) -> int:
    with ThreadPoolExecutor(THREADS) as threads:
        return sum(threads.map(lambda entry: _delete(place, entry), entries))


def _delete(place: Place, entry: Entry) -> bool:
    now = place.entry(entry.name)
    if now is None or now.modified > entry.modified + 1:  # in whole seconds here, in parts of them in a listing
        return False
    place.delete(entry.name)
    return True


def _is_ours(name: str) -> bool:
    """Whether it is an object of a project, and no mark of a folder that some tools put."""
    return name.startswith((PARTS, FILES, COMMITS, RECEIPTS)) and not name.endswith("/")


def _now(place: Place) -> float:
    """Seconds since 1970 by the store's clock, which writes down when an object was put: this machine's may be days off."""
    name = f"{PROBE}-{uuid4().hex}"
    place.put_once(name, b"")
    try:
        entry = place.entry(name)
    finally:
        place.delete(name)
    if entry is None:
        raise StoreError(f"{place.url} does not have what was put a moment ago; `flywheel doctor`")
    return entry.modified


# What git has


def _git(root: Path, *arguments: str) -> str:
    """What git prints; nothing where the project is in no repository.

    Raises:
        FlywheelError: when git cannot say it, for then everything would seem to be named by nothing.
    """
    if "GIT_DIR" not in os.environ and not any(
        (p / ".git").exists() for p in [root.resolve(), *root.resolve().parents]
    ):
        return ""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, encoding="utf-8", errors="replace", check=False
        )
    except FileNotFoundError as error:
        raise FlywheelError(
            "git is not installed, so what its revisions name is not known; nothing is deleted"
        ) from error
    if done.returncode:
        raise FlywheelError(
            f"`git {arguments[0]}` fails, so what revisions name is not known and nothing is deleted: {done.stderr.strip()}"
        )
    return done.stdout


def _locks(root: Path) -> list[str]:
    """Every dvc.lock of the working trees and of git's revisions, of those too that a merge did not take, or that lay in another
    folder then.
    """
    here = [
        (tree / lockfile.FILE).read_text(encoding="utf-8") for tree in _trees(root) if (tree / lockfile.FILE).is_file()
    ]
    if _git(root, "rev-parse", "--is-shallow-repository") == "true\n":
        raise FlywheelError("this clone is shallow, so revisions that name parts are missing: `git fetch --unshallow`")
    every = ("rev-list", "--all", "--reflog", "--indexed-objects", "--objects")
    listed = _git(root, *every) + _git(root, *every, "--full-history", "--", lockfile.FILE)
    ids = dict.fromkeys(line.split()[0] for line in listed.splitlines() if line.endswith(lockfile.FILE))
    return here + [_git(root, "cat-file", "blob", found) for found in ids]


def _small_files(lock: str) -> Iterator[tuple[str, str]]:
    """Folder and MD5 of the manifests, metrics and plots in a dvc.lock, on both sides of one that was left in a conflict.

    Raises:
        FlywheelError: when it names manifests in a way that cannot be read.
    """
    folder, found = "", False
    for line in lock.splitlines():
        key, _, value = line.strip().removeprefix("- ").partition(": ")
        if key == "path":
            match = SMALL.fullmatch(value.strip("'\""))
            folder = match[1] if match else ""
        elif key == "md5" and folder:
            yield folder, value
            found = True
    if not found and "manifests/" in lock:  # somebody formatted it
        yield from _parsed(lock)


def _parsed(lock: str) -> Iterator[tuple[str, str]]:
    from ruamel.yaml import YAML, YAMLError

    try:
        stages: dict[str, Any] = (YAML(typ="safe").load(lock) or {}).get("stages") or {}
        outs = [out for stage in stages.values() for out in stage.get("outs", ())]
        yield from [(match[1], out["md5"]) for out in outs if (match := SMALL.fullmatch(out["path"]))]
    except (YAMLError, AttributeError, TypeError, KeyError) as error:
        raise FlywheelError(
            f"a version of dvc.lock cannot be read ({type(error).__name__}), so what it names is not known:\n{lock[:200]}"
        ) from error


# Manifests


def _trees(root: Path) -> Iterator[Path]:
    """The project in each working tree of the repository, and in the temporary ones of DVC's experiments."""
    listed = _git(root, "worktree", "list", "--porcelain")
    prefix = _git(root, "rev-parse", "--show-prefix").strip()
    places = [
        Path(line.removeprefix("worktree ")) / prefix for line in listed.splitlines() if line.startswith("worktree ")
    ]
    for place in dict.fromkeys([root.resolve(), *(p.resolve() for p in places)]):
        yield place
        experiments = place / ".dvc/tmp/exps"  # of a queue; those of `dvc exp run --temp` lie one folder deeper
        clones = (p / prefix for kind in ("*", "standalone/*") for p in experiments.glob(kind))
        yield from (p for p in clones if p.is_dir())


def _stored_manifests(root: Path) -> Iterator[tuple[Manifest, list[str]]]:
    """Every manifest in a working tree, and the MD5s of the small files beside it."""
    for tree in _trees(root):
        for folder in (tree / "data").glob("round=*"):
            places = [*folder.glob(".staging/*/ready"), folder]  # in the order in which a commit moves
            for path in (p for place in places for p in sorted((place / "manifests").glob("*.json"))):
                beside = [path, path.parents[1] / "metrics" / path.name, *(path.parents[1] / "plots").glob("*")]
                with suppress(FileNotFoundError):  # it was moved into place meanwhile
                    yield read_manifest(path), [_md5(p.read_bytes()) for p in beside if p.is_file()]


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _parts(manifest: Manifest) -> list[Part]:
    return [part for output in manifest.outputs.values() for part in output.parts]


def _fetch(root: Path, place: Place, md5s: set[str]) -> tuple[list[Manifest], int]:
    """The manifests that dvc.lock names, from DVC's cache or the bucket, and of how many neither has a copy."""
    cached = _cache(root)

    def read(md5: str) -> Manifest | None:
        path = cached(md5)
        try:
            content = path.read_bytes() if path and path.is_file() else place.read(f"{FILES}{md5}")
            if _md5(content) != md5:
                content = place.read(f"{FILES}{md5}")
            return Manifest.model_validate_json(content)
        except Absent:
            return None
        except ValidationError as error:
            raise StoreError(f"the manifest {md5} is damaged, so what it names is not known; `dvc fetch`") from error

    with ThreadPoolExecutor(THREADS) as threads:
        found = list(threads.map(read, sorted(md5s)))
    return [manifest for manifest in found if manifest], found.count(None)


def _cache(root: Path) -> Any:
    """Where DVC has a file of an MD5."""
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            place = repo.cache.local
    except NotDvcRepoError:
        return lambda md5: None
    return lambda md5: Path(place.oid_to_path(md5))


# Receipts and commits


def _working(entries: Iterable[Entry], now: float) -> list[Entry]:
    """Receipts of stages that were at work within the last day."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.name.split("/")[1], []).append(entry)
    return [e for group in groups.values() if now - max(e.modified for e in group) <= DAY for e in group]


def _named_by(place: Place, receipts: list[Entry]) -> Iterator[str]:
    """The parts that receipts name."""

    def read(entry: Entry) -> list[str]:
        try:
            content = json.loads(place.read(entry.name)) if entry.name.endswith(".json") else {}
            return [pointers.object_name(Part.model_validate(part)) for part in content.get("parts", ())]
        except (Absent, ValueError):  # a stage ended meanwhile, or a damaged one, which the stage makes again
            return []

    with ThreadPoolExecutor(THREADS) as threads:
        for names in threads.map(read, receipts):
            yield from names


def _commit(place: Place, entry: Entry) -> Commit | None:
    """A commit; None where it is damaged or was deleted meanwhile."""
    try:
        return Commit.model_validate_json(place.read(entry.name))
    except (Absent, ValidationError):
        return None


def _manifest_of(commit: Commit) -> str | None:
    """The MD5 of its manifest."""
    return commit.files.get(f"manifests/{commit.stage}.json")


def _last_use(name: str, commit: Commit, written: dict[str, float]) -> float:
    """When a commit was made, or taken, which puts its manifest again."""
    return max(written[name], written.get(f"{FILES}{_manifest_of(commit)}", 0.0))


def _commits_of(commits: dict[str, Commit | None], named: set[str]) -> Iterator[str]:
    """The commits to keep: all versions of those of which one is named, for they are numbered."""
    kept = {name.rpartition("-")[0] for name, commit in commits.items() if commit and _manifest_of(commit) in named}
    yield from (name for name in commits if name.rpartition("-")[0] in kept)
