"""What a worker does with a piece: it reads the parts that hold its prompts, calls the stage's function, checks the rows, writes
them as parts that are named by their content, and leaves a receipt.

A receipt is created once, after its parts. Whoever finds one need not do the piece, so a worker that died costs the pieces that
it was at, and a driver that died costs nothing more.
"""

import io
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, chdir, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import BaseModel

from tasks.core import cache, devices, objects, pointers, store
from tasks.core.errors import EngineError
from tasks.core.objects import Place
from tasks.core.plan import Plan
from tasks.core.roster import MIN_REQUESTS, Meter, Models
from tasks.core.stage import Overviews, Stage
from tasks.core.store import Part
from tasks.project import pieces
from tasks.where import Needs, Work

FIRST, SECOND = "summaries", "rows"
"""The two passes over the pieces of a stage; most stages have the second alone."""


class Receipt(BaseModel):
    """What a piece came to. It says nothing of the rows but where they are."""

    piece: int
    parts: list[Part] = []
    """Of the stage's table."""
    summaries: dict[str, str] = {}
    """Names of the summaries by member, after a first pass."""
    meters: dict[str, dict[str, Any]] = {}
    """Requests to each model, as `roster.Meter` counts them."""
    seconds: dict[str, float] = {}
    """`run` (the stage's own work) and `write`."""
    gpus: dict[str, float] = {}
    """Seconds for which each GPU was held, by its name."""
    kinds: dict[str, str] = {}
    """What these GPUs are."""
    warnings: list[str] = []
    by: str = ""
    """The machine and the process."""


def receipt_name(scratch: str, kind: str, piece: int) -> str:
    """The name of a receipt in the place of a stage's pieces."""
    return f"{scratch}/{kind}/{piece:06d}.json"


def overview_name(scratch: str, number: int) -> str:
    """The name of the overview of a member, by the place of its name in the alphabet."""
    return f"{scratch}/overviews/{number}.parquet"


@dataclass(frozen=True)
class PieceJob:
    """The work on the pieces of one stage of one round. It holds no rows, so that it can be sent anywhere."""

    root: str
    """The project's folder, at this path on every machine."""
    plan: str
    url: str
    """The folder or bucket of receipts, and of parts where that is a bucket."""
    scratch: str
    """Begins the names of all that belongs to this plan on these inputs."""
    bounds: tuple[pieces.Piece, ...]
    kind: str
    """`summaries` or `rows`."""
    overviews: tuple[str, ...]
    """Members that have an overview."""
    needs: Needs
    journal: bool
    """Engines that load a model keep what they answered in a journal of the piece, for their machine may be lost."""

    @contextmanager
    def open(self) -> Iterator[Work]:
        """Checks that the code here is the plan's, and keeps models open for all pieces of a worker.

        Raises:
            StoreError: where the project's folder or code here is another.
        """
        from tasks.project import execute

        root, plan = Path(self.root), Plan.model_validate_json(self.plan)
        stage = execute._stage(plan.stage)
        execute._check_code(root, plan)
        cache.over_machines(self.journal)
        with chdir(root), closing(execute._models(root, stage, plan, journal=self.journal)) as models:
            worker = _Worker(self, root, stage, plan, models)
            yield worker.do


class _Worker:
    def __init__(self, job: PieceJob, root: Path, stage: Stage, plan: Plan, models: Models) -> None:
        self._job, self._root, self._stage, self._plan, self._models = job, root, stage, plan, models
        self._place = objects.place(job.url)
        shared = job.journal or job.url.startswith(objects.SCHEME)
        self._writing = None if shared else Path(job.url) / job.scratch / "writing"
        """Where parts are written, if it is on the disk on which they stay."""

    def do(self, number: int) -> None:
        """Does a piece and leaves its receipt, unless somebody did meanwhile."""
        held, before = devices.held_until_now(), {name: asdict(meter) for name, meter in self._models.meters.items()}
        with self._journal(number):
            done = self._summaries(number) if self._job.kind == FIRST else self._rows(number)
            meters = _since(before, self._models.meters)
            _check_engines(number, meters, self._models)
            gpus = {name: seconds - held.get(name, 0.0) for name, seconds in devices.held_until_now().items()}
            gpus = {name: seconds for name, seconds in gpus.items() if seconds > 0}
            kinds = dict(zip(gpus, devices.kinds(gpus), strict=True))
            by = f"{socket.gethostname()}, process {os.getpid()}"
            receipt = done.model_copy(update={"meters": meters, "gpus": gpus, "kinds": kinds, "by": by})
            name = receipt_name(self._job.scratch, self._job.kind, number)
            self._place.put_once(name, receipt.model_dump_json(indent=1).encode())

    def _journal(self, number: int) -> AbstractContextManager[Any]:
        if not self._job.journal:
            return nullcontext()
        return cache.journalled(self._place, f"{self._job.scratch}/journal/{self._job.kind}-{number:06d}")

    def _arguments(self, number: int, draft: store.Draft) -> dict[str, Any]:
        from tasks.project import execute

        low, high = self._job.bounds[number]
        inputs = {
            i.argument: i
            for i in self._stage.inputs
            if execute._is_read(i, self._plan) and execute._owner(i, self._plan)
        }

        def read(need: Any, owner: str) -> Any:
            return execute._read(self._root, need, owner, lambda part: pieces.overlaps(part, low, high))

        return execute._arguments(self._root, self._stage, self._plan, inputs, draft, {}, self._models, read)

    def _rows(self, number: int) -> Receipt:
        from tasks.project import execute

        clock, [table] = time.perf_counter(), self._stage.tables
        with self._draft() as draft:
            given = self._overviews(*self._job.bounds[number])
            arguments, spent = self._arguments(number, draft), self._models.spent()
            made = pieces.rows(self._stage, arguments, self._job.bounds[number], given)
            result = execute._as_result(self._stage, made)
            run, model = time.perf_counter() - clock, self._models.spent() - spent
            draft.table(table, result.frames[table.name])
            parts = [self._put(number, n, draft.new / table.name / p.file, p)
                     for n, p in enumerate(draft.outputs[table.name].parts)]  # fmt: skip
            write = time.perf_counter() - clock - run - (self._models.spent() - spent - model)
        seconds = {"run": max(0.0, run - model), "write": max(0.0, write)}
        return Receipt(piece=number, parts=parts, seconds=seconds, warnings=list(result.warnings))

    def _put(self, number: int, n: int, path: Path, part: Part) -> Part:
        """Puts a part where it stays. Its name sorts by piece and tells its content."""
        named = part.model_copy(update={"file": f"part-{number:06d}-{n:03d}-{part.sha256[:16]}.parquet"})
        name = f"{self._job.scratch}/parts/{named.file}"
        if self._writing:
            _keep(path, Path(self._place.address(name)))
        else:
            in_bucket = self._job.url.startswith(objects.SCHEME)
            self._place.put_file(pointers.object_name(named) if in_bucket else name, path)
        return named

    def _summaries(self, number: int) -> Receipt:
        clock = time.perf_counter()
        with self._draft() as draft:
            arguments = self._arguments(number, draft)
            frames = pieces.summaries(self._stage, arguments, self._job.bounds[number])
        names = {}
        for n, (member, frame) in enumerate(sorted(frames.items())):
            names[member] = f"{self._job.scratch}/{FIRST}/{number:06d}-{n}.parquet"
            frame.write_parquet(data := io.BytesIO())
            self._place.put_once(names[member], data.getvalue())
        return Receipt(piece=number, summaries=names, seconds={"run": time.perf_counter() - clock})

    def _overviews(self, low: str | None, high: str | None) -> Overviews:
        """What each member has to know of this piece's prompts, and of all of them."""
        if not self._job.overviews:
            return None
        names = enumerate(self._job.overviews)
        return {member: _frame(self._place, overview_name(self._job.scratch, n)) for n, member in names}

    @contextmanager
    def _draft(self) -> Iterator[store.Draft]:
        """A place on this machine where a piece's parts are written and checked."""
        if self._writing:
            self._writing.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="flywheel-piece-", dir=self._writing) as folder:
            draft = store.Draft(Path(folder) / f"{store.ROUND}{self._plan.round}", self._stage.name)
            draft.new.mkdir(parents=True)
            yield draft


def _keep(path: Path, to: Path) -> None:
    """Moves a part that is whole to its place, on the same disk, and makes it last."""
    to.parent.mkdir(parents=True, exist_ok=True)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    path.replace(to)


@lru_cache(maxsize=4)
def _frame(place: Place, name: str) -> pl.DataFrame:
    return pl.read_parquet(io.BytesIO(place.read(name)))


def _since(before: Mapping[str, Mapping[str, Any]], meters: Mapping[str, Meter]) -> dict[str, dict[str, Any]]:
    """What meters counted since."""
    now = {name: asdict(meter) for name, meter in meters.items()}
    return {
        name: {k: v if isinstance(v, str) else v - before.get(name, {}).get(k, 0) for k, v in values.items()}
        for name, values in now.items()
    }


def _check_engines(number: int, meters: Mapping[str, Mapping[str, Any]], models: Models) -> None:
    """Raises EngineError where a model answered none of a piece's requests: its engine is lost, unless all may fail."""
    for name, meter in meters.items():
        possible = meter["requests"] - meter["permanent"]
        may_fail = models.engine(name).max_error_share >= 1
        if possible >= MIN_REQUESTS and meter["failed"] == possible and not may_fail:
            raise EngineError(
                f"model {name}: all {possible} requests of piece {number} failed; the last error: {meter['last_error']}. Fix "
                "the engine and run the stage again; what was answered is kept"
            )
