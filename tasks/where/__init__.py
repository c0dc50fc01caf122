"""Where the pieces of a stage run: in its own process, in several, or on the machines of a Ray cluster.

A block says `where: {strategy: …}`. It decides no row: a piece reads files, writes files and leaves a receipt, wherever it runs,
so an edit of it makes nothing stale. A placement hands out pieces by number and gets their numbers back; no row goes through
it. A piece whose worker died is handed out again.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from tasks.core.plugin import Plugin

Work = Callable[[int], None]
"""Does the piece of a number; its result is a file."""


@dataclass(frozen=True)
class Needs:
    """What a worker has to have for the engines that it opens."""

    cpus: int = 1
    gpus: int = 0
    on_gpu: bool = False
    """It does not work without one; otherwise it takes its GPUs where there are any."""

    def gpus_of(self, available: float) -> int:
        """How many it takes where there are so many."""
        return self.gpus if self.on_gpu or available else 0


class Job(Protocol):
    """What workers do. It is pickled once for each of them."""

    needs: Needs

    def open(self) -> AbstractContextManager[Work]:
        """Opens what all pieces of a worker share; a model that one of them loads stays open for the next."""
        ...


class Placement(Plugin):
    """Runs the pieces of a stage."""

    over_machines: ClassVar[bool] = False
    """Whether workers may be on several machines: what one of them keeps for itself may be lost."""

    def run(self, job: Job, pieces: Sequence[int]) -> Iterator[int]:
        """The number of each piece as soon as it is done, in any order.

        Raises:
            FlywheelError: of the first piece that failed. What is done stays done.
            EngineError: when no worker has an engine that answers any more.
        """
        raise NotImplementedError

    def joined(self) -> AbstractContextManager[Any]:
        """The library that runs things on its machines, connected to them; only where it is `over_machines`."""
        raise NotImplementedError
