"""The one Prefect task: `dvc repro --single-item stage@round`, in a process group of its own.

One process a stage: its memory is freed when it ends, it can be killed alone, and DVC refuses to run the same stage
twice at once (two threads of one process it would let pass). Prefect's result cache is off: DVC decides what is stale.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import psutil
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import exponential_backoff

from tasks import plan
from tasks.errors import FlywheelError

KEPT_LINES = 200
LAST_LINES = 15
GRACE = 5.0
"""Seconds between asking a stage to end and killing it."""
CHATTER = re.compile(r"\s*(To (track the changes|enable auto staging).*|git add .*|dvc config .*|Use `dvc push`.*)?")
"""What DVC says after every stage, and nobody wants to read in a log."""
TRY_AGAIN = 75
"""The exit code of a stage whose engine could not answer (EX_TEMPFAIL): the one failure that may pass by itself."""
BACKOFF = 5.0
"""Seconds before the first retry; each further one waits twice as long."""

WARM = """
import gc, os, sys
gc.disable()
import dvc.cli, dvc.commands.repro
from dvc.repo import Repo
Repo().close()
if address := sys.stdin.readline().strip():
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = ["dvc", "--wait-for-lock", "repro", "--single-item", address]
    code = dvc.cli.main()
    gc.freeze()
    sys.exit(code)
"""
"""A process that has DVC imported when it is told its stage. Another stage that finishes holds DVC's lock for a moment:
it waits for that, since a failure would cost a whole stage."""

_running: set[subprocess.Popen[str]] = set()
_spare: list[subprocess.Popen[str]] = []
"""The next stage's process: it imports while this one's stage runs. There is one only while a flow runs."""
_flowing = Event()
_interrupted = Event()
"""Set while a flow is being ended: what was killed for that is not tried again."""


@dataclass(frozen=True)
class Reproduced:
    """What DVC did about a stage."""

    address: str
    seconds: float
    ran: bool
    """Whether its command ran: otherwise it was up to date, or restored from DVC's run cache."""


class StageFailed(FlywheelError):
    """A stage's process failed; the text is the stage's own message."""

    def __init__(self, address: str, message: str, code: int) -> None:
        super().__init__(f"{address}: {message}")
        self.address, self.code = address, code

    @property
    def may_pass(self) -> bool:
        """Whether trying again can help: the engine could not answer, or the process was killed."""
        return self.code == TRY_AGAIN or self.code < 0 or (self.code > 128 and self.code != 255)


@task(task_run_name="{stage_address}", cache_policy=NO_CACHE, persist_result=False)
def reproduce(stage_address: str) -> Reproduced:
    """Brings one stage up to date, in the project that is the working directory.

    Raises:
        StageFailed: with the stage's own message.
    """
    log, lines, clock = get_run_logger(), deque[str](maxlen=KEPT_LINES), time.perf_counter()
    with _process(stage_address) as process:
        for line in process.stdout or ():
            lines.append(line.rstrip())
            if not CHATTER.fullmatch(lines[-1]):
                log.info(lines[-1])
        code = process.wait()
    if code != 0:
        raise StageFailed(stage_address, failure(list(lines)), _stage_code(list(lines), code))
    ran = any(line.startswith("Running stage") for line in lines)
    return Reproduced(stage_address, time.perf_counter() - clock, ran)


def with_retries(retries: int) -> Any:
    """The task, retried with back-off where trying again can help."""
    return reproduce.with_options(
        retries=retries,
        retry_delay_seconds=exponential_backoff(BACKOFF) if retries else 0,
        retry_condition_fn=_may_pass,
    )


def _may_pass(task: Any, run: Any, state: Any) -> bool:
    error = state.result(raise_on_failure=False)
    return isinstance(error, StageFailed) and error.may_pass and not _interrupted.is_set()


@contextmanager
def _process(address: str) -> Iterator[subprocess.Popen[str]]:
    process = _told(address)
    _running.add(process)
    try:
        if _flowing.is_set():
            with suppress(OSError):  # no room for a spare one is no reason to fail
                _spare.append(_waiting())
        yield process
    finally:
        end(process)
        _running.discard(process)


def _told(address: str) -> subprocess.Popen[str]:
    """A process that goes on with this stage: the spare one, if it is there and alive."""
    try:
        process = _spare.pop()
    except IndexError:
        process = _waiting()
    try:
        print(address, file=process.stdin, flush=True)
    except BrokenPipeError:  # somebody killed it
        return _told(address)
    return process


def _waiting() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WARM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment(),
        start_new_session=True,
    )


def environment() -> dict[str, str]:
    """This process's environment, in which `dvc` and `flywheel` are those of this very Python."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return os.environ | {"PATH": path, "PYTHONUNBUFFERED": "1", "DVC_NO_ANALYTICS": "1"}


def end(process: subprocess.Popen[str]) -> None:
    """Ends a process with its whole group: asked first, killed after a grace."""
    if process.poll() is not None:
        return
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        children = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGTERM)
        for straggler in psutil.wait_procs(children, timeout=GRACE)[1]:
            with suppress(psutil.NoSuchProcess):
                straggler.kill()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()


@contextmanager
def ended_with() -> Iterator[None]:
    """Whatever ends the block early (Ctrl-C, Prefect's cancellation, an error) ends the stages that are running, and its
    end the process that waits for the next one.

    They are in process groups of their own: nobody else would.
    """
    _interrupted.clear()
    _flowing.set()
    try:
        yield
    except BaseException:
        _interrupted.set()
        for process in list(_running):
            end(process)
        raise
    finally:
        _flowing.clear()
        while _spare:
            end(_spare.pop())


def failure(lines: list[str]) -> str:
    """The message in a failed stage's output: what `flywheel` printed, else the last lines."""
    if any(" is busy, it is being blocked by" in line for line in lines):
        return plan.busy("\n".join(lines))
    starts = [i for i, line in enumerate(lines) if line.startswith("flywheel: ")]
    if not starts:
        said = [
            line
            for line in lines
            if line and not line.startswith(("Running stage", "> ", "ERROR: failed to reproduce"))
        ]
        return "\n".join(said[-LAST_LINES:]) or "it ended without a word"
    message = lines[starts[-1] :]
    ends = [i for i, line in enumerate(message) if line.startswith("ERROR: ")]
    return "\n".join(message[: ends[0] if ends else None]).removeprefix("flywheel: ").strip()


def _stage_code(lines: list[str], code: int) -> int:
    """The exit code of the stage's own process, which DVC names in its last line; else DVC's."""
    found = [m.group(1) for line in lines if (m := re.search(r"exited with (-?\d+)$", line))]
    return int(found[-1]) if found else code
