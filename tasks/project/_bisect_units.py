"""In what two rounds differ, as their manifests have it: no stage runs for it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.core import store
from tasks.core.errors import FlywheelError, StoreError
from tasks.core.plan import Plan
from tasks.core.store import Manifest
from tasks.project import plan as plans
from tasks.project._bisect_runs import PARENT, RERUN, SEED, Rounds, Unit, chain, key, needs, today
from tasks.project.params import load_params


def open_rounds(root: Path, good: str, bad: str) -> Rounds:
    """Two rounds that can be compared.

    Raises:
        UnknownName: for a name that params.yaml does not have.
        FlywheelError: when both are one, one is a base, has not run as far as its exam, or is not up to date.
        StoreError: when files were changed.
    """
    params, rounds = load_params(root), Rounds(root.resolve(), good, bad)
    for flag, name in (("--good", good), ("--bad", bad)):
        if params.block(name).is_base:
            raise FlywheelError(f"{flag} {name}: is a base, which is made without the stages of a round; name a round")
    if good == bad:
        raise FlywheelError(f"--good and --bad are both {good}; name two rounds")
    for name in (good, bad):
        _check_complete(rounds, name)
        for stage in chain():
            now, then = plans.plan(root, params, params.block(name), stage), rounds.manifests[name][stage.name].plan
            if edited := differing(_values(then), _values(now)):
                raise FlywheelError(
                    f"{name} is not up to date: {edited[0]} since {stage.name} ran; `flywheel run {name}` first, or undo the edit"
                )
    return rounds


def _check_complete(rounds: Rounds, name: str) -> None:
    made = rounds.manifests[name]
    if missing := [s.name for s in chain() if s.name not in made]:
        raise FlywheelError(
            f"{name} has not run as far as its exam: {missing[0]} is missing; `flywheel run {name}` first"
        )
    for manifest in (made[s.name] for s in chain()):
        for output, entry in manifest.outputs.items():
            store.verify(store.round_folder(rounds.root, name) / output, entry)
        for need in (n for n in needs(manifest.plan) if n.argument in manifest.inputs):
            owner = manifest.plan.ancestors[need.ancestor] if need.ancestor else name
            if store.find(rounds.root, owner, need.name)[1].digest != manifest.inputs[need.argument]:
                raise StoreError(
                    f"{name} is not up to date: {need.name} of {owner} was made again since {manifest.stage} read it; "
                    f"`flywheel run {name}` first"
                )


def units(rounds: Rounds) -> list[Unit]:
    """All in which the bad round differs from the good one, in the order in which it acts.

    Raises:
        FlywheelError: when code or files that made both rounds are no longer there.
    """
    names = [s.name for s in chain()]
    both = [(rounds.manifests[rounds.good][n], rounds.manifests[rounds.bad][n]) for n in names]
    seeds = rounds.seed(rounds.good), rounds.seed(rounds.bad)
    found, again = [], []
    if ancestors := _other_ancestors(rounds):
        found.append(Unit(name=PARENT, differs=ancestors, place=0))
    if seeds[0] != seeds[1]:
        found.append(Unit(name=SEED, differs=[f"{seeds[0]} → {seeds[1]}"], place=0))
    for place, (good, bad) in enumerate(both):
        edited = {n: _edited(rounds, n, (good, bad)) for n in (rounds.good, rounds.bad)}
        lines = differing(_settings(good.plan), _settings(bad.plan))
        if lines or edited[rounds.good]:
            lines += [f"{file} was edited since {rounds.good} was made" for file in edited[rounds.good]]
            found.append(Unit(name=good.stage, differs=lines, place=place, repeatable=not edited[rounds.good]))
        again += [(place, f"{bad.stage}: {file} was edited since") for file in edited[rounds.bad]]
        same = key(good.plan, good.inputs) == key(bad.plan, bad.inputs)
        if same and any(good.outputs[n].digest != bad.outputs[n].digest for n in good.outputs):
            again.append((place, f"{bad.stage}: the same plan and inputs, and another result"))
    if again:
        return [Unit(name=RERUN, differs=[text for _, text in again], place=min(again)[0]), *found]
    if ancestors or seeds[0] != seeds[1]:
        return [Unit(name=RERUN, differs=[], place=0), *found]
    return found


def _other_ancestors(rounds: Rounds) -> list[str]:
    """The ancestors of which both rounds read something, and not the same."""
    names = rounds.ancestors(rounds.good), rounds.ancestors(rounds.bad)
    kinds = set()
    for stage in (s.name for s in chain()):
        good, bad = (rounds.manifests[n][stage] for n in (rounds.good, rounds.bad))
        kinds |= {
            str(n.ancestor)
            for n in needs(bad.plan)
            if n.ancestor and n.argument in good.inputs and good.inputs[n.argument] != bad.inputs.get(n.argument)
        }
    changes = {kind: f"{names[0][kind]} → {names[1][kind]}" for kind in sorted(kinds)}
    return [change if kind == PARENT else f"{kind}: {change}" for kind, change in changes.items()]


def _edited(rounds: Rounds, name: str, both: tuple[Manifest, Manifest]) -> list[str]:
    """Code and files of a stage of a round that are not there as they were."""
    recorded = [m.plan.code | m.plan.files for m in both]
    own, other = recorded if name == rounds.good else recorded[::-1]
    now = today(rounds.root, own)
    edited = [f for f, digest in own.items() if digest != now[f]]
    for file in edited:
        if file in other and other[file] != now[file]:
            raise FlywheelError(
                f"{file} was edited since {rounds.good} and {rounds.bad} ran {both[0].stage}: restore it, or `flywheel run` both again, "
                "or what differs between them would be the edit's doing"
            )
    return edited


# Settings


def _settings(plan: Plan) -> dict[str, Any]:
    """Values of a plan by dotted path, without what `parent`, `seed` and code say."""
    own = {plan.stage: plan.members | plan.options, "domain": plan.domain, "engine": plan.engine, "models": plan.models}
    judged = {"judges": plan.judges, "reads": plan.reads or None, "tables": plan.tables}
    return dict(_leaves(own | judged))


def _values(plan: Plan) -> dict[str, Any]:
    return _settings(plan) | {"seed": plan.seed} | dict(_leaves(plan.ancestors))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}" if path else str(name))
    elif value is not None:
        yield path, value


def differing(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`path: old → new` of the values that differ. Of a member with another strategy the strategy alone is told."""
    strategies = [
        p.removesuffix("strategy") for p in {**old, **new} if p.endswith(".strategy") and old.get(p) != new.get(p)
    ]
    told = [
        p
        for p in {**old, **new}
        if old.get(p) != new.get(p) and (p.endswith(".strategy") or not p.startswith(tuple(strategies)))
    ]
    return [f"{p.removesuffix('.strategy')}: {_text(old, p)} → {_text(new, p)}" for p in told]


def _text(values: dict[str, Any], path: str) -> str:
    return str(values[path]) if path in values else "none"
