"""Counterfactual rounds: some stages, parent and seed of one round, the rest of another one, as far as the exam.

A stage's result is taken from where it is, for its key says all that decides it: plan without names, digests of inputs. So a
counterfactual runs the stages after the first that differs, and two counterfactuals run what they share once. Each stage has a
scratch place of its own, with links to its inputs; requests go through the project's cache. The stages of a counterfactual run
in one process, which holds the lock: after a kill the next one finds what was made.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import chdir
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import monotonic
from typing import Any

from pydantic import BaseModel

from tasks.core import store
from tasks.core.errors import FlywheelError
from tasks.core.plan import TRANSPORT, Plan, read_transport
from tasks.core.stage import Input, Stage, stages
from tasks.core.store import Manifest, Output
from tasks.project import scratch
from tasks.project._bisect_slices import Slice, leave_out
from tasks.project.blocks import EXAM
from tasks.project.edit import STATE, lock

PLACE = Path(STATE) / "bisect"
NAME = "counterfactual"
CACHE = "data/cache/requests"
KEPT = ("evals", "measures")
RERUN, PARENT, SEED = "rerun", "parent", "seed"
"""What differs between rounds beside the settings of their stages: whether a round comes out the same when its stages run
again, the models and tables of its ancestors, and its seed.
"""


def chain() -> list[Stage]:
    """The stages of a round as far as the exam, in order."""
    return [s for s in stages().values() if s.bases != "only" and s.name != "gate"]


class Unit(BaseModel):
    """A part of a round that differs from the other round, and can be taken from there."""

    name: str
    """A stage, or `rerun`, `parent` or `seed`."""
    differs: list[str]
    """What differs: `filter.threshold.min_reward: 0.4 → 0.0`; nothing where plans tell of nothing."""
    place: int
    """Place in the chain of the first stage that it touches."""
    repeatable: bool = True
    """Whether today's code makes the good round's version of it on other inputs."""


@dataclass(frozen=True)
class Rounds:
    """The two rounds, by their manifests."""

    root: Path
    good: str
    bad: str

    @cached_property
    def manifests(self) -> dict[str, dict[str, Manifest]]:
        """By round and stage."""
        return {name: store.manifests(self.root, name) for name in (self.good, self.bad)}

    def seed(self, name: str) -> int | None:
        """A round's seed."""
        return next(
            (m.plan.seed for s, m in self.manifests[name].items() if s not in EXAM and m.plan.seed is not None), None
        )

    def ancestors(self, name: str) -> dict[str, str]:
        """Names of a round's ancestors by kind, as far as its stages read them."""
        return {k: v for m in self.manifests[name].values() for k, v in m.plan.ancestors.items()}


@dataclass(frozen=True)
class Step:
    """A stage of a counterfactual: to be run by a plan, or taken over as a round has stored it."""

    stage: str
    plan: Plan
    stored: str | None = None


@dataclass(frozen=True)
class Counterfactual:
    """The bad round with some units of the good one, or with its own training rows without a slice."""

    rounds: Rounds
    steps: tuple[Step, ...]
    rerun: bool = False
    without: Slice | None = None

    @cached_property
    def identity(self) -> str:
        """Digest of all that decides its result: the plans that it runs by, and the digests of what it takes over."""
        root, manifests = self.rounds.root, self.rounds.manifests
        parts: list[Any] = [self.rerun, self.without.model_dump() if self.without else None]
        for step in self.steps:
            if step.stored:
                outputs = manifests[step.stored][step.stage].outputs
                parts.append([step.stage, {n: o.digest for n, o in sorted(outputs.items())}])
            else:
                above = {i.argument: i for i in needs(step.plan) if i.ancestor}
                digests = {
                    a: store.find(root, step.plan.ancestors[str(i.ancestor)], i.name)[1].digest
                    for a, i in above.items()
                }
                parts.append([_nameless(step.plan).text, digests])
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def to_run(self) -> list[Step]:
        """The stages that may have to run; some of them may be found."""
        steps = [s for s in self.steps if not s.stored]
        return [s for s in self.steps if s.stage in ("train", "evaluate")] if self.without else steps

    @property
    def place(self) -> Path:
        """Folder of its result, which looks like a project with the one round `counterfactual`."""
        return self.rounds.root / PLACE / "runs" / self.identity

    @property
    def is_made(self) -> bool:
        """Whether its result is there."""
        return (self.place / "run.json").is_file()


class Made(BaseModel):
    """What making a counterfactual took and gave."""

    ran: list[str]
    """Stages that ran; the others were found."""
    seconds: float
    cpu_seconds: float
    outputs: dict[str, dict[str, str]]
    """Digest of each output, by stage."""


# Composition


def compose(rounds: Rounds, units: Collection[Unit], chosen: Collection[str]) -> Counterfactual:
    """The bad round with the chosen units from the good one. What comes before the first of them is the bad round's as it is
    stored; what is the good round's from the start, is that round's as it is stored.
    """
    bad, good = rounds.bad, rounds.good
    own = [u for u in units if u.name != RERUN]
    again = min((u.place for u in units if u.name == RERUN and u.name in chosen), default=None)
    lineage = rounds.ancestors(good if PARENT in chosen else bad)
    seed = rounds.seed(good if SEED in chosen else bad)
    steps = []
    for number, stage in enumerate(chain()):
        so_far = [u.name in chosen for u in own if u.place <= number]
        redone = again is not None and again <= number
        stored = bad if not any(so_far) and not redone else good if all(so_far) else None
        plan = rounds.manifests[stored or (good if stage.name in chosen else bad)][stage.name].plan
        steps.append(Step(stage.name, plan if stored else _plan(rounds.root, plan, lineage, seed), stored))
    return Counterfactual(rounds, tuple(steps), rerun=again is not None)


def compose_slice(rounds: Rounds, without: Slice) -> Counterfactual:
    """The bad round, trained without a slice of its training rows."""
    last = [s.name for s in chain()].index("collect")
    manifests = rounds.manifests[rounds.bad]
    lineage, seed = rounds.ancestors(rounds.bad), rounds.seed(rounds.bad)
    steps = (
        Step(s.name, manifests[s.name].plan, rounds.bad)
        if n <= last
        else Step(s.name, _plan(rounds.root, manifests[s.name].plan, lineage, seed))
        for n, s in enumerate(chain())
    )
    return Counterfactual(rounds, tuple(steps), without=without)


def _plan(root: Path, plan: Plan, lineage: Mapping[str, str], seed: int | None) -> Plan:
    """A plan with other ancestors, another seed, and the code and files of today."""
    changes = {
        "round": NAME,
        "ancestors": {kind: lineage.get(kind, name) for kind, name in plan.ancestors.items()},
        "code": {f: d for f, d in today(root, plan.code).items() if d != "absent"},
        "files": today(root, plan.files),
    }
    return plan.model_copy(update=changes | ({} if plan.seed is None or plan.stage in EXAM else {"seed": seed}))


def today(root: Path, files: Collection[str]) -> dict[str, str]:
    """sha256 of files of the project as they are now; `absent` where there is none."""
    return {f: store.sha256(root / f) if (root / f).is_file() else "absent" for f in files}


def needs(plan: Plan) -> list[Input]:
    """The inputs that a stage reads by a plan."""
    inputs = [i for i in stages()[plan.stage].inputs if not i.conditional or i.argument in plan.reads]
    return [i for i in inputs if not i.ancestor or plan.ancestors.get(i.ancestor, plan.round) != plan.round]


def key(plan: Plan, inputs: Mapping[str, str]) -> str:
    """Digest of all that decides the result of a stage."""
    text = json.dumps([_nameless(plan).text, sorted(inputs.items())])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _nameless(plan: Plan) -> Plan:
    return plan.model_copy(update={"round": "", "ancestors": {}})


# Making


def make(what: Counterfactual) -> str | None:
    """Makes a counterfactual in a process of its own; the last line of one that failed. One that is there is not made again."""
    if what.is_made:
        return None
    rounds = what.rounds
    steps = [{"stage": s.stage, "plan": s.plan.model_dump(mode="json"), "stored": s.stored} for s in what.steps]
    without = what.without and what.without.model_dump()
    order = {"good": rounds.good, "bad": rounds.bad, "steps": steps, "rerun": what.rerun, "without": without}
    place = rounds.root / PLACE / "logs" / what.identity
    place.parent.mkdir(parents=True, exist_ok=True)
    place.with_suffix(".json").write_text(json.dumps(order), encoding="utf-8")
    arguments = place.with_suffix(".json").absolute().as_posix()
    return scratch.run_apart(rounds.root, place.with_suffix(".log"), __name__, arguments)


def made(what: Counterfactual) -> Made:
    """What making it gave."""
    return Made.model_validate_json((what.place / "run.json").read_text(encoding="utf-8"))


def clean(root: Path, keep_logs: bool = False) -> None:
    """Removes what is wanted only while counterfactuals are made: their models and tables. Their exams stay."""
    with lock(root, "bisect"):
        for folder in ("stages", *(() if keep_logs else ("logs",))):
            shutil.rmtree(root / PLACE / folder, ignore_errors=True)


def _main(order: dict[str, Any]) -> None:
    rounds = Rounds(Path().resolve(), order["good"], order["bad"])
    steps = tuple(Step(s["stage"], Plan.model_validate(s["plan"]), s["stored"]) for s in order["steps"])
    without = Slice.model_validate(order["without"]) if order["without"] else None
    what = Counterfactual(rounds, steps, order["rerun"], without)
    with lock(rounds.root, "bisect"):
        if not what.is_made:
            _make(what)


def _make(what: Counterfactual) -> None:
    import psutil

    start, builder = monotonic(), _Builder(what)
    for step in what.steps:
        builder.take(step)
    used = psutil.Process().cpu_times()
    result = Made(
        ran=builder.ran,
        seconds=round(monotonic() - start, 1),
        cpu_seconds=round(used.user + used.system, 1),
        outputs={stage: {n: o.digest for n, o in m.outputs.items()} for stage, m in builder.manifests.items()},
    )
    new = what.place.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    folder, results = store.round_folder(new, NAME), builder.places["evaluate"]
    for name in KEPT:
        shutil.copytree(results / name, folder / name)
    _write_manifest(folder, builder.manifests["evaluate"])
    (new / "run.json").write_text(result.model_dump_json(indent=1), encoding="utf-8")
    new.rename(what.place)


class _Builder:
    """Makes a counterfactual stage by stage."""

    def __init__(self, what: Counterfactual) -> None:
        self.what, self.root, self.rounds = what, what.rounds.root, what.rounds
        names = [self.rounds.good, *([] if what.rerun else [self.rounds.bad])]
        everything = [(n, m) for n in reversed(names) for m in self.rounds.manifests[n].values()]
        self.known = {key(m.plan, m.inputs): n for n, m in everything}
        self.places: dict[str, Path] = {}
        """Folder of the round that has a stage's outputs."""
        self.manifests: dict[str, Manifest] = {}
        self.ran: list[str] = []

    def take(self, step: Step) -> None:
        """Has a stage's result: stored, found, or made."""
        if step.stored:
            self._use(step.stage, store.round_folder(self.root, step.stored))
        else:
            inputs = {i.argument: self._digest(i, step.plan) for i in needs(step.plan)}
            identity = key(step.plan, inputs)
            self._use(step.stage, self._found(step.stage, identity) or self._run(step, identity))
        if step.stage == "collect" and self.what.without:
            self._use("collect", self._sliced(self.what.without))

    def _use(self, stage: str, place: Path) -> None:
        self.places[stage], self.manifests[stage] = place, store.read_manifest(place / f"manifests/{stage}.json")

    def _digest(self, need: Input, plan: Plan) -> str:
        if need.ancestor:
            return store.find(self.root, plan.ancestors[need.ancestor], need.name)[1].digest
        return next(m.outputs[need.name].digest for m in self.manifests.values() if need.name in m.outputs)

    def _place(self, stage: str, identity: str) -> Path:
        return self.root / PLACE / "stages" / f"{stage}-{identity}"

    def _found(self, stage: str, identity: str) -> Path | None:
        place = self._place(stage, identity)
        if stage in store.manifests(place, NAME):
            return store.round_folder(place, NAME)
        return store.round_folder(self.root, self.known[identity]) if identity in self.known else None

    def _run(self, step: Step, identity: str) -> Path:
        from tasks.project.execute import run_stage

        place = self._prepared(step.stage, identity)
        scratch.write_plan(place, step.plan)
        with chdir(place):  # plans name files by their path in the project
            run_stage(Path(), NAME, step.stage)
        self.ran.append(step.stage)
        print(f"{step.stage}@{NAME}", flush=True)
        return store.round_folder(place, NAME)

    def _prepared(self, stage: str, identity: str) -> Path:
        """A scratch place with links to all that the stage reads."""
        place = self._place(stage, identity)
        (self.root / CACHE).mkdir(parents=True, exist_ok=True)
        scratch.mirror(self.root, place, NAME)
        scratch.link(self.root, place, [CACHE])
        transport = read_transport(self.root)
        (place / TRANSPORT).parent.mkdir(parents=True, exist_ok=True)
        (place / TRANSPORT).write_text(json.dumps(transport | {NAME: transport.get(self.rounds.bad, {})}))
        folder = store.round_folder(place, NAME)
        for other in (m for s, m in self.manifests.items() if s != stage):
            _write_manifest(folder, other)
        for name, source in self._inputs(stage):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if not (folder / name).is_symlink():
                (folder / name).symlink_to(source.resolve())
        return place

    def _inputs(self, stage: str) -> Iterator[tuple[str, Path]]:
        for other, place in self.places.items():
            if other != stage:
                yield from ((output, place / output) for output in self.manifests[other].outputs)

    def _sliced(self, without: Slice) -> Path:
        """The collected rows without a slice."""
        outputs: dict[str, Output] = self.manifests["collect"].outputs
        text = json.dumps([without.model_dump(), {n: o.digest for n, o in outputs.items()}], sort_keys=True)
        identity = hashlib.sha256(text.encode()).hexdigest()[:16]
        if place := self._found("collect", identity):
            return place
        place = self._prepared("collect", identity)
        leave_out(self.root, place, self.rounds.bad, NAME, without, self.manifests["collect"])
        return store.round_folder(place, NAME)


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    """The manifest as one of this round: one that says another is refused."""
    file = folder / f"manifests/{manifest.stage}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(manifest.of_round(NAME).text, encoding="utf-8")


if __name__ == "__main__":
    try:
        _main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    except FlywheelError as error:
        sys.exit(f"{type(error).__name__}: {error}".replace("\n", "; "))
