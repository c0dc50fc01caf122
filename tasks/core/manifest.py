"""The manifest of a stage's result: what its file holds, and whether the file is what a stage wrote.

The last line of a manifest is the sha256 of all text before it, so that an edit, a flipped bit or a cut is found. A manifest of
another round or stage is refused, too. Manifests that were written before there was a digest end without one: they are read
as they are, and only `flywheel verify` finds an edit of them, by the MD5 in dvc.lock. Where the digest is gone or does not
stand at the end, nothing beside the known fields is accepted.
"""

import hashlib
import json
import os
import re
import time
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel

from tasks.core.errors import StoreError
from tasks.core.plan import Plan

SEAL = re.compile(rb',\n "digest": "([0-9a-f]{64})"\n\}\Z')
"""The end of a manifest's file: the digest of all bytes before it."""
SEAL_BYTES = 100
"""More than the seal has."""
ROUND = "round="
"""Begins the name of a round's folder."""
SETTLED = 100_000_000
"""Nanoseconds after a change of a file in which another change may have the same time of change: the clock of a file system
goes in steps of some milliseconds. What was read in that time is not remembered."""
MAX_KEPT = 4096
"""Manifests that are kept in memory."""
Stamp = tuple[int, int, int, int]
"""Size, times of modification and of change in nanoseconds, and inode of a file: another one is another content."""


class Part(BaseModel):
    """A file of an output: its path below the output, its size in bytes, its sha256; rows where it holds a table."""

    file: str
    bytes: int
    sha256: str
    rows: int | None = None
    first: str | None = None
    """Least prompt id of its rows; null where it has none, and in manifests from before it was recorded."""
    last: str | None = None
    """Greatest prompt id of its rows."""

    def model_post_init(self, _: Any) -> None:
        """Has all parts share the set of fields that were given, which pydantic keeps with each and which takes more memory than
        the part itself: tables of ten billion rows have half a million parts.
        """
        object.__setattr__(self, "__pydantic_fields_set__", FIELDS)


FIELDS = set(Part.model_fields)


class Output(BaseModel):
    """A table or folder that a stage wrote."""

    kind: Literal["table", "folder"]
    digest: str
    """sha256 over the parts' names and digests: equal content, equal digest."""
    rows: int | None = None
    parts: list[Part]


class Manifest(BaseModel):
    """Describes the result of a stage: its plan, outputs, inputs, metrics and cost."""

    round: str
    stage: str
    plan: Plan
    """Its parameters, code and files, with every default filled in."""
    outputs: dict[str, Output]
    inputs: dict[str, str]
    """Digest of every input by argument name; models that it may open are `parent_model` and so on."""
    plots: dict[str, str] = {}
    """sha256 of every plot's file, by its path; none in manifests that were written before these were kept."""
    versions: dict[str, str]
    metrics: dict[str, float]
    warnings: list[str] = []
    tokens: dict[str, int]
    usage: dict[str, dict[str, int]] = {}
    """`tokens` by the name under which the stage opened a model: `parent`, or that of a model of the roster."""
    seconds: dict[str, float]
    """`start` (process start-up, imports, model loading), `model`, `run`, and `write`, which includes lazy frames that are
    computed while they are written; of a stage that several workers did together, theirs added up."""
    gpus: list[str] = []
    """Kind of each GPU that the stage held; none on a CPU."""
    gpu_seconds: float = 0.0
    """Seconds for which it held them, summed over GPUs; waiting for another process does not count."""
    started: str
    finished: str

    @property
    def text(self) -> str:
        """The manifest as its file has it, with its digest."""
        body = self.model_dump_json(indent=1).removesuffix("\n}")
        return f'{body},\n "digest": "{hashlib.sha256(body.encode()).hexdigest()}"\n}}'

    def of_round(self, name: str) -> Self:
        """The same result as one of another round, for a scratch place."""
        return self.model_copy(update={"round": name, "plan": self.plan.model_copy(update={"round": name})})


def stamp(path: Path) -> Stamp:
    """What changes when a file does."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def is_settled(seen: Stamp) -> bool:
    """Whether a later change of the file would have another stamp."""
    return time.time_ns() - max(seen[1], seen[2]) > SETTLED


_kept: dict[str, tuple[Stamp, Manifest]] = {}


def read_manifest(path: Path) -> Manifest:
    """Reads a manifest; one that did not change since it was last read is not read again.

    Raises:
        StoreError: when the file is not a manifest, was changed since it was written, or is another round's or stage's.
    """
    name, seen = os.path.abspath(path), stamp(path)
    if (kept := _kept.get(name)) and kept[0] == seen:
        return kept[1]
    settled = is_settled(seen)  # before it is read: a change while it is would have the same stamp
    manifest = _parse(path)
    if settled:
        if len(_kept) >= MAX_KEPT:
            _kept.clear()
        _kept[name] = (seen, manifest)
    return manifest


def _parse(path: Path) -> Manifest:
    content = path.read_bytes()
    try:
        manifest = Manifest.model_validate_json(content)
        seal = SEAL.search(content, max(0, len(content) - SEAL_BYTES))
        unknown = [] if seal else sorted(json.loads(content).keys() - Manifest.model_fields.keys())
    except ValueError as error:
        raise StoreError(_refusal(path, f"not a manifest ({error.__class__.__name__})")) from error
    if seal and hashlib.sha256(content[: seal.start()]).hexdigest() != seal[1].decode():
        raise StoreError(_refusal(path, "was changed since a stage wrote it: its digest is that of another text"))
    if unknown:
        raise StoreError(_refusal(path, f"was changed since a stage wrote it: {unknown[0]!r} does not belong there"))
    _check_place(path, manifest)
    return manifest


def _check_place(path: Path, manifest: Manifest) -> None:
    """Refuses what was written for another round or stage."""
    folder = path.parent.parent.name
    own = folder.removeprefix(ROUND) if folder.startswith(ROUND) else manifest.round
    here, named = f"{path.stem}@{own}", {f"{m.stage}@{m.round}" for m in (manifest, manifest.plan)}
    if others := sorted(named - {here}):
        raise StoreError(_refusal(path, f"is the manifest of {others[0]} and not of {here}"))


def _refusal(path: Path, what: str) -> str:
    own = path.parent.parent.name.removeprefix(ROUND)
    return (
        f"{path}: {what}; restore it with `dvc checkout --force` or `dvc pull`, or delete it and run its stage again "
        f"(`flywheel run {own}`)"
    )
