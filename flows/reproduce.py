"""The one Prefect task: `dvc repro --single-item stage@round`, in its own process group.

One process per stage: its memory is freed when it ends, it can be killed alone, and DVC refuses to run the same stage
twice at once (which it does not check between threads). Prefect's result cache is off: DVC decides what is stale.

What a retry does, by kind of failure:

    engine    exit code 75: the engine could not answer, or failed too often    `retries` times, after 5, 10, 20 … seconds
    busy      another process runs the stage, or one that it reads              it waits for that one, however long that takes
    killed    by a signal, as the kernel does when memory runs out              once: twice is no accident
    lasting   everything else: params, data, code, a full disk                  never, it would fail the same way

A stage's process group never outlives its flow, however that ends: on Ctrl-C, an error or Prefect's cancellation the flow
ends it; when the flow's own process is killed, the stage's process sees its standard input close, and ends itself.
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
from typing import Any, Literal

import psutil
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import exponential_backoff

from tasks.core.errors import FlywheelError
from tasks.project import graph, strays

MAX_LINES = 200
"""Lines of a stage's output that are kept for its error message."""
LAST_LINES = 15
"""Lines in the message of a stage that printed no error of its own."""
GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL."""
NOISE = re.compile(
    r"\s*(To (track the changes|enable auto staging).*|git add .*|dvc config .*|Use `dvc push`.*"
    r"|.* is busy, it is being blocked by.*|\(PID \d+\): .*|If there are no processes with such PIDs.*)?"
)
"""Hints that DVC prints after every stage, and what it says of one that another process runs, every `PAUSE` seconds; left out of
the log."""
TAKEN = re.compile(r"\S+@\S+: (taken from .*)")
"""What a stage prints that took a committed result (`tasks/core/commits.py`)."""
TRY_AGAIN = 75
"""Exit code of a stage whose engine could not answer (EX_TEMPFAIL), which a retry may fix."""
PAUSE = 5.0
"""Seconds between two looks at a stage that another process runs."""
BACKOFF = 5.0
"""Seconds before the first retry; doubled for each further one."""

WARM = f"""
import gc, os, sys, threading
gc.disable()
import dvc.cli, dvc.commands.repro
from dvc.repo import Repo
from tasks.project import lockfile
Repo().close()

def end_with(flow):
    while os.read(flow, 1):
        pass
    import psutil
    for child in psutil.Process().children(recursive=True):  # listed before one ends: an orphan is nobody's child
        try:
            child.kill()
        except psutil.NoSuchProcess:
            pass
    # DVC alone waits for its command, whose exit code is 0 to it where it was waited for here; and it writes its locks,
    # where a file cut off would block every later run.
    threading.main_thread().join({GRACE})
    os._exit(1)

if address := sys.stdin.readline().strip():
    flow = os.dup(0)
    os.set_inheritable(flow, False)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    threading.Thread(target=end_with, args=(flow,), daemon=True).start()
    sys.argv = ["dvc", "--wait-for-lock", "repro", "--single-item", address]
    with lockfile.quick():
        code = dvc.cli.main()
    gc.freeze()
    sys.exit(code)
"""
"""Imports DVC, then waits for the address of a stage on stdin. `--wait-for-lock` because another stage that finishes holds
DVC's lock for a moment, and a failure would cost a whole stage. Stdin stays open as long as the flow lives."""

_running: set[subprocess.Popen[str]] = set()
_spare: list[subprocess.Popen[str]] = []
"""The next stage's process, which imports while the current stage runs. Only filled while a flow runs."""
_flowing = Event()
_interrupted = Event()
"""Set while a flow is being stopped: stages that were killed for that are not retried."""


@dataclass(frozen=True)
class Reproduced:
    """Result of `dvc repro` for a stage."""

    address: str
    seconds: float
    ran: bool
    """Whether its command ran. If not, it was up to date or restored from DVC's run cache."""
    taken: str = ""
    """What it says of a result that it took from the project's bucket."""


Kind = Literal["engine", "killed", "lasting"]
MOST_RETRIES: dict[Kind, int | None] = {"engine": None, "killed": 1, "lasting": 0}
"""Retries of a stage by kind of failure; None leaves it to the flow's `retries`."""


class StageFailed(FlywheelError):
    """A stage's process failed; carries the stage's own message."""

    def __init__(self, address: str, message: str, code: int) -> None:
        super().__init__(f"{address}: {message}")
        self.address, self.code = address, code
        self.exit_code = TRY_AGAIN if code == TRY_AGAIN else 1

    @property
    def kind(self) -> Kind:
        """Why it failed, as far as that decides whether another try can help."""
        if self.code == TRY_AGAIN:
            return "engine"
        if self.code < 0 or (self.code > 128 and self.code != 255):
            return "killed"
        return "lasting"

    def is_retried(self, tries: int) -> bool:
        """Whether it is tried again after this many tries."""
        most = MOST_RETRIES[self.kind]
        return most is None or tries <= most


@task(task_run_name="{stage_address}", cache_policy=NO_CACHE, persist_result=False)
def reproduce(stage_address: str) -> Reproduced:
    """Brings one stage up to date, in the project of the working directory.

    Raises:
        StageFailed: with the stage's own message.
    """
    log, lines, clock = get_run_logger(), deque[str](maxlen=MAX_LINES), time.perf_counter()
    told = ""
    while (code := _run(stage_address, lines, log)) and _is_busy(list(lines)) and not _interrupted.wait(PAUSE):
        if told != (told := failure(list(lines))):
            log.info(f"waiting: {told}")
        lines.clear()
    if code != 0:
        output = list(lines)
        raise StageFailed(stage_address, failure(output), _stage_code(output, code))
    ran = any(line.startswith("Running stage") for line in lines)
    taken = next((match[1] for line in lines if (match := TAKEN.fullmatch(line))), "")
    return Reproduced(stage_address, time.perf_counter() - clock, ran, taken)


def _run(address: str, lines: deque[str], log: Any) -> int:
    """Runs a stage's process, and returns its exit code."""
    graph.mend_lock(Path())  # of an earlier try that was killed
    with _process(address) as process:
        for line in process.stdout or ():
            lines.append(line.rstrip())
            if not NOISE.fullmatch(lines[-1]):
                log.info(lines[-1])
        return process.wait()


def with_retries(retries: int) -> Any:
    """The task, with exponential back-off where a retry can help."""
    return reproduce.with_options(
        retries=retries,
        retry_delay_seconds=exponential_backoff(BACKOFF) if retries else 0,
        retry_condition_fn=_is_retryable,
    )


def _is_retryable(task: Any, run: Any, state: Any) -> bool:
    error = state.result(raise_on_failure=False)
    if not isinstance(error, StageFailed) or _interrupted.is_set():
        return False
    return error.is_retried(run.run_count)


@contextmanager
def _process(address: str) -> Iterator[subprocess.Popen[str]]:
    process = _start(address)
    _running.add(process)
    try:
        if _flowing.is_set():
            with suppress(OSError):  # a failure to start a spare process is harmless
                _spare.append(_spawn())
        yield process
    finally:
        end(process)
        _running.discard(process)


def _start(address: str) -> subprocess.Popen[str]:
    """Starts a stage in the spare process, if there is a live one, else in a new one."""
    try:
        process = _spare.pop()
    except IndexError:
        process = _spawn()
    try:
        print(address, file=process.stdin, flush=True)
    except BrokenPipeError:  # the spare process was killed
        return _start(address)
    return process


def _spawn() -> subprocess.Popen[str]:
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
    """Environment of stages: PATH starts with this Python's folder, so `dvc` and `flywheel` are its own."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    own = {"PATH": path, "PYTHONUNBUFFERED": "1", "DVC_NO_ANALYTICS": "1"}
    return os.environ | own | strays.signature(Path())


def end(*processes: subprocess.Popen[str]) -> None:
    """Stops process groups together: SIGTERM, then SIGKILL after `GRACE` seconds."""
    alive = [process for process in processes if process.poll() is None]
    children: list[psutil.Process] = []
    for process in alive:
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            children += psutil.Process(process.pid).children(recursive=True)
            os.killpg(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    for straggler in psutil.wait_procs(children, timeout=GRACE)[1]:
        with suppress(psutil.NoSuchProcess):
            straggler.kill()
    for process in alive:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()


@contextmanager
def stopping_stages() -> Iterator[None]:
    """Stops the running stages when the block ends early (Ctrl-C, Prefect's cancellation, an error), and the spare process
    when it ends at all. They are in process groups of their own, so nothing else stops them.
    """
    _interrupted.clear()
    _flowing.set()
    try:
        yield
    except BaseException:
        _interrupted.set()
        end(*_running)
        raise
    finally:
        _flowing.clear()
        while _spare:
            end(_spare.pop())


def failure(lines: list[str]) -> str:
    """The message in a failed stage's output: the error that `flywheel` printed, else the last lines."""
    if _is_busy(lines):
        return graph.busy("\n".join(lines))
    starts = [i for i, line in enumerate(lines) if line.startswith("flywheel: ")]
    if not starts:
        output = [
            line
            for line in lines
            if line and not line.startswith(("Running stage", "> ", "ERROR: failed to reproduce"))
        ]
        return "\n".join(output[-LAST_LINES:]) or "it ended without output"
    message = lines[starts[-1] :]
    ends = [i for i, line in enumerate(message) if line.startswith("ERROR: ")]
    return "\n".join(message[: ends[0] if ends else None]).removeprefix("flywheel: ").strip()


def _is_busy(lines: list[str]) -> bool:
    """Whether DVC could not get its lock."""
    return any(" is busy, it is being blocked by" in line for line in lines)


def _stage_code(lines: list[str], code: int) -> int:
    """Exit code of the stage's own process, which DVC prints in its last line; else DVC's."""
    codes = [m.group(1) for line in lines if (m := re.search(r"exited with (-?\d+)$", line))]
    return int(codes[-1]) if codes else code
