"""A lock per GPU: one process at a time. Every stage that needs a whole device takes it.

The stage itself takes the lock, so it also works for stages started by hand or by `dvc repro` in two shells.
"""

import logging
import os
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from shutil import which

from filelock import FileLock, Timeout

QUERY = ("--query-gpu=index,uuid", "--format=csv,noheader")

KINDS = ("--query-gpu=uuid,name", "--format=csv,noheader")

_held: dict[str, float] = {}
"""Seconds for which this process has held each GPU."""
_since: dict[str, float] = {}
"""When this process took the GPUs that it holds now."""

log = logging.getLogger(__name__)


@contextmanager
def device_lock(count: int = 1) -> Iterator[tuple[str, ...]]:
    """Locks the first `count` visible GPUs, waiting for the processes that hold them, and yields their names; none on a CPU.
    Reentrant within a process. Every process takes them in one order, so that no two wait for each other.
    """
    names = devices()[:count]
    with ExitStack() as stack:
        for name in sorted(names):
            stack.enter_context(_lock(name))
        yield names


@contextmanager
def _lock(name: str) -> Iterator[None]:
    path = Path(tempfile.gettempdir(), f"flywheel-{name}.lock")
    lock = FileLock(path, mode=0o666, thread_local=False, is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("waiting for the device %s, which another process uses (%s)", name, path)
        with suppress(OSError):  # another user waits, too
            _waiting(name).touch()
        lock.acquire()
    with suppress(OSError):
        _waiting(name).unlink(missing_ok=True)
    start = time.perf_counter()
    if lock.lock_counter == 1:
        _since[name] = start
    try:
        yield
    finally:
        if lock.lock_counter == 1:  # held within another block, it counts there
            _since.pop(name)
            _count(name, start)
        lock.release()


@contextmanager
def shared(names: Iterable[str]) -> Iterator[None]:
    """Counts the GPUs as held while the block runs, where another process has the locks and shares them with this one."""
    start, counted = time.perf_counter(), tuple(names)
    try:
        yield
    finally:
        for name in counted:
            _count(name, start)


def _count(name: str, start: float) -> None:
    _held[name] = _held.get(name, 0.0) + time.perf_counter() - start


def are_wanted(names: Iterable[str]) -> bool:
    """Whether a process has waited for one of these GPUs since they were last taken."""
    return any(_waiting(name).exists() for name in names)


def _waiting(name: str) -> Path:
    return Path(tempfile.gettempdir(), f"flywheel-{name}.waiting")


def holds_any() -> bool:
    """Whether this process has a GPU now."""
    return bool(_since)


def held() -> dict[str, float]:
    """Seconds for which this process has held each GPU by its name; waiting for another process does not count."""
    return dict(_held)


def held_until_now() -> dict[str, float]:
    """The same with those that it holds still."""
    now = time.perf_counter()
    return {name: _held.get(name, 0.0) + now - _since.get(name, now) for name in {**_held, **_since}}


def kinds(names: Iterable[str]) -> list[str]:
    """What these GPUs are, such as `NVIDIA H100 80GB HBM3`; a MIG slice is its own name."""
    known = _query(KINDS) if (wanted := list(names)) else {}
    return [known.get(name, name) for name in wanted]


def devices() -> tuple[str, ...]:
    """UUIDs of the visible GPUs in their order; of a MIG slice, its name in CUDA_VISIBLE_DEVICES.

    Queries the driver, not torch: torch would initialise CUDA in this process, which breaks engines that fork.
    """
    gpus = _gpus()
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(gpus)).split(",")]
    names = takewhile(lambda name: name not in ("", "-1"), visible) if gpus else ()  # as CUDA does
    return tuple(gpus.get(n) or next((uuid for uuid in gpus.values() if uuid.startswith(n)), n) for n in names)


def _gpus() -> dict[str, str]:
    """Index → UUID of each GPU of this machine."""
    return _query(QUERY)


def _query(arguments: Iterable[str]) -> dict[str, str]:
    """The driver's two columns."""
    if which("nvidia-smi") is None:
        return {}
    query = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True)
    lines = query.stdout.splitlines() if query.returncode == 0 else []
    return dict(line.split(", ", 1) for line in lines if ", " in line)
