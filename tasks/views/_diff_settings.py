"""What differs in the settings of two rounds: parameters with the origin of each, strategies, code, files, models.

All values are those of the plans in the manifests, with which the data were made; params.yaml only tells where a value comes
from. Where it has been edited since, the origin says so.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tasks.core import store
from tasks.core.plan import Plan
from tasks.core.stage import stages
from tasks.core.store import Manifest
from tasks.project.champion import model, model_digest
from tasks.project.params import EXAM
from tasks.views import settings
from tasks.views._diff_sides import Side

EDITED = "edited since"
ANCESTORS = ("parent", "base", "anchor", "grandparent")


@dataclass(frozen=True)
class Param:
    """A parameter that differs; None where a side does not have it."""

    path: str
    old: Any
    new: Any
    old_from: str | None
    new_from: str | None


@dataclass(frozen=True)
class Difference:
    """A named value that differs; None where a side does not have it."""

    name: str
    old: str | None
    new: str | None


@dataclass(frozen=True)
class SettingsDiff:
    """What differs in the settings."""

    params: list[Param] = field(default_factory=list)
    strategies: list[Difference] = field(default_factory=list)
    """By `stage.member`."""
    lineage: list[Difference] = field(default_factory=list)
    """Recipe and ancestors by name."""
    models: list[Difference] = field(default_factory=list)
    """Digests of weights: the round's own, its ancestors' that it read, those of the roster."""
    code: list[Difference] = field(default_factory=list)
    """sha256 of modules."""
    files: list[Difference] = field(default_factory=list)
    """sha256 of files that strategies read."""
    libraries: list[Difference] = field(default_factory=list)
    """Versions."""


def compare(old: Side, new: Side) -> SettingsDiff:
    """What differs in the settings of two sides. Only stages that both have run are compared."""
    common = [s for s in stages() if s in old.manifests and s in new.manifests]
    both = [[side.manifests[s] for s in common] for side in (old, new)]

    def named(values: Any) -> list[Difference]:
        before, after = ({k: v for m in manifests for k, v in values(m).items()} for manifests in both)
        return differences(before, after)

    return SettingsDiff(
        params=list(_params(old, new, *both)),
        strategies=named(lambda m: strategies(m.plan)),
        lineage=_recipe(old, new) + differences(_ancestors(old), _ancestors(new)),
        models=_models(old, new, *both),
        code=named(lambda m: m.plan.code),
        files=named(lambda m: m.plan.files),
        libraries=named(lambda m: m.versions),
    )


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[Difference]:
    """The values by name that differ."""
    return [Difference(n, old.get(n), new.get(n)) for n in {**old, **new} if old.get(n) != new.get(n)]


def strategies(plan: Plan) -> dict[str, str]:
    """The strategy of each member of a stage, of the domain and of the engine, by dotted path."""
    named = {f"{plan.stage}.{m}": str(v.get("strategy", m)) for m, v in plan.members.items()}
    for key, value in (("domain", plan.domain), (_shared(plan, "engine"), plan.engine)):
        if value:
            named[key] = str(value["strategy"])
    return named


def values(plan: Plan) -> dict[str, Any]:
    """Every parameter of a plan by dotted path, without the names of strategies."""
    shared = {_shared(plan, k) if k in ("seed", "engine") else k: v for k, v in plan.values.items()}
    return {path: value for path, value in _leaves(shared) if not path.endswith(".strategy")}


def _shared(plan: Plan, key: str) -> str:
    """The seed and engine of the exam are the base's."""
    return f"exam.{key}" if plan.stage in EXAM else key


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and (value or not path):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif value != {}:
        yield path, value


def _params(old: Side, new: Side, before: list[Manifest], after: list[Manifest]) -> Iterator[Param]:
    """Parameters that differ. Those of a member that only one side has, or that has another strategy, are left out: they
    belong to the strategy, which is listed.
    """
    sides = [{k: v for m in manifests for k, v in values(m.plan).items()} for manifests in (before, after)]
    strategy = [{k: v for m in manifests for k, v in strategies(m.plan).items()} for manifests in (before, after)]
    others = {d.name for d in differences(*strategy)}
    origins = [_origins(side) for side in (old, new)]
    for path in {**sides[0], **sides[1]}:
        was, now = sides[0].get(path), sides[1].get(path)
        if was != now and not any(path == other or path.startswith(f"{other}.") for other in others):
            old_from, new_from = (
                _origin(o, path, s[path]) if path in s else None for o, s in zip(origins, sides, strict=True)
            )
            yield Param(path, was, now, old_from, new_from)


def _origins(side: Side) -> dict[str, tuple[Any, str]]:
    """Path → (value, origin) as params.yaml and the recipe now say."""
    return {path: (value, origin) for path, value, origin in settings.values(side.block)} if side.block else {}


def _origin(origins: dict[str, tuple[Any, str]], path: str, value: Any) -> str | None:
    """Where a value comes from; None where that is not known. A nested value comes from where its block does."""
    if path.startswith("exam."):
        return "base"
    names = path.split(".")
    for depth in range(len(names), 0, -1):
        known = origins.get(".".join(names[:depth]))
        if known:
            current, origin = known
            for key in names[depth:]:
                current = current.get(key) if isinstance(current, dict) else None
            return origin if current == value else EDITED
    return EDITED if origins else None


def _recipe(old: Side, new: Side) -> list[Difference]:
    """The recipes, where both are known and differ."""
    blocks = [side.block for side in (old, new) if side.block]
    return differences(*({"recipe": block.recipe} for block in blocks)) if len(blocks) == 2 else []


def _ancestors(side: Side) -> dict[str, str]:
    ancestors = {k: v for m in side.manifests.values() for k, v in m.plan.ancestors.items()}
    return {k: ancestors[k] for k in ANCESTORS if k in ancestors}


def _models(old: Side, new: Side, before: list[Manifest], after: list[Manifest]) -> list[Difference]:
    """The models that differ, by what each is to the round: its own, an ancestor that it read, one of the roster. They are
    compared as they were written, and named by the digest of their weights, as rows carry it.
    """
    found = differences(_written(old, before), _written(new, after))
    return [Difference(d.name, _weights(old, d.name, d.old), _weights(new, d.name, d.new)) for d in found]


def _written(side: Side, common: list[Manifest]) -> dict[str, str]:
    output = side.output("model")
    read = {a.removesuffix("_model"): d for m in common for a, d in m.inputs.items() if a.endswith("_model")}
    roster = {n: v["digest"] for m in common for n, v in m.plan.models.items() if v.get("digest")}
    return ({"model": output.digest} if output else {}) | read | roster


def _weights(side: Side, kind: str, written: str | None) -> str | None:
    """The digest of a model's weights, while the project still has the version that was read; else that of its files."""
    if kind == "model":
        return model_digest(side.root, side.name, side.manifests) or written
    owner, project = _ancestors(side).get(kind), side.project or side.root
    manifests = store.manifests(project, owner) if owner else {}
    output = model(manifests)
    return model_digest(project, owner, manifests) if owner and output and output.digest == written else written
