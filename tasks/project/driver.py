"""Drives the pieces of a stage: which are to be done, where, and what they come to together.

The stage's own process is the driver. It reads no rows but the summaries of a first pass. Receipts are found by the digests of
plan, inputs and pieces, the versions of libraries and the names under which servers have the weights, so a driver that was killed
starts again and skips what is done.
"""

import io
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from tasks.core import cache, objects, pointers, store
from tasks.core.errors import StoreError
from tasks.core.ids import content_id
from tasks.core.objects import Absent, Place
from tasks.core.plan import Plan
from tasks.core.pointers import ObjectPath
from tasks.core.roster import Meter, Models
from tasks.core.stage import Stage, Strategy
from tasks.core.store import Output, Part
from tasks.project import pieces
from tasks.project.worker import FIRST, SECOND, PieceJob, Receipt, overview_name, receipt_name
from tasks.where import Needs, Placement

FOLDER = Path("data/cache/work")
"""Where a project that has no bucket keeps the pieces of stages that are not committed yet."""
THREADS = 16
"""Receipts that are read at the same time."""


@dataclass(frozen=True)
class Done:
    """What all pieces came to."""

    output: Output
    meters: dict[str, Meter]
    seconds: dict[str, float]
    """`run` and `write`, summed over workers."""
    gpus: dict[str, float]
    kinds: dict[str, str]
    warnings: tuple[str, ...]


class Driver:
    """The pieces of one stage of one round."""

    def __init__(
        self, root: Path, stage: Stage, plan: Plan, digests: Mapping[str, str], bounds: Sequence[pieces.Piece],
        where: Placement, bucket: Place | None, models: Models, versions: Mapping[str, str],
    ) -> None:  # fmt: skip
        served = {name: getattr(models.engine(name), "served", {}) for name in models.names}
        told = json.dumps([digests, bounds, versions, served], sort_keys=True)
        identity = content_id(plan.digest, told)
        self.stage, self._where, self._in_bucket = stage, where, bucket is not None
        self.done: Done
        self.place = bucket or objects.place(root.absolute() / FOLDER)
        self._job = PieceJob(
            root=str(root.absolute()),
            plan=plan.text,
            url=self.place.url,
            scratch=f"{'receipts/' if bucket else ''}{plan.round}-{plan.stage}-{identity}",
            bounds=tuple(bounds),
            kind=SECOND,
            overviews=(),
            needs=needs(models),
            journal=where.over_machines,
        )

    def run(self, strategies: Mapping[str, Strategy]) -> Done:
        """Does all pieces that have no receipt.

        Raises:
            FlywheelError: of the first piece that failed. Those that are done stay done.
        """
        job, first = self._job, list[Receipt]()
        if compared := {name: s for name, s in sorted(strategies.items()) if s.needs_overview()}:
            self._fold(compared, first := self._receipts(replace(job, kind=FIRST)))
            job = replace(job, overviews=tuple(compared))
        self.done = _together(self._receipts(job))
        self.done.seconds["run"] += sum(receipt.seconds["run"] for receipt in first)
        return self.done

    def bring(self, part: Part, to: Path) -> None:
        """Puts a part of the result into a folder of the project."""
        source = Path(self.place.address(f"{self._job.scratch}/parts/{part.file}"))
        try:
            link(source, to)
        except FileNotFoundError as error:
            self.forget_lost()
            raise StoreError(f"{source} is gone, though its piece has a receipt; run the stage again") from error

    def forget(self, which: Callable[[Receipt], bool], kind: str = SECOND) -> None:
        """Deletes the receipts of pieces that are to be done again."""
        job = replace(self._job, kind=kind)
        for number in range(len(job.bounds)):
            receipt = self._receipt(job, number)
            if receipt and which(receipt):
                self.place.delete(receipt_name(job.scratch, kind, number))

    def forget_lost(self) -> None:
        """Deletes the receipts of pieces of which something is gone."""
        for kind in (FIRST, SECOND):
            self.forget(lambda r: not all(map(self._is_whole, [*r.summaries.values(), *r.parts])), kind)

    def _is_whole(self, left: Part | str) -> bool:
        """Whether a part, or a summary by its name, is still where its worker put it."""
        if isinstance(left, str):
            return self.place.entry(left) is not None
        name = pointers.object_name(left) if self._in_bucket else f"{self._job.scratch}/parts/{left.file}"
        entry = self.place.entry(name)
        return entry is not None and entry.bytes == left.bytes

    def clear(self) -> None:
        """Deletes what is not needed once the result is committed: parts in a bucket are the result's own."""
        if not self._in_bucket:
            scratch = Path(self.place.address(self._job.scratch))
            for receipts in (SECOND, FIRST):  # before what they name, for a kill in between
                shutil.rmtree(scratch / receipts, ignore_errors=True)
            stage = re.compile(rf"{re.escape(scratch.name.rpartition('-')[0])}-[0-9a-f]+")
            for folder in scratch.parent.iterdir():  # of other plans and inputs of this stage, too
                if stage.fullmatch(folder.name):
                    shutil.rmtree(folder, ignore_errors=True)
            return
        for name in sorted(self.place.names(f"{self._job.scratch}/"), key=lambda name: not name.endswith(".json")):
            self.place.delete(name)  # receipts first here, too

    def _receipts(self, job: PieceJob) -> list[Receipt]:
        """The receipts of all pieces, in their order, once each has one."""
        numbers = range(len(job.bounds))
        known = {r.piece: r for r in self._read(job, numbers)}
        missing = [n for n in numbers if n not in known]
        with closing(cache.Progress("pieces done")) as progress:
            progress.ask(len(numbers), len(known))
            if missing:
                with closing(self._where.run(job, missing)) as done:  # type: ignore[type-var]
                    for _ in done:
                        progress.answered(1)
        known |= {r.piece: r for r in self._read(job, missing)}
        if lost := [n for n in numbers if n not in known]:
            raise StoreError(
                f"{self.stage.name}: piece {lost[0]} was done, and its receipt is not in {self.place.url}; do all machines "
                "see the same folder?"
            )
        return [known[n] for n in numbers]

    def _read(self, job: PieceJob, numbers: Sequence[int]) -> list[Receipt]:
        with ThreadPoolExecutor(THREADS) as threads:
            return [r for r in threads.map(lambda n: self._receipt(job, n), numbers) if r]

    def _receipt(self, job: PieceJob, number: int) -> Receipt | None:
        name = receipt_name(job.scratch, job.kind, number)
        try:
            return Receipt.model_validate_json(self.place.read(name))
        except Absent:
            return None
        except ValidationError:
            self.place.delete(name)  # it was damaged: the piece is done again
            return None

    def _fold(self, strategies: Mapping[str, Strategy], receipts: Sequence[Receipt]) -> None:
        """Folds the summaries of all pieces into an overview by member, which the second pass reads."""
        for n, (name, strategy) in enumerate(strategies.items()):
            names = [receipt.summaries[name] for receipt in receipts]
            files = [ObjectPath(self.place, x) if self._in_bucket else Path(self.place.address(x)) for x in names]
            try:
                strategy.fold(pointers.scan(files)).write_parquet(data := io.BytesIO())
            except FileNotFoundError as error:
                self.forget_lost()
                raise StoreError(f"{error}, though its piece has a receipt; run the stage again") from error
            self.place.put_once(overview_name(self._job.scratch, n), data.getvalue())


def link(source: Path, to: Path) -> None:
    """Links a file that no longer changes; copies it where the file system cannot link."""
    try:
        to.hardlink_to(source)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, to)


def needs(models: Models) -> Needs:
    """What a worker needs for the engines that the stage may open."""
    engines = [models.engine(name) for name in models.names]
    loading = [engine for engine in engines if engine.loads]
    cpus = max((getattr(engine, "threads", None) or 1 for engine in engines), default=1)
    spread = [getattr(e, "tensor_parallel", 1) * getattr(e, "data_parallel_size", 1) for e in loading]
    on_cpu = [getattr(engine, "device", "auto") == "cpu" for engine in loading]
    gpus = max((0 if cpu else count for count, cpu in zip(spread, on_cpu, strict=True)), default=0)
    return Needs(cpus, gpus, any(getattr(engine, "device", "auto") == "cuda" for engine in loading))


def _together(receipts: Sequence[Receipt]) -> Done:
    """One result of all pieces, in their order."""
    parts = [part for receipt in receipts for part in receipt.parts]
    parts = [part for part in parts if part.rows] or parts[:1]
    digest = store.digest((part.file, part.sha256) for part in parts)
    rows = sum(part.rows or 0 for part in parts)
    meters: dict[str, Meter] = {}
    for receipt in receipts:
        for name, counts in receipt.meters.items():
            total = meters.setdefault(name, Meter())
            for key, value in counts.items():
                setattr(total, key, (value or total.last_error) if key == "last_error" else getattr(total, key) + value)
    kinds = {name: kind for receipt in receipts for name, kind in receipt.kinds.items()}
    return Done(
        Output(kind="table", digest=digest, rows=rows, parts=parts),
        meters,
        {k: sum(receipt.seconds.get(k, 0.0) for receipt in receipts) for k in ("run", "write")},
        {name: sum(receipt.gpus.get(name, 0.0) for receipt in receipts) for name in kinds},
        kinds,
        tuple(dict.fromkeys(w for receipt in receipts for w in receipt.warnings)),
    )
