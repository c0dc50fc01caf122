"""Verifies what is stored: every file against the manifest that names it, and against dvc.lock.

Parts in a bucket are read, too. A manifest holds the sha256 of every part, dvc.lock the MD5 of every output. Files are read once,
several at a time, and both digests are taken of the same bytes; without a dvc.lock only the first. A manifest also holds the plan
and the inputs that a result was made by, dvc.lock those that DVC takes it to be of.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, NamedTuple

from rich.console import Console
from rich.text import Text
from ruamel.yaml import YAML, YAMLError

from tasks.core import models, pointers, store
from tasks.core.errors import FlywheelError, StoreError, UnknownName
from tasks.core.objects import SCHEME, Absent
from tasks.core.plan import FOLDER
from tasks.core.pointers import ObjectPath, StoredPath
from tasks.core.stage import stages
from tasks.project import freshness
from tasks.views import provenance
from tasks.views.trace import printer

LOCK = Path("dvc.lock")
CHUNK = 1 << 18
"""Bytes that are read at a time: few enough that the second digest finds them in the processor's cache."""
MODEL = "model"
IGNORED = (".gitignore", ".dvcignore")
"""Files that DVC and git write beside outputs."""
Kind = Literal[
    "missing", "changed", "extra", "unreadable", "unknown to dvc.lock", "differs from dvc.lock", "made otherwise"
]
Lock = dict[str, dict[str, Any]]
"""Path of an output → its entry in dvc.lock, with the `address` of its stage and the MD5 of each of that one's `deps`."""


class Digests(NamedTuple):
    """Of a file's bytes."""

    sha256: str
    md5: str
    bytes: int


Files = dict[str, Digests]
"""The files of a round, by their path below its folder, and the parts that it has in a bucket, by their URL."""


class Finding(NamedTuple):
    """A file or output that is not as it was written."""

    kind: Kind
    path: str
    what: str


@dataclass(frozen=True)
class Verified:
    """What was read, and what was found."""

    rounds: int
    files: int
    bytes: int
    seconds: float
    has_lock: bool
    findings: list[Finding]


def show(root: Path, rounds: Iterable[str] = (), with_provenance: bool = False, console: Console | None = None) -> int:
    """Prints every finding and what was read; returns the exit code."""
    console = console or printer()
    lock = read_lock(root)
    names = stored_rounds(root, lock, rounds)
    with console.status("reading every file"):
        result = verify(root, names, lock)
    for finding in result.findings:
        console.print(Text.assemble((f"{finding.kind}  ", "red"), finding.path, (f"  {finding.what}", "dim")))
    console.print(Text(_summary(result)))
    broken = {f.path.startswith(SCHEME) for f in result.findings if f.kind in ("missing", "changed")}
    for in_bucket in sorted(broken):
        what, mend = ("an object", store.REWRITE) if in_bucket else ("a file", store.RESTORE)
        console.print(Text(f"To mend {what}, {mend}", "dim"))
    if not with_provenance:
        return int(bool(result.findings))
    shares = provenance.walk(root, names)
    provenance.show(shares, console)
    return int(bool(result.findings) or any(share.strays for share in shares))


def stored_rounds(root: Path, lock: Lock | None, rounds: Iterable[str] = ()) -> list[str]:
    """These bases and rounds, or all that are on disk or in dvc.lock.

    Raises:
        UnknownName: for one of which nothing is stored.
        FlywheelError: when nothing is stored at all.
    """
    paths = [*(root / "data").glob("round=*"), *(Path(path).parent for path in lock or ())]
    folders = (part for path in paths for part in path.parts if part.startswith("round="))
    stored = sorted({folder.removeprefix("round=") for folder in folders})
    if not stored:
        raise FlywheelError("no stage has stored anything yet; `flywheel run r1` makes the round r1")
    for name in rounds:
        if name not in stored:
            raise UnknownName("stored round or base", name, stored)
    return list(rounds) or stored


def verify(root: Path, rounds: Iterable[str], lock: Lock | None) -> Verified:
    """Compares the files of rounds with their manifests and with dvc.lock.

    A round that seems damaged is read again while no stage commits in it, for a commit is no damage.
    """
    clock = perf_counter()
    hashed = _hashed(root, rounds, lock)
    findings = {name: _findings(root, name, lock, files) for name, files in hashed.items()}
    for name in (n for n, found in findings.items() if found):
        findings[name] = store.steady(root, [name], partial(_read_again, root, name, lock))
    files = [digests for of_round in hashed.values() for digests in of_round.values()]
    found = [finding for of_round in findings.values() for finding in of_round]
    total = sum(digests.bytes for digests in files)
    return Verified(len(hashed), len(files), total, perf_counter() - clock, lock is not None, found)


def read_lock(root: Path) -> Lock | None:
    """The outputs that dvc.lock holds; None where there is no lock.

    Raises:
        StoreError: when the file is not a lock.
    """
    path = root / LOCK
    if not path.is_file():
        return None
    try:
        locked = (YAML(typ="safe").load(path.read_text(encoding="utf-8")) or {}).get("stages") or {}
        return {
            out["path"]: out | {"address": name, "deps": {dep["path"]: dep.get("md5") for dep in stage.get("deps", ())}}
            for name, stage in locked.items()
            for out in stage.get("outs", ())
        }
    except (YAMLError, AttributeError, TypeError, KeyError) as error:
        raise StoreError(f"{path}: not a lock of DVC ({type(error).__name__}); `dvc commit` writes it again") from None


# Reading


def _read_again(root: Path, name: str, lock: Lock | None) -> list[Finding]:
    return _findings(root, name, lock, _hashed(root, [name], lock)[name])


def _hashed(root: Path, rounds: Iterable[str], lock: Lock | None) -> dict[str, Files]:
    """The digests of every file of each round, but of those that are being written."""
    places = {name: store.round_folder(root, name) for name in rounds}
    paths = {name: list(_paths(place)) for name, place in places.items()}
    with ThreadPoolExecutor() as threads:
        digests = threads.map(partial(_digests, locked=lock is not None), chain.from_iterable(paths.values()))
        read = {n: list(zip(own, islice(digests, len(own)), strict=True)) for n, own in paths.items()}
    return {n: {_key(places[n], path): d for path, d in own if d} for n, own in read.items()}


def _key(place: Path, path: StoredPath) -> str:
    return path.relative_to(place).as_posix() if isinstance(path, Path) else str(path)


def _paths(place: Path) -> Iterator[StoredPath]:
    store.recover(place)
    for folder, folders, files in os.walk(place, followlinks=True):
        folders[:] = sorted(f for f in folders if f != ".staging")
        yield from (Path(folder) / f for f in sorted(files) if f not in IGNORED)
        if pointers.POINTER in files:
            with suppress(StoreError):  # it is a finding of its own
                yield from pointers.objects_of(pointers.read(Path(folder)), Path(folder))


def _digests(path: StoredPath, locked: bool) -> Digests | None:
    """None for a file that is gone: a stage committed meanwhile, or it is a link to nothing. MD5 only for dvc.lock."""
    if isinstance(path, ObjectPath):
        try:
            return Digests(path.sha256(), "", path.stat().st_size)
        except (Absent, FileNotFoundError):
            return None
    sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    buffer = memoryview(bytearray(CHUNK))
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                sha256.update(buffer[:count])
                if locked:
                    md5.update(buffer[:count])
                size += count
    except FileNotFoundError:
        return None
    return Digests(sha256.hexdigest(), md5.hexdigest(), size)


# Comparing


def _findings(root: Path, name: str, lock: Lock | None, files: Files) -> list[Finding]:
    folder = store.round_folder(root, name)
    manifests: dict[str, store.Manifest] = {}
    found: list[Finding] = []
    for file in (f for f in files if f.startswith("manifests/")):
        try:
            manifests[Path(file).stem] = store.read_manifest(folder / file)
        except FileNotFoundError:  # a stage committed meanwhile: the round is read again
            found.append(Finding("missing", file, store.REMAKE))
        except StoreError as error:
            found.append(Finding("unreadable", file, str(error).removeprefix(f"{folder / file}: ")))
    lost = store.lost_manifests(root, name, (Path(f).stem for f in files if f.startswith("manifests/")))
    found += [Finding("missing", f"manifests/{stage}.json", store.REMAKE) for stage in lost]
    found += [*_against_manifests(folder, manifests, files), *_pointed_at(folder, files)]
    place = folder.relative_to(root).as_posix()
    if lock is not None:
        entries = {path.removeprefix(f"{place}/"): e for path, e in lock.items() if path.startswith(f"{place}/")}
        found += [*_against_lock(manifests, entries, files)]
        for manifest in manifests.values():
            with suppress(StoreError, KeyError):  # damaged, which is a finding of its own; a stage of an older version
                found += [*_made_otherwise(root, manifest, lock)]
    return [Finding(k, path if path.startswith(SCHEME) else f"{place}/{path}", what) for k, path, what in found]


def _against_manifests(folder: Path, manifests: dict[str, store.Manifest], files: Files) -> Iterator[Finding]:
    parts: dict[str, store.Part] = {}
    for name, output in ((name, output) for m in manifests.values() for name, output in m.outputs.items()):
        try:
            paths = store.paths(folder / name, output)
        except StoreError as error:
            yield Finding("changed", f"{name}/{pointers.POINTER}", str(error).partition(": ")[2])
            continue
        parts |= {_key(folder, path): part for path, part in zip(paths, output.parts, strict=True)}
    for file, part in parts.items():
        if file not in files:
            yield Finding("missing", file, f"its manifest names it, with {part.bytes:,} bytes")
        elif files[file].sha256 != part.sha256:
            yield Finding("changed", file, _difference(files[file], part))
    known = {
        *parts,
        *_beside(manifests),
        *(f for f in files if f.startswith(SCHEME) or f.endswith(f"/{pointers.POINTER}")),
    }
    for file in (f for f in files if f not in known and not f.startswith("manifests/")):
        yield Finding("extra", file, "no manifest names it")


def _pointed_at(folder: Path, files: Files) -> Iterator[Finding]:
    """The model that a pointer stands for, whose files lie outside the round."""
    pointer = f"{MODEL}/{models.POINTER}"
    if pointer in files:
        try:
            models.resolve(folder / MODEL)
        except FlywheelError as error:
            yield Finding("changed", pointer, f"what it points to: {error}")


def _beside(manifests: Iterable[str]) -> Iterator[str]:
    """The small files that stages write beside their outputs."""
    for stage in manifests:
        yield f"metrics/{stage}.json"
        yield from (f"plots/{plot}.csv" for plot in (stages()[stage].plots if stage in stages() else ()))


def _difference(found: Digests, part: store.Part) -> str:
    if found.bytes != part.bytes:
        return f"has {found.bytes:,} bytes, its manifest says {part.bytes:,}"
    return f"its sha256 is {found.sha256[:12]}…, its manifest says {part.sha256[:12]}…"


def _against_lock(manifests: dict[str, store.Manifest], entries: Lock, files: Files) -> Iterator[Finding]:
    for stage, manifest in manifests.items():
        for output in (o for o in (f"manifests/{stage}.json", *manifest.outputs) if o not in entries):
            what = f"`dvc commit --force {stage}@{manifest.round}` adds it"
            yield Finding("unknown to dvc.lock", output, what)
    for output, entry in entries.items():
        own = {f: d for f, d in files.items() if f == output or f.startswith(f"{output}/")}
        if not own:
            yield Finding("missing", output, f"{entry['address']} wrote it; `dvc checkout` restores it")
        elif entry.get("hash") == "md5" and _md5(output, own) != entry["md5"]:
            what = "`dvc commit --force {0}` keeps what is here, `dvc checkout --force {0}` restores what the lock has"
            yield Finding("differs from dvc.lock", output, what.format(entry["address"]))


def _made_otherwise(root: Path, manifest: store.Manifest, lock: Lock) -> Iterator[Finding]:
    """A result that DVC takes for that of another plan, or of other inputs, than its manifest says: an older one, which was
    committed for one that was never made. DVC would not run the stage.
    """
    file = f"manifests/{manifest.stage}.json"
    entry = _as_locked(root, lock, manifest.round, manifest.stage)
    if entry is None:
        return
    fix = f"`dvc repro --force --single-item {entry['address']}` makes it again"
    plan = entry["deps"].get((FOLDER / manifest.round / f"{manifest.stage}.json").as_posix())
    if plan and plan != _md5_of(manifest.plan.text.encode()):
        yield Finding("made otherwise", file, f"dvc.lock has it as the result of another plan; {fix}")
    for owner, name, digest in freshness.inputs_of(manifest):
        path = (store.round_folder(root, owner) / name).relative_to(root).as_posix()
        if path not in lock or entry["deps"].get(path) != lock[path]["md5"]:
            continue  # DVC knows that it is stale
        writer = lock[path]["address"].partition("@")[0].removesuffix("-base")
        if _as_locked(root, lock, owner, writer) and store.find(root, owner, name)[1].digest != digest:
            yield Finding("made otherwise", file, f"it read other {name} of {owner} than dvc.lock says; {fix}")


def _as_locked(root: Path, lock: Lock, name: str, stage: str) -> dict[str, Any] | None:
    """The entry in dvc.lock of a stage's manifest; None where that is another one."""
    path = store.round_folder(root, name) / f"manifests/{stage}.json"
    entry = lock.get(path.relative_to(root).as_posix())
    return entry if entry and path.is_file() and entry["md5"] == _md5_of(path.read_bytes()) else None


def _md5_of(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _md5(output: str, files: Files) -> str:
    """DVC's digest of an output: of the file, or of the folder's list of files."""
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree

    if output in files:
        return files[output].md5
    tree = Tree()
    for path, digests in files.items():
        tree.add(tuple(path.removeprefix(f"{output}/").split("/")), None, HashInfo("md5", digests.md5))
    tree.digest()
    return str(tree.oid)


def _summary(result: Verified) -> str:
    counts = Counter(finding.kind for finding in result.findings)
    speed = result.bytes / 1e9 / max(result.seconds, 1e-9)
    places = f"{result.rounds} bases and rounds" if result.rounds != 1 else "1 base or round"
    against = "manifests and dvc.lock" if result.has_lock else "manifests (there is no dvc.lock)"
    found = ", ".join(f"{n} {k if n == 1 else k.replace('differs', 'differ')}" for k, n in counts.items())
    found = found or "all as written"
    return (
        f"{result.files:,} files of {places}, {result.bytes / 1e9:.3g} GB in {result.seconds:.2f} s ({speed:.2f} GB/s), "
        f"against {against}: {found}"
    )
