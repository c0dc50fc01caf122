"""Pieces in several processes of this machine.

A worker ends with the process that started it, also when that one is killed: it watches it. One that dies is started anew, and
its piece is done again.
"""

import os
import pickle
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from pydantic import Field

from tasks.core.devices import devices
from tasks.core.errors import EngineError, FlywheelError
from tasks.where import Job, Placement
from tasks.where._crew import Crew, packed, variables

GRACE = 60.0
"""Seconds that a worker has to close its engine."""


class Processes(Placement):
    """Runs pieces in several processes of this machine."""

    count: int = Field(2, ge=1)
    """How many. Each loads the model; each has GPUs of its own, where the engine takes any."""

    def run(self, job: Job, pieces: Sequence[int]) -> Iterator[int]:
        """Each as soon as a process has done it."""
        count = min(self.count, len(pieces))
        cpus, gpus = max(1, (os.cpu_count() or 1) // count), _gpus(job, count)
        crew = Crew[int](pieces, in_flight=1)
        workers = {n: _Worker(job, variables(job, cpus) | gpus[n]) for n in range(count)}
        try:
            while crew.open:
                for n, worker in workers.items():
                    for piece in crew.next(n):
                        worker.give(piece)
                ready = wait([worker.answers for worker in workers.values()])
                for n, worker in [(n, w) for n, w in workers.items() if w.answers in ready]:
                    kind, value = worker.answer()
                    if kind == "done":
                        crew.done(n, value)
                        yield value
                    elif kind == "died":
                        if crew.died(n, value):
                            workers[n] = _Worker(job, variables(job, cpus) | gpus[n])
                        else:
                            workers.pop(n).end()
                            crew.check(len(workers))
                    elif isinstance(error := pickle.loads(value), EngineError):
                        crew.lost(n, error)
                        workers.pop(n).end()
                        crew.check(len(workers))
                    else:
                        raise error
        finally:
            for worker in workers.values():
                worker.end()


def _gpus(job: Job, count: int) -> list[dict[str, str]]:
    """The GPUs of each process, as a variable of its environment."""
    visible = devices() if job.needs.gpus else ()
    each = job.needs.gpus_of(len(visible))
    if each * count > len(visible):
        raise FlywheelError(
            f"where: {count} processes of {each} GPU{'s' * (each > 1)} each need {each * count}, and this machine has "
            f"{len(visible)}; set where.count to {len(visible) // each or 1}, or run on a cluster (where.strategy: ray)"
        )
    names = [visible[n * each : (n + 1) * each] for n in range(count)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(own)} if each else {} for own in names]


class _Worker:
    """A process that does pieces."""

    def __init__(self, job: Job, environment: Mapping[str, str]) -> None:
        context = get_context("spawn")  # threads of polars and torch do not survive a fork
        self.answers, theirs = context.Pipe()
        self._process: SpawnProcess = context.Process(target=_serve, args=(theirs, pickle.dumps(job)))
        self._busy = False
        with _environment(environment):
            self._process.start()
        theirs.close()

    def give(self, piece: int) -> None:
        """Hands it a piece; one that is dead says so when it is asked for an answer."""
        self._busy = True
        with suppress(OSError):
            self.answers.send(piece)

    def answer(self) -> tuple[str, Any]:
        """`done` and the piece, `failed` and the packed error, or `died` and how."""
        try:
            answer: tuple[str, Any] = self.answers.recv()
            self._busy = False
            return answer
        except (EOFError, OSError):
            self._process.join()
            self.answers.close()
            code = self._process.exitcode or 0
            return "died", f"signal {-code}" if code < 0 else f"exit code {code}"

    def end(self) -> None:
        """Lets it close its engine, and kills it where it is at a piece."""
        self.answers.close()
        if not self._busy:
            self._process.join(GRACE)
        self._process.kill()
        self._process.join()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets variables for a process that is started within: libraries read some of them when they are imported."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _serve(asked: Connection, job: bytes) -> None:
    """The life of a process: it does the pieces that it is given until nobody is there to give one."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with pickle.loads(job).open() as work:
            for piece in iter(lambda: _next(asked), None):
                work(piece)
                asked.send(("done", piece))
    except Exception as error:
        asked.send(("failed", packed(error)))


def _next(asked: Connection) -> int | None:
    """The next piece; None when there is nobody any more to give one."""
    try:
        return int(asked.recv())
    except (EOFError, ConnectionResetError):
        return None


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
