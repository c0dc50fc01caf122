"""Pieces on the machines of a Ray cluster (Moritz et al. 2018, arXiv:1712.05889).

Workers are actors that keep their engine open. Ray carries the number of a piece there and back: tables, parts and receipts are
files in the project's folder, which every machine has at the same path, or objects in a bucket. An actor that dies is started
again without limit, on another machine where its own is gone, and its pieces go to whoever is free. One whose engine is lost
for good ends itself.

Ray lets whoever reaches its ports run code. A cluster that is started here listens on 127.0.0.1 alone.
"""

import logging
import os
import pickle
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from tasks.core.errors import EngineError, FlywheelError
from tasks.where import Job, Placement, Work
from tasks.where._crew import Crew, packed, variables

IN_FLIGHT = 2
"""Pieces that a worker has at most: the next one waits at the worker, so that none waits for the driver."""
HERE, LOOPBACK = "127.0.0.1", ("127.0.0.1", "localhost")
ONLY_HERE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's variable that says, set to 0, that there is no cluster of several machines."""
TRIES = 3
"""Attempts to join or start a cluster."""
CONNECT = 5.0
"""Seconds that the head of a cluster has to answer."""
GRACE = 60.0
"""Seconds that workers have to close their engines."""
PATIENCE = 30.0
"""Seconds without a worker after which a line says what is waited for."""
OBJECTS = 2**27
"""Bytes of the object store of a cluster that is started here; Ray's default is a third of the memory, for rows that it never
sees here."""


class Ray(Placement):
    """Runs pieces on the machines of a Ray cluster."""

    over_machines: ClassVar[bool] = True

    address: str = "auto"
    """`auto` is the cluster that RAY_ADDRESS names, or of which this machine is a node; where there is none, one is started for the
    stage, on 127.0.0.1 alone. `"HOST:PORT"`, in quotes, is the head of another, of which this machine must be a node."""
    count: PositiveInt | None = None
    """Workers; null has as many as fit into the cluster when the stage begins."""
    cpus: PositiveFloat | None = None
    """CPUs of each; null has the engine's `threads`, or 1."""
    gpus: NonNegativeInt | None = None
    """GPUs of each; null has what the engine needs: its `tensor_parallel`, or 1 where it loads a model, if the cluster has any."""

    def run(self, job: Job, pieces: Sequence[int]) -> Iterator[int]:
        """Each as soon as a machine has done it."""
        with _joined(self.address) as ray:
            needs = self._resources(ray, job)
            count = min(self.count or _room(ray, needs), len(pieces))
            crew = _Actors(ray, job, needs, count, pieces)
            try:
                yield from crew.run()
            finally:
                crew.end()

    def joined(self) -> AbstractContextManager[Any]:
        """Ray, connected to the cluster. One that is started for this ends with it."""
        return _joined(self.address)

    def _resources(self, ray: Any, job: Job) -> dict[str, float]:
        """What a worker takes of its machine."""
        available = ray.cluster_resources().get("GPU", 0)
        gpus = job.needs.gpus_of(available) if self.gpus is None else self.gpus
        return {"CPU": self.cpus or job.needs.cpus, "GPU": gpus}


@contextmanager
def _joined(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster. One that is started for this ends with it."""
    head = _head(address)
    if head is None or head.rpartition(":")[0] in LOOPBACK:
        os.environ.setdefault(ONLY_HERE, "0")  # else Ray takes the machine's own address where 127.0.0.1 is asked for
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    try:
        import ray
    except ImportError as error:
        raise FlywheelError(
            "where.strategy is ray, and Ray is not installed: `make ray` (`pip install -c infra/requirements.lock "
            "'flywheel[ray]'`), here and on every machine of the cluster; or set where.strategy to processes"
        ) from error
    alone = {"_node_ip_address": HERE, "include_dashboard": False, "object_store_memory": OBJECTS}
    try:
        _init(ray, {"address": head} if head else alone)
        yield ray
    finally:
        ray.shutdown()


def _init(ray: Any, how: dict[str, Any]) -> None:
    for tries_left in reversed(range(TRIES)):
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **how)
            return
        except Exception as error:  # Ray raises plain ones, such as where a busy machine takes more than 30 s
            ray.shutdown()
            if not tries_left:
                what = (
                    f"join the cluster at {how['address']}" if "address" in how else "start a cluster on this machine"
                )
                raise EngineError(
                    f"where: Ray cannot {what}: {error}; try again, or take strategy: processes"
                ) from error


def _head(address: str) -> str | None:
    """HOST:PORT of the head of the cluster that is to be joined; None where one is to be started.

    Raises:
        FlywheelError: when none answers at an address that was given.
    """
    if address != "auto" or os.environ.get("RAY_ADDRESS"):
        given = os.environ["RAY_ADDRESS"] if address == "auto" else address
        if not _answers(given):
            raise FlywheelError(
                f"where.address: no Ray cluster answers at {given!r}; start one with `ray start --head`, write the HOST:PORT of "
                "its head, or set where.address to auto and unset RAY_ADDRESS"
            )
        return given
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    current = Path(folder, "ray/ray_current_cluster")  # where `ray start` leaves it
    try:
        owner, found = current.stat().st_uid, current.read_text().strip()
    except OSError:
        return None
    mine = owner in (0, os.getuid())  # whoever answers runs code here
    return found if mine and _answers(found) else None


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT).close()
    except (OSError, ValueError):
        return False
    return True


def _room(ray: Any, needs: Mapping[str, float]) -> int:
    """How many workers fit into the cluster.

    Raises:
        FlywheelError: when no machine has room for one.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wanted = {name: amount for name, amount in needs.items() if amount}
    count = sum(int(min((m.get(name, 0) / amount for name, amount in wanted.items()), default=1)) for m in machines)
    if not count:
        has = "; ".join(f"{m.get('CPU', 0):g} CPU, {m.get('GPU', 0):g} GPU" for m in machines)
        raise FlywheelError(
            f"where: no machine of the cluster has room for a worker of {_words(wanted)} (they have {has}); set where.cpus "
            "and where.gpus, the engine's threads or tensor_parallel, or add a machine"
        )
    return count


def _words(needs: Mapping[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in needs.items() if amount)


def _how(error: Exception) -> str:
    """How an actor died, in a line: of an error that it raised while it was made, that error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1 if "creation task" in lines[0] else 0]


class _Actors:
    """The actors of a stage, and what each is at."""

    def __init__(self, ray: Any, job: Job, needs: Mapping[str, float], count: int, pieces: Sequence[int]) -> None:
        self._ray = ray
        self._needs = needs
        self._crew = Crew[int](pieces, IN_FLIGHT)
        kind = ray.remote(num_cpus=needs["CPU"], num_gpus=needs["GPU"], max_restarts=-1, max_task_retries=0)(_Worker)
        environment = variables(job, max(1, int(needs["CPU"])))
        self._actors = {n: kind.remote(pickle.dumps(job), environment) for n in range(count)}
        self._asked: dict[Any, tuple[int, int | None]] = {}
        """By reference to an answer: the actor, and the piece that it is to do; without one it is asked whether it is there."""
        self._ready: set[int] = set()

    def run(self) -> Iterator[int]:
        for n in self._actors:
            self._greet(n)
        since = time.monotonic()
        while self._crew.open:
            for n in self._ready:
                for piece in self._crew.next(n):
                    self._asked[self._actors[n].work.remote(piece)] = n, piece
            answers, _ = self._ray.wait(list(self._asked), num_returns=1, timeout=PATIENCE)
            if answers:
                yield from self._take(answers[0])
            elif not self._ready and time.monotonic() - since > PATIENCE:
                since = time.monotonic()
                print(f"waiting for a machine with {_words(self._needs)}", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Lets actors that have no piece close their engines, and kills the others."""
        idle = [n for n in self._ready if not self._crew.has.get(n)]
        if idle:
            self._ray.wait([self._actors[n].end.remote() for n in idle], num_returns=len(idle), timeout=GRACE)
        for n in self._actors.keys() - set(idle):
            self._ray.kill(self._actors[n])

    def _greet(self, n: int) -> None:
        """Asks an actor to answer once it is there: no piece is given to one that waits for a machine."""
        self._asked[self._actors[n].ready.remote()] = n, None

    def _take(self, answer: Any) -> Iterator[int]:
        n, piece = self._asked.pop(answer)
        try:
            failure = self._ray.get(answer)
        except (
            self._ray.exceptions.RayError
        ) as error:  # of an actor or its node, or that Ray ended it where memory was short
            self._forget(n)
            if self._crew.died(n, _how(error)):
                self._greet(n)
            else:
                self._ray.kill(self._actors.pop(n))
                self._crew.check(len(self._actors))
            return
        if piece is None:
            self._ready.add(n)
        elif failure is None:
            self._crew.done(n, piece)
            yield piece
        elif isinstance(error := pickle.loads(failure), EngineError):
            self._forget(n)
            self._crew.lost(n, error)
            self._actors.pop(n).end.remote()
            self._crew.check(len(self._actors))
        else:
            raise error

    def _forget(self, n: int) -> None:
        """Waits for no answer of an actor any more."""
        self._ready.discard(n)
        self._asked = {answer: asked for answer, asked in self._asked.items() if asked[0] != n}


class _Worker:
    """An actor: a process that does pieces."""

    def __init__(self, job: bytes, environment: Mapping[str, str]) -> None:
        os.environ.update(environment)  # before the job imports what reads them
        try:
            os.getcwd()
        except FileNotFoundError:  # the node was started in a folder that is gone
            os.chdir(os.sep)
        self._job, self._open = pickle.loads(job), ExitStack()
        self._work: Work | None = None
        self._lost: bytes | None = None

    def ready(self) -> str:
        """Answers with the name of its machine."""
        return socket.gethostname()

    def work(self, piece: int) -> bytes | None:
        """Does a piece; the packed error where that failed. After an engine is lost it does none."""
        if self._lost is not None:
            return self._lost
        try:
            if self._work is None:
                self._work = self._open.enter_context(self._job.open())
            self._work(piece)
            return None
        except EngineError as error:
            self._lost = packed(error)
            return self._lost
        except Exception as error:
            return packed(error)

    def end(self) -> None:
        """Closes its engine and ends, and is not started again."""
        import ray

        with suppress(FlywheelError):
            self._open.close()
        ray.actor.exit_actor()
