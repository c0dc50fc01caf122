"""Versions that are committed and not in place yet: `store.py` says where they lie."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

PAUSE = 0.02
"""Seconds between two attempts."""


def recover(place: Path) -> None:
    """Moves committed versions into place, unless another process does so first. The lock's holder may be the next run of
    the stage, which takes hours, so this waits until `ready` is gone and not for the lock.
    """
    staging = place / ".staging"
    for ready in (
        staging / stage / "ready" for stage in names_in(staging) if os.path.isdir(f"{staging}/{stage}/ready")
    ):
        while ready.is_dir():
            with suppress(Timeout), FileLock(ready.parent / "lock", timeout=PAUSE):
                roll_forward(place, ready.parent)


def roll_forward(place: Path, staging: Path) -> None:
    """Moves a committed version into place, and removes the one before it. Wants the lock of the stage."""
    ready, old = staging / "ready", staging / "old"
    if ready.is_dir():
        for source in _entries(ready):
            target = place / source.relative_to(ready)
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_dir():
                shutil.rmtree(old, ignore_errors=True)
                target.rename(old)
            source.rename(target)
            sync_folder(target.parent)
        shutil.rmtree(ready)
    shutil.rmtree(old, ignore_errors=True)


def _entries(ready: Path) -> list[Path]:
    """What is renamed as one: outputs as whole folders, small files one by one, the manifest last."""
    shared = [ready / n for n in ("metrics", "plots", "manifests")]
    whole = sorted(p for p in ready.iterdir() if p not in shared)
    return whole + [f for s in shared if s.is_dir() for f in sorted(s.iterdir())]


def sync(place: Path) -> None:
    """Has the file system write a folder and all in it to the disk."""
    for path in place.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(place)


def sync_folder(place: Path) -> None:
    """The same of the list of a folder's entries."""
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def names_in(folder: Path) -> list[str]:
    """The names in a folder; none where there is no such folder."""
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
