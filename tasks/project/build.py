"""Builds the blocks of a pipeline from params.yaml: bases with their exam, rounds with their recipe expanded."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tasks.core.errors import ParamsError, UnknownName, suggest
from tasks.core.plugin import load, names
from tasks.core.stage import Stage, Strategy, stages
from tasks.engines import Engine
from tasks.project import recipes
from tasks.project.blocks import EXAM, FILE, Block, Defaults, RosterModel, Settings, plugin_values
from tasks.project.problems import Problems
from tasks.project.recipes import NAME, plain

DEVICES = "devices"
"""Devices that train a round's model: an option of `train` that a block may say itself."""
TRAIN_DEVICES = f"train.{DEVICES}"
BASE_KEYS = ("seed", "domain", "engine", "base", *EXAM, "where", DEVICES)
ROUND_KEYS = ("parent", "base", "seed", "recipe", "anchor", "set", "where", DEVICES)
REQUIRED = ("prompts", "generate", "judge", "evaluate")
"""Stages that need at least one member."""


Changes = list[tuple[tuple[str, ...], Any]]
"""Settings of a round as (path, value)."""


@dataclass
class Builder:
    """Builds blocks from the raw content of params.yaml; errors go to `problems`."""

    root: Path
    defaults: Defaults
    roster: dict[str, RosterModel]
    bases: dict[str, Any]
    rounds: dict[str, Any]
    problems: Problems
    lines: dict[str, tuple[str | None, str]] = field(default_factory=dict)
    """Name → (parent, base), also of invalid blocks, so that their descendants are validated too."""
    known: Callable[[str], list[str]] = field(default_factory=lambda: cache(names))
    """The strategies of a stage, listed once: half of the time of 200 rounds went into listing folders."""
    read: dict[str, recipes.Recipe | recipes.Phase] = field(default_factory=dict)
    """Recipes that were read, which lists their folder, too."""

    def base(self, name: str) -> Block | None:
        """A base with its exam."""
        raw, path = self.bases[name], f"bases.{name}"
        self.lines[name] = None, name
        old = [k for k in EXAM if isinstance(raw.get(k), dict) and "panel" in raw[k]]
        if "files" in raw or old:
            keys = ", ".join([*(f"{k}.panel" for k in old), *(["files"] if "files" in raw else [])])
            self.problems.add(
                path, f"uses the old format ({keys}): write members in the stage's own block, as in "
                "evaluate: {answers: {}, judging: {}}, write the gate of its rounds here, and remove `files`",
            )  # fmt: skip
            return None
        self.problems.keys(raw, BASE_KEYS, ("domain", "base", "evaluate"), path)
        if DEVICES in raw:
            self._is_count(raw, path)
        domain = self._plugin("domains", raw, "domain", path)
        engine = self._plugin("engines", {"engine": {"strategy": "transformers"}} | raw, "engine", path)
        own = {k: recipes.members(raw.get(k), stages()[k]) for k in ("base", *EXAM) if k in raw}
        where = self._plugin("where", {"where": {"strategy": "here"}} | raw, "where", path)
        origins = dict.fromkeys(_walk({k: raw[k] for k in ("domain", "engine") if k in raw} | own), path)
        present = [k for k in ("base", *EXAM) if k in raw or k == "gate"]
        settings = {k: self._stage(stages()[k], own.get(k), origins, f"{path}.") for k in present}
        valid, seed = {k: s for k, s in settings.items() if s is not None}, self._seed(raw, path)
        if domain is None or engine is None or where is None or len(valid) < len(("base", *EXAM)):
            return None
        block = Block(name, None, name, seed, domain, engine, valid, origins=origins, exam_engine=engine, where=where)
        return _with_values(block)

    def round(self, name: str, blocks: dict[str, Block]) -> Block | None:
        """A round with its recipe expanded."""
        raw, path = self.rounds[name], f"rounds.{name}"
        self.problems.keys(raw, ROUND_KEYS, ("parent", "base"), path)
        grandparent, base_name = self.lines[raw["parent"]]
        self.lines[name] = raw["parent"], base_name
        if raw.get("base", base_name) != base_name:
            self.problems.add(
                f"{path}.base", f"is {raw['base']!r}, but the parents lead to {base_name!r}; write base: {base_name}"
            )
        if "anchor" in raw and raw["anchor"] is None:
            self.problems.add(f"{path}.anchor", "is null; leave it out, or name a base or round")
        seed, base = self._seed(raw, path), blocks.get(base_name)
        changes, engine_changes = self._changes(raw, path)
        changes |= self._devices(raw, self.bases.get(base_name) or {}, changes, path)
        recipe = self.defaults.recipe if raw.get("recipe") is None else str(raw["recipe"])
        expanded = self._expand(recipe, changes, path, "recipe" in raw)
        engine = self._engine(base.engine, engine_changes, path) if base else None
        where = self._plugin("where", raw, "where", path) if "where" in raw else base and base.where
        own = self._own_stages(expanded, path) if expanded else None
        if base is None or engine is None or where is None or expanded is None or own is None:
            return None
        settings = own | {k: base.stages[k] for k in EXAM}
        inherited = [*EXAM, "domain", *(["engine"] if engine.strategy_name() == base.engine.strategy_name() else [])]
        exam = dict.fromkeys(_walk({n: base.values[n] for n in inherited}), f"base {base_name}")
        direct = dict.fromkeys((".".join(key) for key, _ in engine_changes), "set") | {"seed": FILE}
        block = Block(
            name, raw["parent"], base_name, seed, base.domain, engine, settings, raw.get("anchor"), grandparent, recipe,
            origins=expanded.origins | exam | direct, exam_engine=base.engine, where=where,
        )  # fmt: skip
        return _with_values(block)

    def _own_stages(self, expanded: recipes.Settings, path: str) -> dict[str, Settings] | None:
        """Settings of the stages that a recipe configures; None when one is invalid."""
        settings = {
            s.name: self._stage(s, expanded.values.get(s.name), expanded.origins, self._place(path))
            for s in recipe_stages()
        }
        valid = {k: s for k, s in settings.items() if s is not None}
        return valid if len(valid) == len(settings) else None

    def default_judges(self) -> dict[str, Strategy]:
        """The judges of the default recipe; empty when it is missing or broken, which is a problem."""
        recipe = self._read_recipe(self.defaults.recipe, "defaults.recipe")
        if recipe is None:
            return {}
        block = recipe.stages.get("judge")
        builder = Builder(self.root, self.defaults, self.roster, {}, {}, Problems(FILE))
        settings = builder._stage(stages()["judge"], plain(block), {}, "")
        return settings.members if settings else {}

    def _changes(self, raw: dict[str, Any], path: str) -> tuple[dict[str, Any], Changes]:
        """Changes to the recipe by dotted key, and changes to the engine. A round cannot change the exam."""
        changes = {} if raw.get("set") is None else raw["set"]
        if not isinstance(changes, dict):
            self.problems.add(f"{path}.set", f"must map settings to values, not {changes!r}")
            return {}, []
        settings: dict[tuple[str, ...], Any] = {}
        for key, value in recipes.dotted(changes, stages()):
            problem = "is set twice; leave one out" if key in settings else self._set_problem(key, value, raw)
            if problem:
                self.problems.add(f"{path}.set.{'.'.join(key)}", problem)
            else:
                settings[key] = value
        engine = [(key, value) for key, value in settings.items() if key[0] == "engine"]
        return {".".join(key): v for key, v in settings.items() if key[0] != "engine"}, engine

    def _set_problem(self, key: tuple[str, ...], value: Any, raw: dict[str, Any]) -> str | None:
        """Why a round cannot set a key; None if it can."""
        own = [s.name for s in recipe_stages()]
        if key[0] in (*EXAM, "domain", "base"):
            return (
                "cannot be set by a round: all rounds of a base share its exam; write it under bases."
                f"{raw.get('base')}.{key[0]}, or add another base"
            )
        if key[0] in ROUND_KEYS and key[0] not in own:
            return f"is no parameter of a stage: `{key[0]}` stands beside `set`, and not in it"
        if key[0] not in (*own, "engine"):
            return f"there is no stage {key[0]!r}; {suggest(key[0], [*own, 'engine'])}"
        return f"must be a block of parameters, not {value!r}" if key == ("engine",) and value != {} else None

    def _expand(self, recipe: str, changes: dict[str, Any], path: str, named: bool) -> recipes.Settings | None:
        content = self._read_recipe(recipe, f"{path}.recipe" if named else "defaults.recipe")
        if content is None:
            return None
        own = [s.name for s in recipe_stages()]
        for key in content.stages.keys() - set(own):
            problem = (
                "is the base's, not a recipe's"
                if key in (*EXAM, "base", "domain", "engine")
                else f"there is no such stage; {suggest(key, own)}"
            )
            self.problems.once(f"{recipes.place(recipe)}.{key}: {problem}")
        blocks = plain(content.stages)
        self._check_removals(changes, blocks, path)
        return recipes.expand(blocks, f"recipe {recipe}", plain(changes), stages())

    def _read_recipe(self, name: str, path: str) -> recipes.Recipe | recipes.Phase | None:
        try:
            return self.read.get(name) or self.read.setdefault(name, recipes.part(self.root, name))
        except UnknownName as error:
            self.problems.add(path, str(error).partition(": ")[2])
        except ParamsError:
            for problem in recipes.problems(self.root, name):
                self.problems.once(problem)
        return None

    def _check_removals(self, changes: dict[str, Any], recipe: dict[str, Any], path: str) -> None:
        """A member that null removes must exist."""
        for key, value in recipes.dotted(changes):
            members = recipes.members(recipe.get(key[0]), stages()[key[0]])
            if value is None and len(key) == 2 and isinstance(members, dict):
                known = {*members, *recipes.option_names(stages()[key[0]])}
                if key[1] not in known:
                    self.problems.add(
                        f"{path}.set.{'.'.join(key)}", f"there is nothing to remove; {suggest(key[1], known)}"
                    )

    def _engine(self, base: Engine, changes: Changes, path: str) -> Engine | None:
        """The base's engine with changes. Another engine starts from its own defaults."""
        if not changes:
            return base
        same = dict(changes).get(("engine", "strategy"), base.strategy_name()) == base.strategy_name()
        values: dict[str, Any] = {"engine": plugin_values(base) if same else {}}
        for key, value in changes:
            recipes.put(values, key, value)
        return self._plugin("engines", values, "engine", f"{path}.set")

    def _plugin(self, package: str, raw: dict[str, Any], key: str, path: str) -> Any:
        value = raw.get(key)
        if not isinstance(value, dict) or "strategy" not in value:
            if key in raw:
                self.problems.add(
                    f"{path}.{key}", f"must name its strategy, as in {{strategy: {names(package)[0]}}}, not {value!r}"
                )
            return None
        values = {k: v for k, v in value.items() if k != "strategy"}
        return self._load(package, value["strategy"], values, f"{path}.{key}")

    def _load(self, package: str, strategy: Any, values: Any, path: str, place: Any = None) -> Any:
        try:
            kind = load(package, str(strategy))
        except UnknownName as error:
            self.problems.add(path, str(error))
            return None
        return self.problems.model(kind, {} if values is None else values, path, place)

    def _place(self, path: str) -> Any:
        """Where a value of a round is written: in its recipe, or in its `set`."""
        return lambda origins, key: location(origins, key, path)

    def _stage(self, stage: Stage, raw: Any, origins: dict[str, str], place: Any) -> Settings | None:
        """Members and options of a stage. `place` maps a dotted path to where it is written: a prefix or a function."""

        def at(path: str) -> str:
            return place(origins, path) if callable(place) else f"{place}{path}"

        if raw is None:
            raw = {}
        if not isinstance(raw, dict):
            self.problems.add(
                at(stage.name), f"must be a block of members, as in {{{names(stage.name)[0]}: {{}}}}, not {raw!r}"
            )
            return None
        known = set(stage.options.model_fields) if stage.options else set()
        if "panel" in raw:
            self.problems.add(at(f"{stage.name}.panel"), "`panel` is gone: write members in the stage's own block")
            return None
        members = {
            member: self._member(stage, member, values, at) for member, values in raw.items() if member not in known
        }
        options = None
        if stage.options:
            options = self.problems.model(stage.options, {k: raw[k] for k in known & raw.keys()}, stage.name, at)
        if None in members.values() or (stage.options and options is None):
            return None
        if not stage.many and len(members) != 1:
            listed = ", ".join(members) or "none"
            self.problems.add(
                at(stage.name), f"takes one strategy and has {listed}; name one of {', '.join(names(stage.name))}"
            )
            return None
        if stage.name in REQUIRED and not members:
            self.problems.add(at(stage.name), f"needs at least one member; known: {', '.join(names(stage.name))}")
            return None
        return Settings(members, options)

    def _member(self, stage: Stage, member: str, values: Any, at: Any) -> Any:
        path = f"{stage.name}.{member}"
        if not self.problems.name(member, NAME, at(path)):
            return None
        values = {} if values is None else values
        if not isinstance(values, dict):
            self.problems.add(
                at(path), f"must be a block of parameters, not {values!r}; strategies: {', '.join(names(stage.name))}"
            )
            return None
        strategy = values.get("strategy", member)
        return (
            self._load(stage.name, strategy, {k: v for k, v in values.items() if k != "strategy"}, path, at)
            if str(strategy) in self.known(stage.name)
            else self._no_strategy(stage, member, strategy, at(path), "strategy" in values)
        )

    def _no_strategy(self, stage: Stage, member: str, strategy: Any, path: str, named: bool) -> None:
        known = [*names(stage.name), *(stage.options.model_fields if stage.options else ())]
        problem = f"there is no {stage.name} strategy {strategy!r}; {suggest(str(strategy), known)}"
        self.problems.add(path, problem if named else f"{problem} (a member with another name sets its `strategy`)")

    def _devices(
        self, raw: dict[str, Any], base: Mapping[str, Any], changes: Mapping[str, Any], path: str
    ) -> dict[str, Any]:
        """The change that `devices` of a round stands for, or that of its base, which the round may have otherwise."""
        if DEVICES not in raw:
            count = base.get(DEVICES)  # a wrong one is a problem of the base
            return (
                {TRAIN_DEVICES: count} if isinstance(count, int) and count > 1 and TRAIN_DEVICES not in changes else {}
            )
        if TRAIN_DEVICES in changes:
            self.problems.add(f"{path}.set.{TRAIN_DEVICES}", f"is {path}.{DEVICES}, too; leave one of them out")
        return {TRAIN_DEVICES: raw[DEVICES]} if self._is_count(raw, path) else {}

    def _is_count(self, raw: Mapping[str, Any], path: str) -> bool:
        """Whether `devices` of a block is a number of devices."""
        count = raw[DEVICES]
        if valid := isinstance(count, int) and not isinstance(count, bool) and count >= 1:
            return valid
        self.problems.add(f"{path}.{DEVICES}", f"must be a whole number from 1, not {count!r}")
        return False

    def _seed(self, raw: dict[str, Any], path: str) -> int:
        seed = raw.get("seed", 0)
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**31:
            self.problems.add(f"{path}.seed", f"must be a whole number from 0 to 2147483647, not {seed!r}")
            return 0
        return seed


def recipe_stages() -> list[Stage]:
    """The stages that a recipe configures: all but the base's own and the exam."""
    return [s for s in stages().values() if s.bases == "no" and s.name not in EXAM]


def location(origins: Mapping[str, str], key: str, path: str) -> str:
    """Where a value of a round is written: `recipes/sharpen.yaml: stages.…` or `rounds.r2.set.…`; in a phase of a recipe
    `recipes/NAME.yaml: phases.PHASE.stages.…`.
    """
    prefix = key
    while prefix and prefix not in origins:
        prefix = prefix.rpartition(".")[0]
    within = {origin for at, origin in origins.items() if at.startswith(f"{key}.")}
    origin = "set" if "set" in within else origins.get(prefix, "set")
    return (
        f"{recipes.place(origin.removeprefix('recipe '))}.{key}"
        if origin.startswith("recipe ")
        else f"{path}.set.{key}"
    )


def _walk(value: Any, path: str = "") -> Iterator[str]:
    for key, inner in value.items() if isinstance(value, dict) else ():
        inner_path = f"{path}.{key}" if path else str(key)
        yield inner_path
        yield from _walk(inner, inner_path)


def _with_values(block: Block) -> Block:
    """Fills in `values`: every setting as plain JSON, with defaults."""
    values: dict[str, Any] = {
        "seed": block.seed,
        "domain": plugin_values(block.domain),
        "engine": plugin_values(block.engine),
    }
    for stage, settings in block.stages.items():
        options = settings.options.model_dump(mode="json") if settings.options else {}
        values[stage] = options | {m: plugin_values(s) for m, s in settings.members.items()}
    block.values.update(values)
    return block
