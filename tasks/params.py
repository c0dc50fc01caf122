"""params.yaml: read, validated as a whole, edited with its comments kept.

    campaign: {name: arithmetic}
    bases:   {r0: {seed: 1, domain: {strategy: …}, engine: {strategy: …}, base: {strategy: …}, evaluate: …}}
    rounds:  {r1: {parent: r0, base: r0, seed: 1, domain: …, engine: …, prompts: {strategy: pool, …}, …, gate: …}}

A block also has `files`: the file or folder of data/seeds that its domain and strategies read (data/seeds/none where they
read none), for DVC cannot depend on a key that some blocks lack. A block names every strategy, because DVC sees no defaults: a value that a block leaves out is the one in the strategy's
own file, whose edit makes the stage stale. All errors are reported at once, each with its key, value and fix.

This file is shared by all stages: an edit of it does not make stages stale.
"""

import io
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import Field, ValidationError
from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.comments import CommentedMap

from tasks.errors import FlywheelError, ParamsError, UnknownName, masked, suggest
from tasks.stage import Panel, Params, Stage, load, names, stages

FILE = "params.yaml"
SEEDS = Path("data/seeds")
NO_FILES = SEEDS / "none"
STATE = ".flywheel"
"""The folder of locks and of what services tell each other; nobody's to keep."""
NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")


class Campaign(Params):
    """What a tree of rounds is recorded as."""

    name: str = Field("flywheel", pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.-]{0,99}$")
    """Name of the MLflow experiment and of the registered model: letters, digits, blanks and `_ . -`."""


@dataclass(frozen=True)
class Block:
    """A base or round of params.yaml, validated."""

    name: str
    parent: str | None
    base: str
    seed: int
    domain: Any
    engine: Any
    stages: dict[str, Any]
    """The strategy or panel of each of its stages."""
    raw: dict[str, Any]
    """The block as written, as plain values."""

    @property
    def is_base(self) -> bool:
        """Whether it is a base (it has no parent)."""
        return self.parent is None


@dataclass(frozen=True)
class Pipeline:
    """All of params.yaml, validated."""

    campaign: Campaign
    blocks: dict[str, Block]
    """Bases and rounds, every parent before its children."""

    @cached_property
    def rounds(self) -> dict[str, Block]:
        """The rounds alone."""
        return {n: b for n, b in self.blocks.items() if not b.is_base}

    def block(self, name: str) -> Block:
        """A base or round by its name.

        Raises:
            UnknownName: with the nearest known names.
        """
        if name not in self.blocks:
            raise UnknownName("round or base", name, self.blocks, FILE)
        return self.blocks[name]

    def lineage(self, name: str) -> list[Block]:
        """The base, every round from it, and the named one."""
        block = self.block(name)
        return ([] if block.parent is None else self.lineage(block.parent)) + [block]


def stages_of(block: dict[str, Any] | Block) -> list[Stage]:
    """The stages of a base or round, in the order in which they run."""
    is_base = block.is_base if isinstance(block, Block) else "parent" not in block
    return [s for s in stages().values() if (s.bases != "no" if is_base else s.bases != "only")]


class _Problems(list[str]):
    """What is wrong with params.yaml; raised together."""

    def add(self, path: str, message: str) -> None:
        """Takes down one problem of the key at `path`."""
        self.append(f"{path}: {message}")


def read(root: Path) -> CommentedMap:
    """params.yaml as it stands, with its comments.

    Raises:
        ParamsError: when there is none, or when it is not YAML; names the line.
    """
    try:
        content = YAML().load(_path(root).read_text(encoding="utf-8"))
        plain(content)
    except (YAMLError, ValueError, TypeError, RecursionError) as error:  # the latter for keys that are lists, and loops
        raise ParamsError(f"{FILE} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ParamsError(f"{FILE} must hold the keys campaign, bases and rounds")
    return content


def _path(root: Path) -> Path:
    if not (root / FILE).is_file():
        raise ParamsError(f"there is no {FILE} in {root.resolve()}; run this in a project's root")
    return root / FILE


def load_params(root: Path) -> Pipeline:
    """params.yaml, validated.

    Raises:
        ParamsError: with everything that is wrong at once.
    """
    return validate(plain(read(root)))


def plain(value: Any) -> Any:
    """A value of ruamel as the plain Python one."""
    return json.loads(json.dumps(value, default=str))


def validate(content: dict[str, Any]) -> Pipeline:
    """The pipeline that a parsed params.yaml describes.

    Raises:
        ParamsError: with everything that is wrong at once.
    """
    problems = _Problems()
    _keys(content, {"campaign", "bases", "rounds"}, {"bases"}, "", problems)
    campaign = _member(Campaign, content.get("campaign") or {}, "campaign", problems)
    parts = {k: content.get(k) or {} for k in ("bases", "rounds")}
    for key in parts:
        if not isinstance(parts[key], dict):
            problems.add(key, f"must map names to blocks, not {parts[key]!r}")
            parts[key] = {}
    raw = parts["rounds"] | parts["bases"]
    for name in sorted(set(parts["bases"]) & set(parts["rounds"])):
        problems.add(f"rounds.{name}", "is the name of a base too; rename one of them")
    for kind, part in parts.items():
        for name, block in part.items():
            _named_block(name, block, f"{kind}.{name}", problems)
    rounds = {n: b for n, b in parts["rounds"].items() if isinstance(b, dict) and n not in parts["bases"]}
    parents = {n: b.get("parent") for n, b in rounds.items()}
    order = [n for n in _order(parts["bases"], parents, set(raw), problems) if isinstance(raw[n], dict)]
    blocks = {}
    for name in order:
        kind = "bases" if name in parts["bases"] else "rounds"
        blocks[name] = _block(name, raw[name], f"{kind}.{name}", kind, _root(name, parents), problems)
    _screened(blocks, problems)
    _jury(blocks, problems)
    if problems:
        lines = "\n".join(f"  {p}" for p in problems)
        raise ParamsError(f"{FILE} has {len(problems)} problem{'s' * (len(problems) > 1)}:\n{lines}")
    return Pipeline(campaign, blocks)


def _named_block(name: str, block: Any, path: str, problems: _Problems) -> None:
    if not NAME.fullmatch(name):
        problems.add(path, "a name is a lower-case letter followed by letters, digits or _")
    if not isinstance(block, dict):
        problems.add(path, f"must be a block with its strategies, not {block!r}")


def _order(bases: dict[str, Any], parents: dict[str, Any], known: set[str], problems: _Problems) -> list[str]:
    """Names, parents first. Unknown parents and cycles are problems."""
    order = list(bases)
    for name, parent in parents.items():
        if parent is None:
            problems.add(
                f"rounds.{name}.parent", f"is missing; name a base or round ({', '.join(sorted(known - {name}))})"
            )
        elif not isinstance(parent, str) or parent not in known:
            problems.add(
                f"rounds.{name}.parent", f"there is no base or round {parent!r}; {suggest(str(parent), known)}"
            )
    left = {n: p for n, p in parents.items() if isinstance(p, str) and p in known}
    while ready := [n for n, p in left.items() if p in order]:
        order += ready
        left = {n: p for n, p in left.items() if n not in ready}
    cycle = [n for n, p in left.items() if _in_cycle(n, left)]
    if cycle:
        shown = " → ".join([*cycle, cycle[0]])
        problems.add(
            f"rounds.{cycle[0]}.parent", f"the parents go in a circle ({shown}); one of them must start from a base"
        )
    return order


def _in_cycle(name: str, parents: dict[str, str]) -> bool:
    seen, at = set(), parents.get(name)
    while at in parents and at not in seen:
        if at == name:
            return True
        seen.add(at)
        at = parents[at]
    return at == name


def _root(name: str, parents: dict[str, Any]) -> str:
    while name in parents:
        name = parents[name]
    return name


def _block(name: str, raw: dict[str, Any], path: str, kind: str, root: str, problems: _Problems) -> Block:
    found = [s for s in stages().values() if (s.bases != "no" if kind == "bases" else s.bases != "only")]
    own = {"seed", "domain", "engine", "files"} | ({"parent", "base"} if kind == "rounds" else set())
    _keys(raw, own | {s.name for s in found}, (own | {s.name for s in found}), path, problems)
    if kind == "rounds" and raw.get("base", root) != root:
        problems.add(f"{path}.base", f"is {raw['base']!r}, but the parents lead to {root!r}; write base: {root}")
    seed = raw.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**31:
        problems.add(f"{path}.seed", f"must be a whole number from 0 to 2147483647, not {seed!r}")
    domain, engine = (
        _chosen(f"{k}s", raw[k], f"{path}.{k}", problems) if k in raw else None for k in ("domain", "engine")
    )
    parts = {s.name: _stage_params(s, raw[s.name], f"{path}.{s.name}", problems) for s in found if s.name in raw}
    _abilities(parts, engine, path, problems)
    _judges(parts, path, problems)
    parent = raw.get("parent") if kind == "rounds" else None
    block = Block(name, parent, root, seed, domain, engine, parts, raw)
    _watched(block, path, problems)
    return block


def _abilities(parts: dict[str, Any], engine: Any, path: str, problems: _Problems) -> None:
    """What a strategy needs of the engine, the engine must be able to do."""
    for stage, value in parts.items():
        members = value.panel if isinstance(value, Panel) else {value.strategy_name(): value} if value else {}
        for name, member in members.items():
            lacking = [n for n in sorted(getattr(member, "needs", ())) if engine and not getattr(engine, n)]
            if lacking:
                problems.add(
                    f"{path}.{stage}",
                    f"{name} needs an engine with {' and '.join(lacking)}, which {engine.strategy_name()} lacks; "
                    "choose another engine or leave it out",
                )


def _judges(parts: dict[str, Any], path: str, problems: _Problems) -> None:
    """The judges that the filter names must be in the panel."""
    panel, rule = getattr(parts.get("judge"), "panel", None), parts.get("filter")
    named = {f"require.{n}": n for n in getattr(rule, "require", ())} | {"rank_by": getattr(rule, "rank_by", None)}
    for key, name in named.items():
        if panel is not None and name is not None and name not in panel:
            problems.add(f"{path}.filter.{key}", f"there is no judge {name!r} in judge.panel; {suggest(name, panel)}")


def read_by(block: Block) -> dict[str, Path]:
    """The files that a block's domain and strategies name, by key; a base's model is another matter."""
    found = {"domain": block.domain}
    for stage, value in block.stages.items():
        panel = value.panel if isinstance(value, Panel) else {}
        found |= {f"{stage}.panel.{n}": m for n, m in panel.items()} if panel else {stage: value}
    own = {k: v for k, v in found.items() if k != "base"}
    return {f"{key}.{n}": v for key, value in own.items() for n, v in value or () if isinstance(v, Path)}


def _watched(block: Block, path: str, problems: _Problems) -> None:
    """What a domain or strategy reads must lie where DVC sees its edits."""
    named, told = read_by(block), block.raw.get("files", str(NO_FILES))
    if not isinstance(told, str) or not _inside(Path(told), SEEDS):
        problems.add(f"{path}.files", f"must be a file or folder of {SEEDS} ({NO_FILES} for none), not {told!r}")
        return
    for key, value in named.items():
        if not _inside(value, SEEDS):
            problems.add(
                f"{path}.{key}", f"{value} lies outside {SEEDS}, where DVC would not see its edits; put it there"
            )
        elif not _inside(value, Path(told)):
            fix = f"write files: {_common(named)}"
            problems.add(f"{path}.files", f"is {told}, so DVC would not see edits of {value} ({key}); {fix}")


def _inside(path: Path, folder: Path) -> bool:
    return path.is_relative_to(folder) and ".." not in path.parts


def _common(named: dict[str, Path]) -> str:
    """The file, or the folder of all of them."""
    inside = [path for path in named.values() if _inside(path, SEEDS)]
    return os.path.commonpath(inside) if inside else str(NO_FILES)


def jurors(block: Block) -> dict[str, Any]:
    """The other models that judge a block's answers, by the key of params.yaml below which they are described."""
    jury = getattr(block.stages.get("judge"), "panel", {}).get("jury")
    return {f"judge.panel.jury.jury.{name}": juror for name, juror in getattr(jury, "jury", {}).items()}


def _jury(blocks: dict[str, Block], problems: _Problems) -> None:
    """A juror's model of the project's own must be made by a base or round that can come before its own."""
    found = {name: {f"rounds.{name}.{k}.model": j for k, j in jurors(b).items()} for name, b in blocks.items()}
    for keys in found.values():
        for key, juror in keys.items():
            if juror.digest is None and (maker := juror.maker()) and maker not in blocks:
                problems.add(
                    key, f"{juror.model} is not pinned, and {maker!r} is no base or round; {suggest(maker, blocks)}"
                )
    makers = {name: {j.maker() for j in keys.values()} for name, keys in found.items()}
    try:
        TopologicalSorter({n: {b.parent, *makers[n]} for n, b in blocks.items()}).prepare()
    except CycleError as error:
        circle = error.args[1]
        name = next(n for n in circle if makers[n] & set(circle))
        key = next(k for k, j in found[name].items() if j.maker() in circle)
        shown = " → ".join(circle)
        problems.add(
            key, f"{found[name][key].model} is made only after {name} ({shown}); take a model that comes before"
        )


def evaluated(block: Block) -> dict[str, int]:
    """How many items of each frozen split a block evaluates, read from the panel's fields by their names: `count` of
    the gold set, `problems` of a `split`, the greater of `greedy` and `sampled` of each of the `splits`.
    """
    asked: dict[str, int] = {}
    for member in getattr(block.stages.get("evaluate"), "panel", {}).values():
        wants = [("gold", getattr(member, "count", 0)), (getattr(member, "split", ""), getattr(member, "problems", 0))]
        most = max(getattr(member, "greedy", 0), getattr(member, "sampled", 0))
        for split, count in [*wants, *((s, most) for s in getattr(member, "splits", ()))]:
            asked[split] = max(count, asked.get(split, 0))
    return {split: count for split, count in asked.items() if count}


def _screened(blocks: dict[str, Block], problems: _Problems) -> None:
    """Prompts must keep clear of all that their round, or one that descends from it, is evaluated on."""
    most: dict[tuple[str, str], tuple[int, str]] = {}
    for name, block in blocks.items():
        asked = evaluated(block).items()
        at: Block | None = block
        while at is not None:
            most |= {(at.name, s): max((n, name), most.get((at.name, s), (0, ""))) for s, n in asked}
            at = blocks.get(at.parent or "")
    for (name, split), (count, by) in sorted(most.items()):
        covered = getattr(blocks[name].stages.get("prompts"), "evaluation", None)
        if covered is not None and covered.get(split, 0) < count:
            problems.add(
                f"rounds.{name}.prompts.evaluation",
                f"keeps prompts clear of {covered.get(split, 0)} {split} items, and evaluate of {by} asks for {count}; "
                f"write {split}: {count} there, or more",
            )


def _keys(raw: dict[str, Any], known: set[str], required: set[str], path: str, problems: _Problems) -> None:
    prefix = f"{path}." if path else ""
    for key in raw:
        if key not in known:
            problems.add(f"{prefix}{key}", f"unknown key; {suggest(str(key), known)}")
    for key in sorted(required - set(raw)):
        problems.add(f"{prefix}{key}", "is missing; `flywheel schema` describes what it takes")


def _stage_params(stage: Stage, raw: Any, path: str, problems: _Problems) -> Any:
    if not stage.is_panel:
        return _chosen(stage.name, raw, path, problems)
    if not isinstance(raw, dict) or not isinstance(raw.get("panel"), dict):
        problems.add(path, f"needs a `panel` of members ({', '.join(names(stage.name))})")
        return None
    panel = {
        name: _found(stage.name, name, {} if values is None else values, f"{path}.panel.{name}", problems)
        for name, values in raw["panel"].items()
    }
    if any(m is None for m in panel.values()):
        return None
    return _params(stage.params, {**raw, "panel": panel}, path, problems)


def _chosen(package: str, raw: Any, path: str, problems: _Problems) -> Any:
    if not isinstance(raw, dict) or "strategy" not in raw:
        problems.add(path, f"must name its strategy, as in {{strategy: {names(package)[0]}}}, not {raw!r}")
        return None
    values = {k: v for k, v in raw.items() if k != "strategy"}
    return _found(package, raw["strategy"], values, path, problems)


def _found(package: str, name: Any, values: Any, path: str, problems: _Problems) -> Any:
    try:
        return _member(load(package, str(name)), values, path, problems)
    except UnknownName as error:
        problems.add(path, str(error))
        return None


def _member(model: type[Any], values: Any, path: str, problems: _Problems) -> Any:
    if not isinstance(values, dict):
        problems.add(path, f"must be a block of parameters, not {values!r}")
        return None
    return _params(model, values, path, problems)


def _params(model: type[Any], values: dict[str, Any], path: str, problems: _Problems) -> Any:
    try:
        return model(**values)
    except ValidationError as error:
        for e in error.errors():
            where = ".".join([path, *(str(part) for part in e["loc"])])
            if e["type"] == "extra_forbidden":
                problems.add(where, f"unknown key; {suggest(str(e['loc'][-1]), model.model_fields)}")
            elif e["type"] == "missing":
                problems.add(where, "is missing; `flywheel schema` describes what it takes")
            else:
                problems.add(where, f"{e['msg'][0].lower()}{e['msg'][1:]}, not {masked(repr(e['input']))}")
        return None


# The JSON schema, for editors

FILES = {
    "type": "string",
    "description": f"File or folder of {SEEDS} that the domain and the strategies read; {NO_FILES} where they read none.",
}


def schema() -> dict[str, Any]:
    """The JSON schema of params.yaml, derived from every strategy's fields."""
    defs: dict[str, Any] = {}
    domain, engine = _one_of("domains", defs), _one_of("engines", defs)
    own = {"seed": {"type": "integer", "minimum": 0}, "domain": domain, "engine": engine, "files": FILES}

    def block(is_base: bool) -> dict[str, Any]:
        mine = [s for s in stages().values() if (s.bases != "no" if is_base else s.bases != "only")]
        up = {} if is_base else {"parent": {"type": "string"}, "base": {"type": "string"}}
        properties = {**up, **own, **{s.name: _stage_schema(s, defs) for s in mine}}
        return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}

    bases, rounds = block(True), block(False)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": defs,
        "title": "Flywheel params.yaml",
        "type": "object",
        "properties": {
            "campaign": Campaign.model_json_schema(),
            "bases": {"type": "object", "additionalProperties": bases},
            "rounds": {"type": "object", "additionalProperties": rounds},
        },
        "required": ["bases"],
        "additionalProperties": False,
    }


def _described(package: str, name: str, defs: dict[str, Any]) -> dict[str, Any]:
    """The schema of a plug-in; those of the models within it go to `defs`, for references start at the root."""
    prefix = f"{package}-{name}-"
    found = load(package, name).model_json_schema(ref_template=f"#/$defs/{prefix}{{model}}")
    defs |= {f"{prefix}{model}": within for model, within in found.pop("$defs", {}).items()}
    return found


def _one_of(package: str, defs: dict[str, Any]) -> dict[str, Any]:
    options = []
    for name in names(package):
        option = _described(package, name, defs)
        option["properties"] = {"strategy": {"const": name}, **option.get("properties", {})}
        option["required"] = ["strategy", *option.get("required", [])]
        options.append(option)
    return {"oneOf": options}


def _stage_schema(stage: Stage, defs: dict[str, Any]) -> dict[str, Any]:
    if not stage.is_panel:
        return _one_of(stage.name, defs)
    whole = stage.params.model_json_schema()
    members = {n: {"anyOf": [_described(stage.name, n, defs), {"type": "null"}]} for n in names(stage.name)}
    panel = {"type": "object", "properties": members, "additionalProperties": False}
    properties = whole["properties"] | {"panel": panel}
    return {"type": "object", "properties": properties, "required": whole["required"], "additionalProperties": False}


# Edits that keep comments


@contextmanager
def lock(root: Path, name: str) -> Iterator[None]:
    """Waits until no other process of the project holds the lock of that name, and holds it."""
    place = root / STATE
    place.mkdir(exist_ok=True)
    with FileLock(place / f"{name}.lock"):
        yield


def edit(root: Path, change: Any) -> None:
    """Applies `change(content)` to params.yaml, one edit after the other; written atomically, and only if the result is
    valid.

    Raises:
        ParamsError: when the edited file would not be valid; then nothing is written.
    """
    path = _path(root)
    with lock(root, "params"):
        text = _edited(read(root), change)
        new = root / STATE / FILE
        with new.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)


def _edited(content: CommentedMap, change: Any) -> str:
    """The text of params.yaml after an edit."""
    try:
        change(content)
    except (AttributeError, KeyError, TypeError):
        validate(plain(content))  # says what is wrong with the file, if it is the file
        raise
    validate(plain(content))
    text = io.StringIO()
    yaml = YAML()
    yaml.width = 120
    yaml.dump(content, text)
    return text.getvalue()


def add_round(root: Path, name: str, parent: str, settings: list[str], like: str | None = None) -> None:
    """Appends a round whose block is a copy of `like`'s (by default the parent's, or the nearest round's) with settings.

    Raises:
        ParamsError, UnknownName, FlywheelError: for what cannot be; nothing is written then.
    """

    def change(content: CommentedMap) -> None:
        rounds = content.setdefault("rounds", CommentedMap())
        if name in rounds or name in content["bases"]:
            remove = f", or `flywheel round remove {name}`" if name in rounds else ""
            raise FlywheelError(f"{FILE} has a {name!r} already; choose another name{remove}")
        known = [*content["bases"], *rounds]
        if parent not in known:
            raise UnknownName("base or round", parent, known, FILE)
        model = like or (parent if parent in rounds else next(reversed(rounds), None))
        if model not in rounds:
            raise UnknownName("round to copy from", str(model), rounds, FILE)
        block = CommentedMap(plain(rounds[model]))
        block["parent"] = parent
        block["base"] = parent if parent in content["bases"] else rounds[parent]["base"]
        block["seed"] = max([b.get("seed", 0) for b in rounds.values()], default=0) + 1
        _apply(block, settings, {"parent": "--parent names it", "base": "it is where the parents lead to"})
        _watch(block, settings, "rounds")
        rounds[name] = block

    edit(root, change)


def _apply(block: Any, settings: list[str], refused: dict[str, str]) -> None:
    """Assigns values, the wider keys first: a strategy that is named anew clears what was said of the old one."""
    paths = {setting: setting.partition("=")[0] for setting in settings}
    for setting in sorted(paths, key=lambda s: (paths[s].count("."), not paths[s].endswith(".strategy"))):
        if paths[setting] in refused:
            raise FlywheelError(f"--set {setting}: {paths[setting]} is not for --set: {refused[paths[setting]]}")
        _set(block, setting)


def _watch(block: CommentedMap, settings: list[str], kind: str) -> None:
    """Has DVC watch the files that a new block names, where it does not yet and nobody said what to watch."""
    if any(setting.startswith("files=") for setting in settings):
        return
    named = read_by(_block("new", plain(block), "", kind, "", _Problems()))
    if not all(_inside(path, Path(str(block.get("files")))) for path in named.values()):
        block["files"] = _common(named)


def _set(block: Any, setting: str) -> None:
    path, equals, value = setting.partition("=")
    if not equals:
        raise FlywheelError(f"--set {setting}: write KEY=VALUE, as in --set generate.temperature=0.9")
    *parents, last = path.split(".")
    at = block
    for key in parents:
        if key not in at:
            raise UnknownName("key", key, at, f"--set {setting}")
        if at[key] is None:
            at[key] = CommentedMap()
        at = at[key]
        if not isinstance(at, dict):
            raise FlywheelError(
                f"--set {setting}: {key!r} holds {at!r} and no keys of its own; write --set {key}=VALUE"
            )
    try:
        new = YAML(typ="safe").load(value)
    except YAMLError as error:
        raise FlywheelError(f"--set {setting}: {value!r} is not a YAML value ({str(error).splitlines()[0]})") from error
    if last == "strategy" and at.get(last) != new:
        at.clear()  # the other parameters are the old strategy's
    at[last] = new


def remove_round(root: Path, name: str) -> None:
    """Takes a round out of params.yaml; its files stay until someone deletes them.

    Raises:
        FlywheelError: when other rounds descend from it, or name its model.
    """

    def change(content: CommentedMap) -> None:
        rounds = content.get("rounds") or {}
        if name not in rounds:
            raise UnknownName("round", name, rounds, FILE)
        children = [n for n, b in rounds.items() if b.get("parent") == name]
        if children:
            raise FlywheelError(
                f"{name} is the parent of {', '.join(children)}; remove these first, or give them another parent"
            )
        others = {n: b for part in ("bases", "rounds") for n, b in (content.get(part) or {}).items() if n != name}
        if using := [n for n, b in others.items() if f"data/round={name}/model" in str(plain(b))]:
            raise FlywheelError(
                f"the model of {name} is named by {', '.join(using)}; remove these first, or give them another model"
            )
        del rounds[name]

    edit(root, change)


def add_base(root: Path, name: str, base: dict[str, Any], settings: list[str]) -> None:
    """Appends a base: a copy of the first base's block with another `base` strategy, and with settings."""

    def change(content: CommentedMap) -> None:
        if name in content["bases"] or name in (content.get("rounds") or {}):
            raise FlywheelError(f"{FILE} has a {name!r} already; choose another name")
        block = CommentedMap(plain(next(iter(content["bases"].values()))))
        block["base"] = CommentedMap(base)
        _apply(block, settings, {})
        _watch(block, settings, "bases")
        content["bases"][name] = block

    edit(root, change)


__all__ = ["Block", "Pipeline", "add_base", "add_round", "load_params", "remove_round", "schema", "validate"]
