"""Recipes: one YAML file of `recipes/` is one published method, as settings for the stages that make a round's data.

    title: …                 one line
    paper: …                 authors, year, arXiv id
    loop: |                  the method in a few lines
    differs: |               where this recipe differs from the paper, and why
    stages:
      generate: {sample: {samples: 8}}
      judge: {reward: self_consistency, self_consistency: {}}

A stage's block maps members to their parameters; `strategy` defaults to the member's name. A round changes its recipe's
settings by `set`, in nested maps or with dotted keys. Null removes a member.

A method that trains several models in a round has phases. Each is a round of its own, which `flywheel round add` writes
before the main one (tasks/project/phases.py); params.yaml names its settings as `recipe: NAME.PHASE`.

    parent: second           the phase that the main round descends from; left out: the round's own parent
    anchor: base             the main round's anchor: base, parent, grandparent or a phase; left out: none
    phases:
      first: {when: from_base, anchor: base, stages: {…}}
      second: {parent: first, stages: {…}}
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from ruamel.yaml import YAML, YAMLError

from tasks.core.errors import ParamsError, UnknownName, suggest
from tasks.core.plugin import Params
from tasks.core.stage import ANCESTORS, Stage
from tasks.project.problems import NAME, Problems

FOLDER = Path("recipes")
RELATIVES = ("base", "parent", "grandparent")
"""Anchors that a recipe can name without a phase."""


class Phase(Params):
    """A round that a recipe writes before its main one."""

    when: Literal["always", "from_base"] = "always"
    """`from_base`: only where the round that is added starts from a base."""
    parent: str | None = None
    """The earlier phase that it descends from; null is the parent of the round that is added."""
    anchor: str | None = None
    """Its anchor: `base`, `parent`, `grandparent` (of this phase), or an earlier phase; null is none."""
    stages: dict[str, Any]
    """Settings by stage."""


class Recipe(Params):
    """A published method, as settings for the stages of a round."""

    title: str
    """What it does, in one line."""
    paper: str = ""
    """Authors, year, arXiv id."""
    loop: str = ""
    """The method in a few lines."""
    differs: str = ""
    """Where this one differs from the paper, and why."""
    parent: str | None = None
    """The phase that the main round descends from; null is the parent that `flywheel round add` names."""
    anchor: str | None = None
    """The main round's anchor: `base`, `parent`, `grandparent`, or a phase; null is none."""
    phases: dict[str, Phase] = Field({}, max_length=26)
    """Rounds that are written before the main one, in this order."""
    stages: dict[str, Any]
    """Settings by stage."""


@dataclass(frozen=True)
class Settings:
    """Nested settings that are not validated, and the origin of each."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    """Dotted path of a value → `recipe sharpen` or `set`."""


def names(root: Path) -> list[str]:
    """The names of all recipes, in alphabetical order."""
    return sorted(p.stem for p in (root / FOLDER).glob("*.yaml") if "." not in p.stem)


def read(root: Path, name: str) -> Recipe:
    """A recipe by its name.

    Raises:
        UnknownName: when there is no such file.
        ParamsError: when the file is not a recipe; a line for each problem.
    """
    recipe, wrong = _read(root, name)
    if recipe is None or wrong:
        raise ParamsError("\n".join(wrong))
    return recipe


def part(root: Path, name: str) -> Recipe | Phase:
    """What a round's `recipe` names: a recipe, or one of its phases as `recipe.phase`.

    Raises:
        UnknownName, ParamsError: as `read`.
    """
    file, dot, phase = name.partition(".")
    recipe = read(root, file if file in names(root) else name)
    if dot and phase not in recipe.phases:
        raise UnknownName("phase", name, [f"{file}.{known}" for known in recipe.phases], str(FOLDER))
    return recipe.phases[phase] if dot else recipe


def problems(root: Path, name: str) -> tuple[str, ...]:
    """What is wrong in the file of a recipe or of a phase `recipe.phase`, each with file and key."""
    return _read(root, name.partition(".")[0])[1]


def place(name: str) -> str:
    """Where the settings of a recipe or of a phase `recipe.phase` are written."""
    file, dot, phase = name.partition(".")
    return f"{FOLDER}/{file}.yaml: {f'phases.{phase}.' if dot else ''}stages"


def _read(root: Path, name: str) -> tuple[Recipe | None, tuple[str, ...]]:
    path = root / FOLDER / f"{name}.yaml"
    if name not in names(root):
        raise UnknownName("recipe", name, names(root), str(FOLDER))
    stat = path.stat()
    return _parsed(path, f"{FOLDER}/{name}.yaml", stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=1024)
def _parsed(path: Path, label: str, mtime_ns: int, size: int) -> tuple[Recipe | None, tuple[str, ...]]:
    """The recipe of a file, and what is wrong with it."""
    try:
        content = plain(YAML(typ="safe").load(path.read_text(encoding="utf-8")))
    except (YAMLError, ValueError, TypeError, RecursionError) as error:  # keys that are lists, and anchors in a loop
        return None, (f"{label} is not valid YAML: {error}",)
    wrong = Problems(label)
    return _validated(content, wrong), tuple(wrong)


def _validated(content: Any, wrong: Problems) -> Recipe | None:
    def at(path: str) -> str:
        return f"{wrong.file}: {path.strip('.')}" if path.strip(".") else wrong.file

    raw = content.get("phases") if isinstance(content, dict) else None
    phases = raw if isinstance(raw, dict) else {}
    for key, problem in _wrong_names(content, phases):
        wrong.add(at(key), problem)
    if phases:
        valid = {name: wrong.model(Phase, phase, f"phases.{name}", at) for name, phase in phases.items()}
        content = content | {"phases": {name: phase for name, phase in valid.items() if phase is not None}}
    return wrong.model(Recipe, content, "", at)  # type: ignore[no-any-return]


def _wrong_names(content: Any, phases: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Names of phases that cannot be, or that nothing needs, and parents and anchors that do not exist, as (key, problem)."""
    order = list(phases)
    needed = [p.get(key) for p in (*phases.values(), content) if isinstance(p, dict) for key in ("parent", "anchor")]
    for number, (name, phase) in enumerate(phases.items()):
        if not re.fullmatch(NAME, name) or name in ANCESTORS:
            yield f"phases.{name}", "a name is a lower-case letter followed by letters, digits or _, and no ancestor's"
        if name not in needed:
            yield f"phases.{name}", "is needed by nothing; name it as the `parent` or `anchor` of what comes after it"
        yield from _wrong_relatives(phase, f"phases.{name}.", order[:number], order)
    yield from _wrong_relatives(content, "", order, order)


def _wrong_relatives(part: Any, at: str, earlier: list[str], order: list[str]) -> Iterator[tuple[str, str]]:
    for key, known in (("parent", earlier), ("anchor", [*RELATIVES, *earlier])):
        value = part.get(key) if isinstance(part, dict) else None
        if not isinstance(value, str) or value in known:
            continue
        if value in order:
            yield f"{at}{key}", f"{value!r} does not come before it; name an earlier phase, or change their order"
        else:
            kind = "phase" if key == "parent" else "ancestor or phase"
            yield f"{at}{key}", f"there is no {kind} {value!r}; {suggest(value, known)}"


def expand(recipe: Mapping[str, Any], origin: str, changes: Mapping[str, Any], stages: Mapping[str, Stage]) -> Settings:
    """Merges a round's changes into a recipe's settings. An empty map leaves an existing member as it is.

    In a stage that takes one strategy, a member in the changes replaces the recipe's. Values of a wrong type are kept for
    validation to report.
    """
    values = {name: members(block, stages.get(name)) for name, block in recipe.items()}
    origins = dict.fromkeys(stages, origin)
    origins |= {path: origin for name, block in values.items() for path in _paths(block, name)}
    settings = list(dotted(changes, stages))
    for stage in stages.values():
        named = {path[1] for path, value in settings if path[0] == stage.name and path[1:] and value is not None}
        if _drop_replaced(values, stage, named):
            origins[stage.name] = "set"
    for path, value in settings:
        put(values, path, value)
        origins = _with_change(origins, path, value)
    return Settings(values, origins)


def members(block: Any, stage: Stage | None) -> Any:
    """A stage's block by member. A stage with a single strategy may be written `{strategy: NAME, …}`."""
    if stage is None or not isinstance(block, dict) or not _is_short(block.get("strategy"), stage):
        return _copy(block)
    options = {k: v for k, v in block.items() if k in option_names(stage)}
    return options | {block["strategy"]: {k: v for k, v in block.items() if k != "strategy" and k not in options}}


def _is_short(strategy: Any, stage: Stage) -> bool:
    return not stage.many and isinstance(strategy, str)


def option_names(stage: Stage) -> frozenset[str]:
    """Names of a stage's options: keys of its block that are not members."""
    return frozenset(stage.options.model_fields if stage.options else ())


def dotted(
    changes: Mapping[str, Any], stages: Mapping[str, Stage] | None = None
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Changes as (path, value): `{generate.sample.samples: 4}` and `{generate: {sample: {samples: 4}}}` are the same.
    Shorter paths come first, so the written order does not matter. With `stages`, the short form of a stage with a single
    strategy, as in `{filter.strategy: top_fraction, filter.fraction: 0.25}`, becomes a member.
    """
    settings = sorted(_leaves(changes, ()), key=lambda change: (len(change[0]), change[0]))
    short = {path[0]: value for path, value in settings if path[1:] == ("strategy",) and path[0] in (stages or ())}
    for path, value in settings:
        stage = (stages or {}).get(path[0])
        if stage is None or not path[1:] or not _is_short(strategy := short.get(path[0]), stage):
            yield path, value
        elif path[1] == "strategy":
            yield (path[0], str(strategy)), {}
        elif path[1] == strategy or path[1] in option_names(stage):
            yield path, value
        else:
            yield (path[0], str(strategy), *path[1:]), value


def merged(settings: Mapping[str, Any], over: Mapping[str, Any], stages: Mapping[str, Stage]) -> dict[str, Any]:
    """`settings` overridden by `over`, by dotted key. Where `over` names the strategy of a stage that takes one, settings of
    another strategy are dropped.
    """
    old, new = (dict(dotted(changes, stages)) for changes in (settings, over))
    chosen = {
        path[0]: path[1]
        for path, value in new.items()
        if value is not None and path[1:] and (stage := stages.get(path[0])) and not stage.many
        if path[1] not in option_names(stage)
    }
    kept = {
        p: v
        for p, v in old.items()
        if not p[1:] or p[1] == chosen.get(p[0], p[1]) or p[1] in option_names(stages[p[0]])
    }
    return {".".join(path): value for path, value in (kept | new).items()}


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, inner in value.items():
        inner_path = (*path, *str(key).split("."))
        depth = 2 if inner_path[0] == "engine" else 3  # a map below a parameter is its value
        if isinstance(inner, Mapping) and inner and len(inner_path) < depth:
            yield from _leaves(inner, inner_path)
        else:
            yield inner_path, inner


def put(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Sets one value in nested dicts; null removes a member of a stage."""
    node = values
    for key in path[:-1]:
        if not isinstance(node.get(key), dict):
            node[key] = {}
        node = node[key]
    if value is None and len(path) == 2:
        node.pop(path[1], None)
    elif _is_change(path, value) or not isinstance(node.get(path[-1]), dict):
        node[path[-1]] = _copy(value)


def _is_change(path: tuple[str, ...], value: Any) -> bool:
    """Whether a value changes one that is there: `{}` for a stage or member only names it; for a parameter it is a value."""
    return value != {} or len(path) > 2


def _drop_replaced(values: dict[str, Any], stage: Stage, named: set[str]) -> bool:
    """Drops the recipe's member of a stage with one strategy where the changes name another; returns whether they do."""
    block, members = values.get(stage.name), named - option_names(stage)
    if stage.many or not members:
        return False
    if isinstance(block, dict):
        values[stage.name] = {k: v for k, v in block.items() if k in members or k in option_names(stage)}
    return True


def _with_change(origins: dict[str, str], path: tuple[str, ...], value: Any) -> dict[str, str]:
    """The origins after the value at a path was set."""
    key = ".".join(path)
    if not _is_change(path, value):
        return {key: "set"} | origins
    new = dict.fromkeys(_paths(value, key), "set") | ({path[0]: "set"} if value is None and len(path) == 2 else {})
    kept = {k: v for k, v in origins.items() if k != key and not k.startswith(f"{key}.")}
    return {".".join(path[:2]): "set"} | kept | new  # for a member that the recipe lacks


def _paths(value: Any, path: str) -> Iterator[str]:
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _paths(inner, f"{path}.{key}")


def plain(value: Any) -> Any:
    """A YAML value as plain JSON: dicts with string keys, lists, strings and numbers."""
    return json.loads(json.dumps(value, default=str))


def _copy(value: Any) -> Any:
    return {k: _copy(v) for k, v in value.items()} if isinstance(value, dict) else value
