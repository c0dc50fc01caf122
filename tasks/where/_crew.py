"""Which worker has which pieces, and what becomes of them when a worker ends."""

import os
import pickle
import traceback
from collections import Counter, deque
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

from tasks.core.errors import EngineError, FlywheelError
from tasks.where import Job

W = TypeVar("W", bound=Hashable)
DEATHS = 5
"""Workers that may die of one piece before it is given up: one that takes too much memory takes every worker with it."""
THREADS = "POLARS_MAX_THREADS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS"
"""Variables that libraries read when they are imported: workers share a machine."""


class Crew(Generic[W]):
    """Pieces that are to be done, and those that workers have."""

    def __init__(self, pieces: Iterable[int], in_flight: int) -> None:
        self.waiting = deque(pieces)
        self.has: dict[W, deque[int]] = {}
        self._in_flight = in_flight
        self._deaths = Counter[int]()
        self._early = Counter[W]()
        """Deaths of a worker since it was last given a piece."""
        self._lost: EngineError | None = None

    def next(self, worker: W) -> list[int]:
        """The pieces that a worker is to be given now."""
        has = self.has.setdefault(worker, deque())
        given = [self.waiting.popleft() for _ in range(min(self._in_flight - len(has), len(self.waiting)))]
        has.extend(given)
        if given:
            self._early[worker] = 0
        return given

    def done(self, worker: W, piece: int) -> None:
        """A worker has done one of its pieces."""
        self.has[worker].remove(piece)

    def died(self, worker: W, how: str) -> bool:
        """A worker died: others get its pieces. It was at the first of them. Whether it is to be started again: not one that has
        died `DEATHS` times before it could be given a piece.

        Raises:
            FlywheelError: when a piece has taken `DEATHS` workers with it.
        """
        pieces = self.has.pop(worker, deque())
        self._early[worker] += not pieces
        if self._early[worker] >= DEATHS:
            why = f"where: a worker died {DEATHS} times before it began ({how}); are the project and its packages on all machines?"
            self.lost(worker, EngineError(why))
            return False
        for piece in list(pieces)[:1]:
            self._deaths[piece] += 1
            if self._deaths[piece] >= DEATHS:
                raise FlywheelError(
                    f"piece {piece}: {DEATHS} workers died while they were at it ({how}); give workers more memory, or fewer "
                    "of them to a machine. What is done is kept: run the stage again"
                )
        self.waiting.extendleft(reversed(pieces))
        return True

    def lost(self, worker: W, error: EngineError) -> None:
        """A worker's engine is lost for good, so it ended: others get its pieces."""
        self.waiting.extendleft(reversed(self.has.pop(worker, deque())))
        self._lost = error

    def check(self, workers: int) -> None:
        """Raises the error of the last engine where no worker is left."""
        if not workers and (self.waiting or any(self.has.values())):
            raise self._lost or EngineError("no worker is left; run the stage again")

    @property
    def open(self) -> bool:
        """Whether a piece is not done."""
        return bool(self.waiting) or any(self.has.values())


def packed(error: Exception) -> bytes:
    """An error for another process: itself, or what it says where it cannot be pickled. One that nobody expected says where it was
    raised.
    """
    if not isinstance(error, FlywheelError):
        error.add_note("in a worker: " + "".join(traceback.format_exception(error)).rstrip())
    try:
        pickle.loads(data := pickle.dumps(error))
    except Exception:  # whatever an error's own constructor raises
        kind = EngineError if isinstance(error, EngineError) else FlywheelError
        data = pickle.dumps(
            kind(str(error) if isinstance(error, FlywheelError) else f"{type(error).__name__}: {error}")
        )
    return data


def variables(job: Job, cpus: int | None = None) -> dict[str, str]:
    """The environment of a worker with so many CPUs; what the user has set stays."""
    count = str(cpus or job.needs.cpus)
    return {name: os.environ.get(name, count) for name in THREADS}
