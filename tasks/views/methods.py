"""docs/methods.md: every strategy with what it does, its source and its parameters, from the docstrings; then the recipes.

Parameters are read from the JSON schema of a strategy, as `flywheel schema` does. Those that several strategies of a stage
inherit are listed once, with the class that declares them.
"""

import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tasks.core.plugin import load, names
from tasks.core.stage import Stage, Strategy, stages
from tasks.project import recipes
from tasks.views._markdown import Schema, escaped, flow, link, markdown, sources, summary, table, to_strategy, words

FILE = Path("docs/methods.md")
HEAD = """\
# Methods

Every strategy by stage, then the recipes that put them together. Rendered by `flywheel methods --write` from the docstrings
in `tasks/` and from `recipes/`: edit those. A strategy is named in a recipe or in what a round `set`s;
[adding-a-strategy.md](adding-a-strategy.md) adds one.
"""
Uses = Mapping[tuple[str, str], list[str]]
"""(stage, strategy) → the recipes that name it."""
BLANK = "\n\n"


def render(root: Path) -> str:
    """The document: the strategies that are installed, the recipes of the project at `root`."""
    known = {name: recipes.read(root, name) for name in recipes.names(root)}
    uses = _uses(known)
    parts = [HEAD, _contents(known), *(_stage(stage, uses) for stage in stages().values())]
    parts += ["## Recipes\n", *(_recipe(name, recipe) for name, recipe in known.items())]
    return "\n".join(parts)


def write(root: Path) -> bool:
    """Writes the document; returns whether that changed it."""
    path, text = root / FILE, render(root)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return True


# The document's parts


def _contents(known: Mapping[str, recipes.Recipe]) -> str:
    strategies = [
        [f"`{stage}`", to_strategy(stage, name), summary(kind.__doc__ or ""), ", ".join(sources(kind.__doc__ or ""))]
        for stage in stages()
        for name, kind in _strategies(stage).items()
    ]
    methods = [
        [link(name, f"recipe: {name}"), escaped(recipe.title), ", ".join(sources(recipe.paper))]
        for name, recipe in known.items()
    ]
    return "\n".join([
        table(["stage", "strategy", "what it does", "source"], strategies), table(["recipe", "what it does", "source"], methods)
    ])  # fmt: skip


def _stage(stage: Stage, uses: Uses) -> str:
    doc = inspect.cleandoc(sys.modules[f"tasks.{stage.name}"].__doc__ or "")
    kinds = _strategies(stage.name)
    inherited = _inherited(kinds.values())
    common = inherited.pop(stage.strategy, [])
    parts = [f"## {stage.name}\n", f"{markdown(doc.split(BLANK)[0])}\n"]
    if stage.options:
        parts += ["Options of the stage:\n", parameters(stage.options, stage.options.model_fields)]
    parts += ["Every strategy of the stage takes:\n", parameters(stage.strategy, common)] if common else []
    parts += [_shared(stage.name, kind, fields) for kind, fields in inherited.items()]
    return "\n".join([*parts, *(_strategy(stage, name, kind, uses) for name, kind in kinds.items())])


def _shared(stage: str, kind: type[BaseModel], fields: list[str]) -> str:
    """The parameters that some strategies of a stage inherit."""
    parts = [f"### {_shared_title(stage, kind)}\n", f"{markdown(kind.__doc__ or '')}\n", parameters(kind, fields)]
    return "\n".join(parts)


def _shared_title(stage: str, kind: type[BaseModel]) -> str:
    return f"{stage}: parameters of {kind.__name__}"


def _strategy(stage: Stage, name: str, kind: type[Strategy], uses: Uses) -> str:
    own = [field for field in kind.model_fields if _owner(kind, field) is kind]
    more = dict.fromkeys(owner for field in kind.model_fields if (owner := _owner(kind, field)) is not kind)
    links = [_to_parameters(stage.name, owner) for owner in more if owner is not stage.strategy]
    used = [link(recipe, f"recipe: {recipe}") for recipe in uses.get((stage.name, name), [])]
    parts = [f"### {stage.name}: {name}\n", f"{markdown(kind.__doc__ or '')}\n"]
    parts += [parameters(kind, own)] if own else []
    parts += [f"Takes the parameters of {', '.join(links)}{' too' if own else ''}.\n"] if links else []
    parts += [f"In recipes: {', '.join(used)}.\n"] if used else []
    return "\n".join(parts)


def _to_parameters(stage: str, kind: type[BaseModel]) -> str:
    """A link to where the parameters that a class declares are listed: another strategy, or a shared class."""
    strategies = {cls: name for name, cls in _strategies(stage).items()}
    return (
        to_strategy(stage, strategies[kind]) if kind in strategies else link(kind.__name__, _shared_title(stage, kind))
    )


def _recipe(name: str, recipe: recipes.Recipe) -> str:
    parts = [f"### recipe: {name}\n", f"{markdown(recipe.title)}\n"]
    for title, text in (("Paper", recipe.paper), ("Loop", recipe.loop), ("Differs", recipe.differs)):
        parts += [f"**{title}.** {markdown(text)}\n"] if text else []
    for phase, part in recipe.phases.items():
        parts += [f"**Phase `{name}.{phase}`**{_relatives(part)}:\n", _settings(part)]
    relatives = _relatives(recipe)
    parts += [f"**Main round**{relatives}:\n"] if recipe.phases or relatives else []
    return "\n".join([*parts, _settings(recipe)])


def _relatives(part: recipes.Recipe | recipes.Phase) -> str:
    when = ["only from a base"] if isinstance(part, recipes.Phase) and part.when == "from_base" else []
    named = [f"{kind} `{value}`" for kind, value in (("parent", part.parent), ("anchor", part.anchor)) if value]
    return f", {', '.join(when + named)}" if when + named else ""


def _settings(part: recipes.Recipe | recipes.Phase) -> str:
    rows = [
        [f"`{stage}`", "<br>".join(_setting(stage, member, values) for member, values in block.items())]
        for stage, block in _members(part).items()
    ]
    return table(["stage", "settings"], rows)


def _setting(stage: str, member: str, values: Any) -> str:
    if member in recipes.option_names(stages()[stage]):
        return f"`{member}: {flow(values)}`"
    strategy = _strategy_of(member, values)
    named = "" if strategy == member else f"`{member}`: "
    settings = [f"`{key}: {flow(value)}`" for key, value in (values or {}).items() if key != "strategy"]
    return named + ", ".join([to_strategy(stage, strategy), *settings])


# What is in the code and the recipes


def _strategies(stage: str) -> dict[str, type[Strategy]]:
    return {name: load(stage, name) for name in names(stage)}


def _members(part: recipes.Recipe | recipes.Phase) -> dict[str, dict[str, Any]]:
    """A recipe's members and options by stage; stages without any are left out."""
    known = {name: recipes.members(part.stages.get(name), stage) for name, stage in stages().items()}
    return {name: block for name, block in known.items() if block and isinstance(block, dict)}


def _strategy_of(member: str, values: Any) -> str:
    return str(values.get("strategy", member)) if isinstance(values, dict) else member


def _uses(known: Mapping[str, recipes.Recipe]) -> Uses:
    uses: dict[tuple[str, str], list[str]] = {}
    for name, recipe in known.items():
        parts = [_members(part) for part in (*recipe.phases.values(), recipe)]
        members = [
            (stage, _strategy_of(*member))
            for part in parts
            for stage, block in part.items()
            for member in block.items()
        ]
        for key in dict.fromkeys(members):
            uses.setdefault(key, []).append(name)
    return uses


def _owner(kind: type[BaseModel], field: str) -> type[Any]:
    """The class that declares a field, or declares it anew."""
    return next(c for c in kind.__mro__ if field in inspect.get_annotations(c))


def _inherited(kinds: Iterable[type[Strategy]]) -> dict[type[Any], list[str]]:
    """The classes that declare fields of strategies and are none themselves, with these fields."""
    kinds, owners = list(kinds), dict[type[Any], list[str]]()
    for kind in kinds:
        for field in kind.model_fields:
            fields = owners.setdefault(_owner(kind, field), [])
            fields += [field] if field not in fields else []
    return {owner: fields for owner, fields in owners.items() if owner not in kinds}


def parameters(kind: type[BaseModel], fields: Iterable[str]) -> str:
    """The table of some fields of a class, and under it the defaults that are texts of several lines."""
    schema = kind.model_json_schema()
    required, wanted = schema.get("required", []), set(fields)
    properties = {name: value for name, value in schema["properties"].items() if name in wanted}
    texts = {name: value["default"] for name, value in properties.items() if _is_long(value.get("default"))}
    blocks = [f"\nDefault of `{name}`:\n\n```text\n{text.strip()}\n```\n" for name, text in texts.items()]
    rows = list(_rows(properties, required, schema.get("$defs", {})))
    return "".join([table(["parameter", "type", "default", "meaning"], rows), *blocks])


def _is_long(value: Any) -> bool:
    return isinstance(value, str) and "\n" in value.strip()


def _rows(properties: Schema, required: list[str], defs: Schema, prefix: str = "") -> Iterator[list[str]]:
    """A row for each parameter; those of a block follow it, with its name in front."""
    for name, schema in properties.items():
        value = schema.get("default")
        default = "required" if name in required else "below" if _is_long(value) else f"`{flow(value)}`"
        yield [
            f"`{prefix}{name}`",
            words(schema, defs),
            default,
            " ".join(markdown(schema.get("description", "")).split()),
        ]
        for block in _blocks(schema, defs):
            yield from _rows(block["properties"], block.get("required", []), defs, f"{prefix}{name}.")


def _blocks(schema: Schema, defs: Schema) -> list[Schema]:
    options = [schema, *schema.get("anyOf", []), *schema.get("allOf", [])]
    return [block for s in options if (block := defs.get(s.get("$ref", "").rpartition("/")[2], {})).get("properties")]
