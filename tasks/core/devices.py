"""A lock per GPU: one process at a time. Every stage that needs a whole device takes it.

The stage itself takes the lock, so it also works for stages started by hand or by `dvc repro` in two shells.
"""

import logging
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from pathlib import Path
from shutil import which

from filelock import FileLock, Timeout

QUERY = ("--query-gpu=index,uuid", "--format=csv,noheader")

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
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


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
    if which("nvidia-smi") is None:
        return {}
    query = subprocess.run(["nvidia-smi", *QUERY], capture_output=True, text=True)
    lines = query.stdout.splitlines() if query.returncode == 0 else []
    return dict(line.split(", ", 1) for line in lines if ", " in line)
