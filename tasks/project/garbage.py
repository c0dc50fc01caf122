"""What of a bucket nothing names any more: parts, commits and receipts of results that no revision of git and no working tree has.

A part is kept where a manifest names it that lies in a working tree of this repository (experiments of DVC that run included),
or whose MD5 stands in the dvc.lock of any revision that a branch, a tag, a stash, a remote's branch, an experiment or the reflog
reaches; and where a receipt of a stage that was at work within the last day names it. What is younger than a day is kept, for its
commit may be under way.

A bucket's prefix belongs to one repository, and this looks at one clone: what others have not pushed, or what was not fetched, is
not seen. A listing that lags does no harm: it leaves new objects out, and each old one is asked for once more before it goes.
"""

import hashlib
import json
import re
import subprocess
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tasks.core import pointers
from tasks.core.commits import COMMITS, FILES, PARTS, RECEIPTS, Commit
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
    """Objects that nothing names and that are younger than a day."""
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
    locks = list(_locks(root))
    locked = {item for lock in locks for item in _small_files(lock)}
    here = list(_stored_manifests(root))
    fetched, elsewhere = _fetch(root, place, {md5 for folder, md5 in locked if folder == "manifests"})
    named = {md5 for _, md5 in locked} | {md5 for _, small in here for md5 in small}
    keep = {pointers.object_name(part) for m in [*(m for m, _ in here), *fetched] for part in _parts(m)}
    keep |= {f"{FILES}{md5}" for md5 in named}
    entries, now = list(place.entries()), time.time()
    receipts = _working([e for e in entries if e.name.startswith(RECEIPTS)], now)
    keep |= {e.name for e in receipts} | set(_named_by(place, receipts))
    made = [e for e in entries if e.name.startswith(COMMITS)]
    with ThreadPoolExecutor(THREADS) as threads:
        commits = dict(zip((e.name for e in made), threads.map(lambda e: _manifest_of(place, e), made), strict=True))
    keep |= set(_commits_of(commits, named))
    ours = [e for e in entries if e.name.startswith((PARTS, FILES, COMMITS, RECEIPTS)) and e.name not in keep]
    old = [e for e in ours if now - e.modified > DAY]
    rounds = {name.split("/")[1] for name in (e.name for e in old) if name.startswith(COMMITS)}
    return Garbage(
        place, len(keep & {e.name for e in entries}), len(ours) - len(old), old, len(locks), rounds, elsewhere
    )


def delete(garbage: Garbage) -> int:
    """Deletes what nothing names, and returns how many objects. One that was put again meanwhile stays."""
    with ThreadPoolExecutor(THREADS) as threads:
        return sum(threads.map(lambda entry: _delete(garbage.place, entry), garbage.unnamed))


def _delete(place: Place, entry: Entry) -> bool:
    now = place.entry(entry.name)
    if now is None or time.time() - now.modified <= DAY:
        return False
    place.delete(entry.name)
    return True


# What git has


def _git(root: Path, *arguments: str, text: str | None = None) -> str | None:
    """What git prints; None where the project is in no repository, or has no commit."""
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, input=text, check=False)
    return done.stdout if done.returncode == 0 else None


def _locks(root: Path) -> Iterator[str]:
    """Every dvc.lock of the working tree and of git's revisions, each once."""
    if (root / lockfile.FILE).is_file():
        yield (root / lockfile.FILE).read_text(encoding="utf-8")
    if _git(root, "rev-parse", "--is-shallow-repository") == "true\n":
        raise FlywheelError("this clone is shallow, so revisions that name parts are missing: `git fetch --unshallow`")
    listed = _git(root, "rev-list", "--all", "--reflog", "--objects", "--", lockfile.FILE) or ""
    ids = [line.split()[0] for line in listed.splitlines() if line.endswith(lockfile.FILE)]
    for start in ids:
        yield _git(root, "cat-file", "blob", start) or ""


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
    listed = _git(root, "worktree", "list", "--porcelain") or ""
    prefix = (_git(root, "rev-parse", "--show-prefix") or "").strip()
    places = [
        Path(line.removeprefix("worktree ")) / prefix for line in listed.splitlines() if line.startswith("worktree ")
    ]
    for place in dict.fromkeys([root.resolve(), *(p.resolve() for p in places)]):
        yield place
        yield from (p for p in (place / ".dvc/tmp/exps").glob("*") if p.is_dir())


def _stored_manifests(root: Path) -> Iterator[tuple[Manifest, list[str]]]:
    """Every manifest in a working tree, and the MD5s of the small files beside it."""
    for tree in _trees(root):
        for folder in (tree / "data").glob("round=*"):
            places = [folder, *folder.glob(".staging/*/ready")]
            for path in (p for place in places for p in sorted((place / "manifests").glob("*.json"))):
                beside = [path, path.parents[1] / "metrics" / path.name, *(path.parents[1] / "plots").glob("*")]
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


def _manifest_of(place: Place, entry: Entry) -> str:
    """The MD5 of the manifest of a commit."""
    try:
        commit = Commit.model_validate_json(place.read(entry.name))
        return commit.files[f"manifests/{commit.stage}.json"]
    except (Absent, ValidationError, KeyError):
        return ""


def _commits_of(commits: dict[str, str], named: set[str]) -> Iterator[str]:
    """The commits to keep: all versions of those of which one is named, for they are numbered."""
    kept = {name.rpartition("-")[0] for name, md5 in commits.items() if md5 in named}
    yield from (name for name in commits if name.rpartition("-")[0] in kept)
