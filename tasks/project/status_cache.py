"""Which stages DVC found up to date, remembered, so that it is not asked again where nothing that it looks at was touched.

DVC takes 10 ms a stage to say that nothing changed. So what it found is kept in data/cache/fresh.json: for each stage that it
called up to date a digest of all that it had looked at. That is the stage's entry in dvc.lock, its command, dependencies and
outputs in dvc.yaml, DVC's settings, and size, time and inode of every file among dependencies, outputs and their objects in DVC's
cache, by which DVC itself knows a file again. Where any of it is another, where dvc.yaml is not as it is rendered, or where a
file was touched a moment before, DVC is asked. The file may be deleted at any time.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from stat import S_ISDIR
from typing import Any

from pydantic import BaseModel

from tasks.core.manifest import SETTLED
from tasks.project import lockfile, pipeline
from tasks.project.params import Pipeline

FILE = Path("data/cache/fresh.json")
IGNORED = ("__pycache__", ".staging")
"""Folders of .dvcignore that lie among dependencies and outputs."""
OUTS = re.compile(r"^    outs:\n((?:    [- ] .*\n)*)", re.MULTILINE)
OID = re.compile(r"^ {6,}md5: ([0-9a-f]{32}(?:\.dir)?)$", re.MULTILINE)
Seen = dict[str, tuple[str, list[str]]]
"""Address of a stage → digest of what DVC looks at, and the objects that its outputs have in DVC's cache."""


class Kept(BaseModel):
    """The file."""

    cache: str
    """Folder of DVC's objects, from the project's."""
    settings: dict[str, str]
    """Stamps of DVC's settings when it was asked, those of the user and the machine among them."""
    stages: Seen


@dataclass
class Memory:
    """What is remembered of a project, and what is there now."""

    root: Path
    params: Pipeline
    kept: Kept = field(default_factory=lambda: Kept(cache="", settings={}, stages={}))
    stamps: dict[str, str] = field(default_factory=dict)
    newest: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, root: Path, params: Pipeline) -> "Memory":
        """The memory of a project; an empty one where DVC's settings are not those that were."""
        try:
            kept = Kept.model_validate_json((root / FILE).read_bytes())
        except (OSError, ValueError):  # none yet, or not this file
            return cls(root, params)
        memory = cls(root, params, kept)
        same = all(memory._stamp(path) == stamp for path, stamp in kept.settings.items())
        return memory if same and kept.settings else cls(root, params)

    @cached_property
    def entries(self) -> lockfile.Entries:
        """dvc.lock's."""
        return lockfile.read(self.root)

    @cached_property
    def definitions(self) -> Mapping[str, pipeline.Definition]:
        """Those stages of dvc.yaml that are as they are rendered."""
        return pipeline.definitions(self.root, self.params)

    def is_fresh(self, address: str) -> bool:
        """Whether DVC called a stage up to date, and all that it looked at is as it was."""
        if address not in self.kept.stages:
            return False
        digest, objects = self.kept.stages[address]
        return digest == self._digest(address, objects)

    def _digest(self, address: str, objects: Iterable[str]) -> str | None:
        """Digest of what DVC looks at; None where it cannot be told, or where that may change yet unseen."""
        entry, definition = self.entries.get(address), self.definitions.get(address)
        if entry is None or definition is None:
            return None
        paths = [*definition.paths, *(f"{self.kept.cache}/{oid[:2]}/{oid[2:]}" for oid in objects)]
        parts = [entry, definition.text, *(self._stamp(path) for path in paths)]
        if max((self.newest.get(path, 0) for path in paths), default=0) > time.time_ns() - SETTLED:
            return None
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def _stamp(self, path: str) -> str:
        """Size, time and inode of a file, or of all files of a folder."""
        if path not in self.stamps:
            lines, newest = [], 0
            for name, stat in _files(str(self.root / path)):
                lines.append(f"{name}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}")
                newest = max(newest, stat.st_mtime_ns, stat.st_ctime_ns)
            self.stamps[path] = "\n".join(sorted(lines)) or ("folder" if (self.root / path).is_dir() else "none")
            self.newest[path] = newest
        return self.stamps[path]

    def forget(self) -> None:
        """Forgets what is there now, after it was changed; what DVC found stays remembered."""
        self.stamps, self.newest = {}, {}
        for kept in ("entries", "definitions"):
            self.__dict__.pop(kept, None)

    def look(self, repo: Any, addresses: Iterable[str]) -> Seen:
        """What is remembered of these stages if DVC, which is asked afterwards, finds them up to date."""
        self.kept.cache = os.path.relpath(repo.cache.local.path, self.root.resolve())
        self.kept.settings = {path: self._stamp(path) for path in (".dvcignore", *repo.config.files.values())}
        seen: Seen = {}
        for address in addresses:
            objects = sorted(_objects(self.root / self.kept.cache, self.entries.get(address, "")))
            if digest := self._digest(address, objects):
                seen[address] = digest, objects
        return seen

    def keep(self, seen: Seen, asked: Iterable[str]) -> None:
        """Remembers the stages that DVC found up to date of those that it was asked about."""
        known, asked = self.kept.stages, set(asked)
        self.kept.stages = {n: kept for n, kept in known.items() if n not in asked} | dict(seen)
        path = self.root / FILE
        new = path.with_name(f"{path.name}.{os.getpid()}.new")
        with suppress(OSError):  # a full or read-only disk: DVC will be asked again
            path.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(self.kept.model_dump_json(), encoding="utf-8")
            new.replace(path)


def _files(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """The file at a path, or those below it, each with its path from there; nothing where nothing is."""
    try:
        stat = os.stat(path)
    except OSError:
        return
    if not S_ISDIR(stat.st_mode):
        yield "", stat
        return
    for name in os.listdir(path):
        if name not in IGNORED:
            inner = [(f"/{name}{below}", found) for below, found in _files(f"{path}/{name}")]
            yield from inner or [(f"/{name}", os.lstat(f"{path}/{name}"))]  # a link to nothing, an empty folder


def _objects(cache: Path, entry: str) -> Iterator[str]:
    """The objects in DVC's cache that the outputs of an entry have."""
    for block in OUTS.findall(entry):
        for oid in OID.findall(block):
            yield oid
            listing = cache / oid[:2] / oid[2:]
            if oid.endswith(".dir") and listing.is_file():
                with suppress(ValueError, TypeError, KeyError):  # damaged: DVC says what that makes stale
                    yield from [part["md5"] for part in json.loads(listing.read_bytes())]
