"""The model in force: the champion of each base, or the model that a person promoted by hand.

A gate's decision counts while it is current: the round and its ancestors were made with their current plans, from the
current outputs of their ancestors. Edits of parameters, models and files that a plan names invalidate a decision; edits of
code do not. A round that trained nothing carries its parent's model and is never a champion.

Every test of a champion is a line of the ledger `data/decisions/looks.jsonl`, which `flywheel record` writes (a flow calls it
after each stage) and which is never shortened: a round that is removed, or that is run again with another seed until it
wins, does not give back the level that its test has spent. Keep it in git beside champion.yaml; where branches of git meet,
keep the lines of both.

A person who is asked (`approve` of a campaign) promotes or refuses a round: `data/decisions/answers.yaml` keeps every answer.
A promotion is a decision as that of `flywheel promote`. A model that was refused is never champion, nor the parent of a
campaign's next round, until somebody promotes it; run again, the round has another model, about which nothing was said.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import BaseModel, TypeAdapter, ValidationError
from ruamel.yaml import YAML

from tasks.core import models, store
from tasks.core.champion import Candidate, Compared, Election, Look, Test, compare, elect
from tasks.core.errors import FlywheelError
from tasks.core.plan import Plan
from tasks.core.stage import stages
from tasks.core.store import Manifest
from tasks.gate import GateOptions, per_item
from tasks.project.params import EXAM, Block, Pipeline, stages_of
from tasks.project.plan import Plans, plans

ALPHA = 0.05
"""Probability that any round without a gain ever becomes champion of its base."""
DECISION = Path("data/decisions/champion.yaml")
LOOKS = Path("data/decisions/looks.jsonl")
ANSWERS = Path("data/decisions/answers.yaml")
TESTS = Path(".flywheel/tests.json")
"""Results of tests of champions, remembered; may be deleted at any time."""
COMPARING = ("tasks.core.champion", "tasks.gate")
Manifests = dict[str, Manifest]


class Decision(BaseModel):
    """A person's choice of the model in force."""

    round: str
    digest: str
    """Digest of the model, as rows carry it. A round that was run again has another model, which nobody approved."""
    when: str
    by: str
    note: str = ""


class Answer(Decision):
    """What a person who was asked said about a round's model."""

    answer: Literal["promote", "refuse"]


class Entry(BaseModel):
    """A line of the ledger: a test of one round's answers against those of the champion before it."""

    base: str
    round: str
    answers: str
    """What answered: digest of the table `evals`, member of the exam, split."""
    against: str
    against_answers: str
    when: str

    @property
    def test(self) -> Test:
        """What was compared."""
        return self.round, self.answers, self.against, self.against_answers


def ledger(root: Path) -> list[Entry]:
    """Every test that was recorded, the first one first.

    Raises:
        FlywheelError: when a line cannot be read.
    """
    path = root / LOOKS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [_entry(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _entry(number: int, line: str) -> Entry:
    try:
        return Entry.model_validate_json(line)
    except ValidationError as error:
        raise FlywheelError(
            f"{LOOKS}:{number} cannot be read: {error.errors()[0]['msg']}; restore it with `git checkout {LOOKS}`, or keep "
            "the lines of both sides of a merge"
        ) from error


def record_looks(root: Path, results: Mapping[str, Election]) -> int:
    """Appends the tests of elections that the ledger does not have; returns how many. One process at a time may call it.
    The file is replaced by a longer one, so that a kill leaves no half of a line.
    """
    entries = ledger(root)
    recorded = {(e.base, e.test) for e in entries}
    new = [_to_entry(b, look) for b, e in results.items() for look in e.looks if (b, look.test) not in recorded]
    if new:
        path = root / LOOKS
        path.parent.mkdir(parents=True, exist_ok=True)
        longer = path.with_suffix(".new")
        longer.write_text("".join(f"{e.model_dump_json()}\n" for e in [*entries, *new]), encoding="utf-8")
        longer.replace(path)
    return len(new)


def _to_entry(base: str, look: Look) -> Entry:
    name, answers, against, others = look.test
    when = datetime.now(UTC).isoformat(timespec="seconds")
    return Entry(base=base, round=name, answers=answers, against=against, against_answers=others, when=when)


def decision(root: Path) -> Decision | None:
    """The model that a person promoted; None where the champion is in force.

    Raises:
        FlywheelError: when the file cannot be read.
    """
    path = root / DECISION
    if not path.is_file():
        return None
    try:
        return Decision.model_validate(YAML(typ="safe").load(path.read_text()))
    except Exception as error:
        raise FlywheelError(f"{DECISION} cannot be read ({error}); delete it, then `flywheel promote ROUND`") from error


def decide(root: Path, choice: Decision) -> None:
    """Puts a model in force: writes the decision of `flywheel promote`."""
    _write(root / DECISION, choice.model_dump(include=set(Decision.model_fields), exclude_defaults=True))


def answers(root: Path) -> list[Answer]:
    """Every answer of a person, the first one first.

    Raises:
        FlywheelError: when the file cannot be read.
    """
    path = root / ANSWERS
    if not path.is_file():
        return []
    try:
        return TypeAdapter(list[Answer]).validate_python(YAML(typ="safe").load(path.read_text(encoding="utf-8")) or [])
    except Exception as error:
        raise FlywheelError(f"{ANSWERS} cannot be read ({error}); restore it with `git checkout {ANSWERS}`") from error


def keep_answer(root: Path, name: str, answer: Literal["promote", "refuse"], by: str, note: str = "") -> Answer:
    """Keeps a person's answer about a round's present model; where it promotes, as the decision, too.

    Raises:
        FlywheelError: when nobody is named, the round has no model, or earlier answers cannot be read.
    """
    digest = model_digest(root, name, store.manifests(root, name))
    if digest is None:
        raise FlywheelError(f"{name} has no model yet; `flywheel run {name}` makes it")
    if not by.strip():
        raise FlywheelError(f"the answer about {name} names nobody; `by` is who gave it")
    when = datetime.now(UTC).isoformat(timespec="seconds")
    kept = Answer(round=name, digest=digest, answer=answer, by=by.strip(), when=when, note=note.strip())
    _write(root / ANSWERS, [a.model_dump(exclude_defaults=True) for a in (*answers(root), kept)])
    if answer == "promote":
        decide(root, kept)
    return kept


def answer_about(root: Path, name: str) -> Answer | None:
    """The last answer about a round's present model."""
    digest = model_digest(root, name, store.manifests(root, name))
    return next((a for a in reversed(answers(root)) if (a.round, a.digest) == (name, digest)), None)


def _write(path: Path, values: Any) -> None:
    """Replaces a file by one with these values, so that a kill leaves no half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    with new.open("w", encoding="utf-8") as file:
        YAML().dump(values, file)
    new.replace(path)


def champion(root: Path, pipeline: Pipeline, base: str) -> Election:
    """Elects the champion of a base among its evaluated rounds, in the order of params.yaml; the base where none wins."""
    return _State(root, pipeline).election(base)


def elections(root: Path, pipeline: Pipeline, current: Plans | None = None) -> dict[str, Election]:
    """The election of every base that has a model. `current` are today's plans, where the caller has them."""
    state = _State(root, pipeline, current)
    return {n: state.election(n) for n, b in pipeline.blocks.items() if b.is_base and model(state.manifests[n])}


def in_force(root: Path, pipeline: Pipeline) -> str | None:
    """The first champion that is a round, in the order of the bases in params.yaml; else the first base with a model; None
    without one. Ignores a person's decision, which takes precedence.
    """
    return first_champion(elections(root, pipeline))


def first_champion(results: Mapping[str, Election]) -> str | None:
    """The first champion that is a round, else the first base; None without elections."""
    champions = {base: election.champion for base, election in results.items()}
    return next((name for base, name in champions.items() if name != base), next(iter(champions), None))


def next_parent(root: Path, pipeline: Pipeline, stop: bool = False) -> str | None:
    """The parent of the next round: the model that a person promoted, if it descends from the last round's base and still
    exists; else that base's champion. Before the first round, the first base. With `stop`, None if the gates or a person
    refused the last round.
    """
    last = next(reversed(pipeline.rounds), None)
    if last is None:
        return next(iter(pipeline.blocks))
    gate = store.manifests(root, last).get("gate")
    if stop and (not (gate and gate.metrics.get("promoted") == 1) or _refusal(root, last)):
        return None
    base = pipeline.block(last).base
    return _promoted_by_hand(root, pipeline, base) or champion(root, pipeline, base).champion


def _promoted_by_hand(root: Path, pipeline: Pipeline, base: str) -> str | None:
    """The round of this base that a person promoted, while it has the promoted model."""
    choice = decision(root)
    if choice is None or choice.round not in pipeline.blocks or pipeline.block(choice.round).base != base:
        return None
    digest = model_digest(root, choice.round, store.manifests(root, choice.round))
    return choice.round if digest == choice.digest else None


def _refusal(root: Path, name: str) -> Answer | None:
    """A person's refusal of a round's present model, unless somebody has promoted it since."""
    answer = answer_about(root, name)
    choice = decision(root)
    if answer is None or answer.answer != "refuse":
        return None
    return None if choice and (choice.round, choice.digest) == (name, answer.digest) else answer


def consistent_manifests(root: Path, block: Block) -> Manifests:
    """The manifests of a block whose stages belong together, in stage order.

    Left out: stages that read another version of the round's tables than the current one, or that ran with another seed,
    domain or engine than the stages before them.
    """
    manifests = store.manifests(root, block.name)
    digests: dict[str, str] = {}
    shared: dict[tuple[str, str], object] = {}
    kept: Manifests = {}
    for stage in stages_of(block):
        manifest = manifests.get(stage.name)
        if manifest is None:
            continue
        own = [i for i in stage.inputs if not i.ancestor and (not i.optional or i.argument in manifest.inputs)]
        same_inputs = all(manifest.inputs.get(i.argument) == digests.get(i.name) for i in own)
        if same_inputs and all(shared.setdefault(k, v) == v for k, v in _shared(manifest.plan).items()):
            kept[stage.name] = manifest
            digests |= {k: o.digest for k, o in manifest.outputs.items()}
    return kept


def _shared(plan: Plan) -> dict[tuple[str, str], object]:
    """Settings that the stages of a round share, as far as this one uses them. The exam has the base's seed and engine."""
    whose = "exam" if plan.stage in EXAM else "round"
    values = {("seed", whose): plan.seed, ("engine", whose): plan.engine, ("domain", ""): plan.domain}
    return {k: v for k, v in values.items() if v is not None}


def model(manifests: Manifests) -> store.Output | None:
    """The model among the outputs of a base or round."""
    return next((m.outputs["model"] for m in manifests.values() if "model" in m.outputs), None)


def model_digest(root: Path, name: str, manifests: Manifests) -> str | None:
    """Digest of the weights of a base or round, as rows carry it; None before it has a model."""
    output = model(manifests)
    if output is None:
        return None
    files = {part.file: part.sha256 for part in output.parts}
    return models.recorded_digest(store.round_folder(root, name) / "model", files) or output.digest


class _State:
    """Current outputs of every base and round, and whether they match params.yaml and their ancestors."""

    def __init__(self, root: Path, pipeline: Pipeline, current: Plans | None = None) -> None:
        self.root, self.pipeline = root, pipeline
        self._rates: dict[str, pl.DataFrame] = {}
        self.manifests = {name: consistent_manifests(root, block) for name, block in pipeline.blocks.items()}
        self.digests = {
            name: {k: o.digest for m in manifests.values() for k, o in m.outputs.items()}
            for name, manifests in self.manifests.items()
        }
        current = plans(root, pipeline) if current is None else current
        self.ledger = ledger(root)
        asked = {answer.round for answer in answers(root)}
        self.refused = {n: answer for n in pipeline.rounds if n in asked and (answer := _refusal(root, n))}
        self.current = {name for name in pipeline.blocks if self._is_current(name, current)}

    def _is_current(self, name: str, current: Plans) -> bool:
        """Whether a base or round was made with its current plans, from the current outputs of its ancestors."""
        return all(
            _without_code(manifest.plan) == _without_code(current[name, stage]) and self._has_current_inputs(manifest)
            for stage, manifest in self.manifests[name].items()
        )

    def _has_current_inputs(self, manifest: Manifest) -> bool:
        ancestors = manifest.plan.ancestors
        return all(
            manifest.inputs[i.argument] == self.digests.get(ancestors[i.ancestor], {}).get(i.name)
            for i in stages()[manifest.stage].inputs
            if i.ancestor in ancestors and i.argument in manifest.inputs
        )

    def election(self, base: str) -> Election:
        """The champion of a base."""
        if "evaluate" not in self.manifests[base] or base not in self.current:
            return Election(base, ())
        rounds = [n for n, b in self.pipeline.rounds.items() if b.base == base and self._is_eligible(n)]
        earlier = [entry.test for entry in self.ledger if entry.base == base]
        candidates = [self._candidate(name) for name in (base, *rounds)]
        with remembered_tests(self.root) as tests:
            election = elect(base, candidates, ALPHA, earlier, partial(self._compare, tests))
        return replace(election, looks=tuple(self._with_person(look) for look in election.looks))

    def _with_person(self, look: Look) -> Look:
        """A look at a round that a person refused names that person."""
        answer = self.refused.get(look.name)
        if answer is None:
            return look
        note = f": {answer.note}" if answer.note else ""
        return replace(look, reason=f"refused by {answer.by} ({answer.when}){note}")

    def _is_eligible(self, name: str) -> bool:
        """Whether it is evaluated and current. The round of a phase is none that would be promoted, and spends no look."""
        if self.pipeline.block(name).is_phase:
            return False
        lineage = {block.name for block in self.pipeline.lineage(name)}
        return {"evaluate", "gate"} <= self.manifests[name].keys() and lineage <= self.current

    def _candidate(self, name: str) -> Candidate:
        metrics = {k: v for m in self.manifests[name].values() for k, v in m.metrics.items()}
        promoted = metrics.get("promoted") == 1 and metrics.get("trained") != 0 and name not in self.refused
        options = self.pipeline.block(name).stages["gate"].options
        member, split = (
            (options.member, options.split) if isinstance(options, GateOptions) else ("answers", "validation")
        )
        return Candidate(name, promoted, digest=f"{self.digests[name]['evals']}/{member}/{split}")

    def _compare(self, tests: dict[str, Compared], champion: Candidate, candidate: Candidate) -> Compared:
        """A test of two tables of answers; one that is remembered is not made again."""
        key = f"{champion.digest} {candidate.digest}"
        if key not in tests:
            tests[key] = compare(self._with_rates(champion), self._with_rates(candidate))
        return tests[key]

    def _with_rates(self, candidate: Candidate) -> Candidate:
        if candidate.digest not in self._rates:
            _, member, split = candidate.digest.rsplit("/", 2)
            evals = store.read(self.root, candidate.name, "evals").lazy().filter(member=member)
            self._rates[candidate.digest] = per_item(evals, "sampled", split)
        return replace(candidate, rates=self._rates[candidate.digest])


@contextmanager
def remembered_tests(root: Path) -> Iterator[dict[str, Compared]]:
    """The tests that were made before, by the digests of what was compared; keeps those that are added. Of another version of
    the code that tests nothing is remembered, nor of a file that cannot be read.
    """
    path, code = root / TESTS, _code()
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        before = TypeAdapter(dict[str, Compared]).validate_python(kept["tests"]) if kept["code"] == code else {}
    except (OSError, ValueError, KeyError, TypeError):
        before = {}
    tests = dict(before)
    yield tests
    if tests != before:
        with suppress(OSError):  # a full or read-only disk: they will be made again
            path.parent.mkdir(exist_ok=True)
            new = path.with_name(f"{path.name}.{os.getpid()}.new")
            new.write_text(json.dumps({"code": code, "tests": {k: asdict(v) for k, v in tests.items()}}))
            new.replace(path)


def _code() -> str:
    """Digest of the code that compares answers."""
    return store.digest((m, store.sha256(Path(str(sys.modules[m].__file__)))) for m in COMPARING)


def _without_code(plan: Plan) -> Plan:
    return plan.model_copy(update={"code": {}, "tables": {}})
