"""Edits params.yaml and keeps its comments: adds and removes rounds, adds bases."""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any

from filelock import FileLock
from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.scalarstring import SingleQuotedScalarString

from tasks.core.errors import FlywheelError, ParamsError, UnknownName
from tasks.core.stage import stages
from tasks.project import pipeline, recipes
from tasks.project.blocks import Defaults
from tasks.project.params import FILE, Pipeline, plain, read, validate
from tasks.project.phases import Line, Rounds, anchor_of, beside, lines

STATE = ".flywheel"
"""Folder of locks and of the state of services; not under version control."""
Change = Callable[[CommentedMap], None]
QUOTES = ("'", '"', "[", "{")
"""How a value of --set begins that is not the text itself."""
NULLS = ("", "~", "null", "Null", "NULL")


@contextmanager
def lock(root: Path, name: str) -> Iterator[None]:
    """Holds the project's lock of that name; waits for other processes."""
    place = root / STATE
    place.mkdir(exist_ok=True)
    with FileLock(place / f"{name}.lock"):
        yield


def edit(root: Path, change: Change) -> None:
    """Applies `change(content)` to params.yaml under a lock. Writes atomically, and only a valid result; renders dvc.yaml
    again where it depends on the change.

    Raises:
        ParamsError: when the edited file would not be valid; nothing is written then.
    """
    with lock(root, "params"):
        text, params = _apply(root, change)
        new = root / STATE / FILE
        with new.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(root / FILE)
        if pipeline.is_outdated(root, params):
            pipeline.write(root, params)


def _apply(root: Path, change: Change) -> tuple[str, Pipeline]:
    """The text of params.yaml after an edit, and the pipeline that it describes."""
    content = read(root)
    try:
        change(content)
    except (AttributeError, KeyError, TypeError):
        validate(plain(content), root)  # raises ParamsError if the file was already wrong
        raise
    params = validate(plain(content), root)
    text = io.StringIO()
    yaml = YAML()
    yaml.width = 120
    yaml.dump(content, text)
    return text.getvalue(), params


def add_round(
    root: Path,
    name: str,
    parent: str | None,
    settings: list[str] | None = None,
    *,
    recipe: str | None = None,
    anchor: str | None = None,
    like: str | None = None,
) -> list[str]:
    """Appends a round, after one for each phase of its recipe; returns their names. Without a `parent` it follows the last
    round, or the first base. With `like`, it copies that round's recipe, anchor and settings, which its own override, and the
    phases copy those of that round's phases.

    Raises:
        ParamsError, UnknownName, FlywheelError: when a round would be invalid; nothing is written then.
    """
    added: list[str] = []

    def change(content: CommentedMap) -> None:
        rounds, default = _rounds(content), _default_recipe(content)
        start = parent or _last(content)
        _check_names(content, name, start, like)
        own = assignments(settings or [], {"parent": "--parent names it", "base": "it follows from the parent"})
        named = {"recipe": recipe or (rounds[like].get("recipe") if like else None), "anchor": anchor}
        given = {k: v for k, v in named.items() if v is not None}
        given |= {k: own.pop(k) for k in ("seed", "recipe", "anchor") if k in own}
        copied = _copied(root, like, rounds, default) if like else {}
        for line in _lines(root, name, start, str(given.get("recipe") or default), rounds):
            _check_free(content, line.name)
            phase = None if line.name == name else line.recipe
            template, values = copied.get(phase, {}), {"recipe": phase} if phase else given
            changes = recipes.merged(template.pop("set", {}), {} if phase else own, stages())
            rounds[line.name] = _flow(_round(line, rounds, template | values, changes))
            added.append(line.name)

    edit(root, change)
    return added


def _last(content: CommentedMap) -> str:
    """The last round that is no phase of a recipe; without rounds the first base."""
    rounds = [n for n, block in content["rounds"].items() if "." not in str(block.get("recipe") or "")]
    return rounds[-1] if rounds else next(iter(content["bases"]))


def _rounds(content: CommentedMap) -> CommentedMap:
    if content.get("rounds") is None:
        content["rounds"] = CommentedMap()
    return content["rounds"]


def _default_recipe(content: CommentedMap) -> str:
    return (content.get("defaults") or {}).get("recipe") or Defaults().recipe


def _check_names(content: CommentedMap, name: str, parent: str, like: str | None) -> None:
    _check_free(content, name)
    known = [*content["bases"], *content["rounds"]]
    if parent not in known:
        raise UnknownName("base or round", parent, known, FILE)
    if like is not None and like not in content["rounds"]:
        raise UnknownName("round to copy from", like, content["rounds"], FILE)


def _lines(root: Path, name: str, parent: str, recipe: str, rounds: Rounds) -> list[Line]:
    """What a recipe writes; of one that cannot be read the round alone, for the validation to report."""
    try:
        return lines(name, parent, recipe, recipes.part(root, recipe), rounds)
    except (UnknownName, ParamsError):
        return [Line(name, name, recipe, parent, None)]


def _copied(root: Path, like: str, rounds: Rounds, default: str) -> dict[str | None, dict[str, Any]]:
    """`set`, and an anchor that is not its recipe's, of a round (None) and of those of its phases (`recipe.phase`)."""
    phases = beside(like, rounds[like].get("recipe") or default, rounds)
    names = {None: like} | {rounds[n]["recipe"]: n for n in phases}
    return {phase: _beyond_recipe(root, like, n, rounds, default) for phase, n in names.items()}


def _beyond_recipe(root: Path, main: str, name: str, rounds: Rounds, default: str) -> dict[str, Any]:
    block = plain(rounds[name])
    values = {k: block[k] for k in ("anchor", "set") if block.get(k) is not None}
    recipe = block.get("recipe") or default
    with suppress(FlywheelError):
        line = Line(name, main, recipe, block["parent"], recipes.part(root, recipe).anchor)
        if anchor_of(line, rounds) == values.get("anchor"):
            values.pop("anchor", None)
    return values


def _round(line: Line, rounds: Rounds, given: dict[str, Any], changes: dict[str, Any]) -> CommentedMap:
    """A round as it is written, with its recipe's anchor where none is `given`."""
    block = CommentedMap(parent=line.parent, base=rounds[line.parent]["base"] if line.parent in rounds else line.parent)
    values = {"seed": max([b.get("seed", 0) for b in rounds.values()], default=0) + 1} | given
    if "anchor" not in given and (anchor := anchor_of(line, rounds)):
        values["anchor"] = anchor
    block.update({key: values[key] for key in ("seed", "recipe", "anchor") if key in values})
    if changes:
        block["set"] = _flow(CommentedMap(changes))
    return block


def _check_free(content: CommentedMap, name: str) -> None:
    rounds = content.get("rounds") or {}
    if name in rounds or name in content["bases"]:
        remove = f", or `flywheel round remove {name}`" if name in rounds else ""
        raise FlywheelError(f"{FILE} has a {name!r} already; choose another name{remove}")


def _flow(block: CommentedMap) -> CommentedMap:
    """The block on one line. Strings with a colon are quoted: in flow style libyaml takes it for a key's."""
    block.fa.set_flow_style()
    for key, value in block.items():
        block[key] = _quoted(value)
    return block


def _quoted(value: Any) -> Any:
    if isinstance(value, str):
        return SingleQuotedScalarString(value) if ":" in value else value
    if isinstance(value, list):
        return [_quoted(inner) for inner in value]
    if isinstance(value, dict) and not isinstance(value, CommentedMap):
        return {k: _quoted(inner) for k, inner in value.items()}
    return value


def assignments(settings: list[str], refused: dict[str, str]) -> dict[str, Any]:
    """`KEY=VALUE` texts as a dict of values by dotted key."""
    values = dict(_setting(setting) for setting in settings)
    for key in refused.keys() & values.keys():
        raise FlywheelError(f"--set {key}: cannot be set: {refused[key]}")
    return values


def _setting(setting: str) -> tuple[str, Any]:
    path, equals, text = setting.partition("=")
    if not equals or not path:
        raise FlywheelError(f"--set {setting}: write KEY=VALUE, as in --set generate.sample.temperature=0.9")
    try:
        value = plain(YAML(typ="safe").load(text))
    except (YAMLError, ValueError, RecursionError) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise FlywheelError(f"--set {setting}: {text!r} is not a YAML value ({reason})") from error
    if text[:1] not in QUOTES and (value != text if isinstance(value, str) else value is None and text not in NULLS):
        raise FlywheelError(
            f"--set {path}: YAML reads {text!r} as {value!r}; put it in quotes that reach flywheel, as in --set '{path}=\"…\"'"
        )
    return path, value


def remove_round(root: Path, name: str) -> list[str]:
    """Removes a round, and those of its recipe's phases that were written with it; their files stay. Returns their names.

    Raises:
        FlywheelError: when other rounds descend from one of them, or name it as their anchor.
    """
    removed: list[str] = []

    def change(content: CommentedMap) -> None:
        rounds = content.get("rounds") or {}
        if name not in rounds:
            if name in content["bases"]:
                raise FlywheelError(f"{name} is a base, not a round; `flywheel base remove {name}` removes it")
            raise UnknownName("round", name, rounds, FILE)
        removed.extend([*beside(name, rounds[name].get("recipe") or _default_recipe(content), rounds), name])
        for gone, key in product(removed, ("parent", "anchor")):
            if users := [n for n, b in rounds.items() if b.get(key) == gone and n not in removed]:
                raise FlywheelError(
                    f"{gone} is the {key} of {', '.join(users)}; remove these first, or give them another {key}"
                )
        for gone in removed:
            del rounds[gone]

    edit(root, change)
    return removed


def add_base(root: Path, name: str, base: dict[str, Any], settings: list[str] | None = None) -> str:
    """Appends a base: a copy of the first base's block with another `base` strategy and with `settings`. Returns the name of
    the base that was copied.
    """
    copied: list[str] = []

    def change(content: CommentedMap) -> None:
        _check_free(content, name)
        copied.append(next(iter(content["bases"])))
        block = CommentedMap(plain(content["bases"][copied[0]]))
        block["base"] = CommentedMap(base)
        values = assignments(settings or [], {})
        # shorter keys first: a new strategy clears the parameters of the old one
        for path in sorted(values, key=lambda p: (p.count("."), not p.endswith(".strategy"))):
            _assign(block, path, values[path])
        content["bases"][name] = block

    edit(root, change)
    return copied[0]


def remove_base(root: Path, name: str) -> None:
    """Removes a base; its files stay.

    Raises:
        FlywheelError: when rounds descend from it, or name it as their anchor, or when it is the last base.
    """

    def change(content: CommentedMap) -> None:
        bases, rounds = content["bases"], content.get("rounds") or {}
        if name not in bases:
            if name in rounds:
                raise FlywheelError(f"{name} is a round, not a base; `flywheel round remove {name}` removes it")
            raise UnknownName("base", name, bases, FILE)
        for key in ("base", "parent", "anchor"):
            if users := [n for n, block in rounds.items() if block.get(key) == name]:
                raise FlywheelError(f"{name} is the {key} of {', '.join(users)}; remove these rounds first")
        if len(bases) == 1:
            raise FlywheelError(f"{name} is the only base of {FILE}; add another one first")
        del bases[name]

    edit(root, change)


def _assign(block: Any, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    node = block
    for key in parents:
        if node.get(key) is None:
            node[key] = CommentedMap()
        node = node[key]
        if not isinstance(node, dict):
            raise FlywheelError(f"--set {path}: {key!r} is {node!r} and has no keys; write --set {key}=VALUE")
    if last == "strategy" and node.get(last) != value:
        node.clear()
    node[last] = value


__all__ = ["STATE", "add_base", "add_round", "edit", "lock", "remove_base", "remove_round"]
