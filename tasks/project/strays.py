"""Processes that outlived the command that started them.

Services and stages are started in process groups of their own, so nothing ends them but their command, and the closing of
their standard input when that is killed. Each carries in its environment, which its children inherit, for which project it
was started and by which process: what is left when that process is gone is a stray.
"""

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import psutil

VARIABLE = "FLYWHEEL_STARTED_BY"
"""The environment variable: pid and start time of the process that started it, and the project's folder."""
SLACK = 2.0
"""Seconds by which two readings of a process's start time may differ, since the system clock is adjusted."""


def signature(root: Path) -> dict[str, str]:
    """The environment variable that names this process as the one that starts another."""
    return {VARIABLE: f"{os.getpid()} {psutil.Process().create_time()} {root.resolve()}"}


def find(root: Path, services: Collection[int] = ()) -> list[psutil.Process]:
    """This user's processes that were started for the project by a process that is gone, without those of `services` (pids)
    and what these started.
    """
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # it has ended, or is another user's
            starter, created, place = process.environ().get(VARIABLE, "0 0 ").split(" ", 2)
            family = {process.pid, *(parent.pid for parent in process.parents())}
            if place == str(root.resolve()) and not family & set(services) and not _lives(int(starter), float(created)):
                found.append(process)
    return found


def _lives(pid: int, created: float) -> bool:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return abs(process.create_time() - created) < SLACK and process.status() != psutil.STATUS_ZOMBIE
    return False
