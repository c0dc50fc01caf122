"""Faults for a project: processes that are killed at any instant, and disks that are full.

Processes are forked from a server that has imported what they need, so that a try takes a moment.
"""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import projects
import pytest

from tasks.core import store

PATIENCE = 300
"""Seconds after which a process counts as hanging."""


@contextmanager
def ready(*modules: str) -> Iterator[None]:
    """A server of processes that have imported these modules. One that an earlier test left has other modules: it ends."""
    forkserver._forkserver._stop()
    multiprocessing.get_context("forkserver").set_forkserver_preload(["__main__", "tasks.__main__", *modules, "faults"])
    with pytest.MonkeyPatch.context() as patch:
        # Without it the server does not find `faults`, and each process imports it anew.
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()
    try:
        yield
    finally:
        forkserver._forkserver._stop()


def start(root: Path, function: Callable[..., Any], *arguments: Any, output: Path | None = None) -> Any:
    """Starts a function in a process of its own, with the project as its working directory."""
    work = partial(_work, root, function, arguments, output)
    child = multiprocessing.get_context("forkserver").Process(target=work)
    child.start()
    return child


def _work(root: Path, function: Callable[..., Any], arguments: tuple[Any, ...], output: Path | None) -> None:
    from tasks.__main__ import guarded

    os.chdir(root)
    if output:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
    guarded(partial(function, *arguments))


def run(root: Path, function: Callable[..., Any], *arguments: Any, output: Path | None = None) -> int:
    """Runs a function in a process of its own to its end, as a command does; returns the exit code."""
    child = start(root, function, *arguments, output=output)
    child.join(PATIENCE)
    assert child.exitcode is not None, f"{function.__name__}{arguments} hangs"
    return child.exitcode


def killed(seconds: float, root: Path, function: Callable[..., Any], *arguments: Any) -> bool:
    """Kills a function after so many seconds; returns whether it was still running."""
    child = start(root, function, *arguments)
    child.join(seconds)
    child.kill()
    child.join()
    return child.exitcode == -signal.SIGKILL


def duration(root: Path, function: Callable[..., Any], *arguments: Any) -> float:
    """Seconds that a function takes in a process of its own, undisturbed."""
    began = time.monotonic()
    assert run(root, function, *arguments) == 0
    return time.monotonic() - began


def rows(root: Path) -> dict[str, str]:
    """The digest of every file that a stage made, without what holds times."""
    timed = ("manifests", "metrics", "plots")
    return {path: digest for path, digest in projects.digests(root).items() if Path(path).parts[2] not in timed}


def check_files(root: Path, *names: str) -> None:
    """Reads every file of every manifest of these rounds, and compares the digests.

    Raises:
        StoreError: when one is missing or is not what was written.
    """
    for name in names:
        place = store.round_folder(root, name)
        for manifest in store.manifests(root, name).values():
            for table, output in manifest.outputs.items():
                store.verify(place / table, output)


@contextmanager
def small_disk(place: Path, megabytes: int) -> Iterator[Path]:
    """A file system of so many megabytes. Skips the test where this user may not mount one."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "flywheel-test", str(place)]
    if sys.platform != "linux" or not shutil.which("mount"):
        pytest.skip("a small file system is mounted by Linux's mount")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this user may not mount a small file system ({done.stderr.strip()})")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextmanager
def room_for(disk: Path, size: int) -> Iterator[None]:
    """Fills a small disk but for so many bytes while the block runs."""
    filler = disk / "filler"
    free = shutil.disk_usage(disk).free
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, free - size))
    try:
        yield
    finally:
        filler.unlink()
