"""The stages of a round again, to see whether they give the same bytes.

Each runs in a process and a scratch place of its own, by the plan in its manifest, with today's code, from the inputs that
the round has stored, and without the request cache. Inputs are the stored ones and not the replayed ones, so a difference is
found in the stage that makes it, and not in all those after it.
"""

import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from tasks.core import store
from tasks.core.errors import FlywheelError, UnknownName
from tasks.core.plan import TRANSPORT, Plan
from tasks.core.stage import stages
from tasks.project import scratch
from tasks.project.edit import STATE, lock
from tasks.project.execute import VERSIONS
from tasks.project.params import load_params
from tasks.project.tolerance import (
    ATOL,
    RTOL,
    Difference,
    folder_difference,
    metrics_difference,
    plot_difference,
    table_difference,
)

PLACE = Path(STATE) / "replay"
VERDICTS = {
    "identical": "byte-identical",
    "close": f"equal within a tolerance of {RTOL:g}",
    "different": "different",
    "not comparable": "not comparable",
}
Verdict = Literal["identical", "close", "different", "not comparable"]


class Replayed(BaseModel):
    """What the replay of a stage gave."""

    stage: str
    verdict: Verdict
    difference: Difference | None = None
    reason: str = ""
    """Why it is not comparable."""
    edited: list[str] = []
    """Modules, and files that the stage reads, that are not those of the manifest's plan."""
    versions: dict[str, str] = {}
    """Libraries of another version, as `2.8.0 → 2.13.0`."""
    stored: dict[str, str]
    """Digest of each output."""
    replayed: dict[str, str] = {}
    stored_seconds: float
    replayed_seconds: float | None = None


class Machine(BaseModel):
    """The hardware of a replay."""

    cpu: str
    cores: int
    torch_threads: int
    device: str


class Certificate(BaseModel):
    """What a replay found, to be kept or sent."""

    round: str
    made: str
    rtol: float = RTOL
    atol: float = ATOL
    machine: Machine
    versions: dict[str, str]
    """Of the libraries that replayed."""
    stages: list[Replayed]

    @property
    def holds(self) -> bool:
        """Whether every stage gave the stored result."""
        return all(s.verdict in ("identical", "close") for s in self.stages)


def stages_of(root: Path, name: str, only: str | None = None) -> list[str]:
    """The stages that a base or round has run, in order; `only` one of them.

    Raises:
        UnknownName: when there is no such base or round, or it has run no such stage.
        FlywheelError: when it has not run at all.
    """
    made = store.manifests(root, name)
    if not made:
        load_params(root).block(name)
        raise FlywheelError(f"{name} has not run, so there is nothing to compare with; `flywheel run {name}` runs it")
    if only is not None and only not in made:
        raise UnknownName(f"stage of {name}", only, made)
    return [stage for stage in stages() if stage in made and only in (None, stage)]


def replay(root: Path, name: str, chosen: list[str]) -> Iterator[Replayed]:
    """Replays stages of a base or round one after the other. Scratch places are removed, but for those of stages that differ."""
    made = store.manifests(root, name)
    with lock(root, f"replay-{name}"):
        for stage in chosen:
            result = _replay(root, made, made[stage], PLACE / name / stage)
            if result.verdict != "different":
                shutil.rmtree(root / PLACE / name / stage)
            yield result
        with suppress(OSError):  # not empty
            (root / PLACE / name).rmdir()


def _replay(root: Path, made: dict[str, store.Manifest], then: store.Manifest, place: Path) -> Replayed:
    result = Replayed(
        stage=then.stage,
        verdict="not comparable",
        edited=_edited(root, then.plan),
        stored={output: entry.digest for output, entry in then.outputs.items()},
        stored_seconds=_seconds(then),
    )
    shutil.rmtree(root / place, ignore_errors=True)
    _prepare(root, made, then, place)
    if replaced := _replaced_inputs(root, then):
        return result.model_copy(update={"reason": f"{replaced} was made again since; `flywheel run {then.round}`"})
    log = root / place / "log"
    if failure := scratch.run_apart(root / place, log, scratch.__name__, then.round, then.stage):
        return result.model_copy(update={"reason": failure})
    now = store.manifests(root / place, then.round)[then.stage]
    return result.model_copy(update=_compared(root, place, then, now))


def _prepare(root: Path, made: dict[str, store.Manifest], then: store.Manifest, place: Path) -> None:
    """A scratch place that has all but what the stage wrote, and its plan."""
    scratch.mirror(root, root / place, then.round)
    own = f"data/round={then.round}"
    others = [f"{own}/{n}" for s, m in made.items() if s != then.stage for n in (f"manifests/{s}.json", *m.outputs)]
    scratch.link(root, root / place, [TRANSPORT.as_posix(), *others])
    code = {f: store.sha256(root / f) for f in then.plan.code if (root / f).is_file()}
    scratch.write_plan(root / place, then.plan.model_copy(update={"code": code}))


def _edited(root: Path, plan: Plan) -> list[str]:
    digests = plan.code | {f: digest for f, digest in plan.files.items() if digest != "absent"}
    return [f for f, digest in digests.items() if not (root / f).is_file() or store.sha256(root / f) != digest]


def _replaced_inputs(root: Path, then: store.Manifest) -> str:
    """The inputs that are no longer those that the stage read."""
    owners = {None: then.round, **then.plan.ancestors}
    needs = [i for i in stages()[then.stage].inputs if i.argument in then.inputs and i.ancestor in owners]
    replaced = [
        f"{i.name} of {owners[i.ancestor]}"
        for i in needs
        if store.find(root, owners[i.ancestor], i.name)[1].digest != then.inputs[i.argument]
    ]
    return ", ".join(replaced)


def _compared(root: Path, place: Path, then: store.Manifest, now: store.Manifest) -> dict[str, object]:
    replayed = {output: entry.digest for output, entry in now.outputs.items()}
    other = [n for n in {**then.outputs, **now.outputs} if _digest(then, n) != _digest(now, n)]
    found = next(filter(None, (_difference(root, root / place, then, now, output) for output in other)), None)
    beside = _beside(root, root / place, then, now)
    found = found or next(filter(None, beside), None)
    verdict: Verdict = "different" if found else "close" if other or beside else "identical"
    versions = {k: f"{v} → {now.versions.get(k)}" for k, v in then.versions.items() if now.versions.get(k) != v}
    return {
        "verdict": verdict, "difference": found, "replayed": replayed, "versions": versions, "replayed_seconds": _seconds(now),
    }  # fmt: skip


def _beside(root: Path, place: Path, then: store.Manifest, now: store.Manifest) -> list[Difference | None]:
    """The first difference of the metrics and of each plot that are not equal; None where it is within the tolerance."""
    metrics, own = f"metrics/{then.stage}.json", f"data/round={then.round}"
    found = [] if then.metrics == now.metrics else [metrics_difference(metrics, then.metrics, now.metrics)]
    for file in (f"plots/{plot}.csv" for plot in stages()[then.stage].plots):
        stored, replayed = (r / own / file for r in (root, place))
        one, other = (f.read_bytes() if f.is_file() else None for f in (stored, replayed))
        if one != other:
            found.append(plot_difference(file, stored, replayed))
    return found


def _seconds(manifest: store.Manifest) -> float:
    return round(sum(manifest.seconds.values()), 1)


def _digest(manifest: store.Manifest, output: str) -> str | None:
    return manifest.outputs[output].digest if output in manifest.outputs else None


def _difference(root: Path, place: Path, then: store.Manifest, now: store.Manifest, output: str) -> Difference | None:
    """The first difference between the stored and the replayed output; None where they are equal within the tolerance."""
    if output not in then.outputs or output not in now.outputs:
        there, absent = ("there", "absent") if output in then.outputs else ("absent", "there")
        return Difference(output=output, row="", stored=there, replayed=absent)
    if then.outputs[output].kind == "table":
        tables = (store.read(r, then.round, output) for r in (root, place))
        return table_difference(output, *tables)
    return folder_difference(output, *(store.folder(r, then.round, output)[0] for r in (root, place)))


# The certificate


def certificate(name: str, results: list[Replayed]) -> Certificate:
    """The certificate of a replay on this machine."""
    installed = {d.name.lower(): d.version for d in distributions()}
    return Certificate(
        round=name,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine(),
        versions={"python": platform.python_version(), **{n: installed.get(n, "absent") for n in VERSIONS}},
        stages=results,
    )


def machine() -> Machine:
    """This machine's hardware."""
    import torch

    info = Path("/proc/cpuinfo")
    cpu = re.search(r"model name\s*: (.*)", info.read_text()) if info.is_file() else None
    return Machine(
        cpu=cpu[1] if cpu else platform.processor() or platform.machine(),
        cores=os.cpu_count() or 1,
        torch_threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    )
