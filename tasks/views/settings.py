"""Prints a round's settings with the origin of each, and recipes."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from ruamel.yaml import YAML

from tasks.core.stage import stages
from tasks.project import recipes
from tasks.project.params import FILE, Block, load_params
from tasks.where.here import Here


def show_round(root: Path, name: str, console: Console | None = None) -> None:
    """Prints the expanded settings of a base or round: each value and its origin."""
    console = console or _console()
    block = load_params(root).block(name)
    table = Table("value", "", "from", title=_title(block), box=None, title_justify="left", pad_edge=False)
    for path, value, origin in values(block):
        table.add_row(path, Text(_text(value)), origin, style="dim" if origin == "default" else "")
    console.print(table)


def _title(block: Block) -> str:
    parts = ["a base"] if block.is_base else [f"parent {block.parent}", f"base {block.base}", f"recipe {block.recipe}"]
    parts += [f"anchor {block.anchor}"] if block.anchor else []
    parts += [] if isinstance(block.where, Here) else [f"where {block.where.strategy_name()}"]
    return f"{block.name}: " + ", ".join(parts)


def values(block: Block) -> Iterator[tuple[str, Any, str]]:
    """Every value of a block as (dotted path, value, origin), in stage order."""
    order = ["seed", "domain", "engine", *(s for s in stages() if s in block.values)]
    for key in order:
        for path, value in _leaves(block.values[key], key):
            yield path, value, _origin(block, path)


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    depth = path.count(".")
    if isinstance(value, dict) and value and depth < 2:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}")
    else:
        yield path, value


def _origin(block: Block, path: str) -> str:
    if path in block.origins:
        return block.origins[path]
    if path.endswith(".strategy"):  # left out: defaults to the member's name
        return block.origins.get(path.removesuffix(".strategy"), "default")
    return FILE if path == "seed" else "default"


def _text(value: Any) -> str:
    return "null" if value is None else str(value)


def show_recipes(root: Path, console: Console | None = None) -> None:
    """Prints a line per recipe, with its phases where it has some."""
    table = Table("recipe", "what it does", "phases", box=None, pad_edge=False)
    for name in recipes.names(root):
        recipe = recipes.read(root, name)
        table.add_row(name, recipe.title, ", ".join(recipe.phases))
    (console or _console()).print(table)


def show_recipe(root: Path, name: str, console: Console | None = None) -> None:
    """Prints a recipe: title, paper, loop, differences from the paper, phases, settings. A phase shows its whole recipe."""
    recipes.part(root, name)  # raises for a phase that it does not have
    name, console = name.partition(".")[0], console or _console()
    recipe = recipes.read(root, name)
    console.print(Text(f"{name}: {recipe.title}", style="bold"))
    for title, text in (("Paper", recipe.paper), ("Loop", recipe.loop), ("Differs", recipe.differs)):
        if text:
            _print_part(console, title, text)
    for phase, part in recipe.phases.items():
        _print_part(console, f"Phase {name}.{phase}{_relatives(part)}", _yaml(part.stages))
    _print_part(console, f"Settings{_relatives(recipe)}", _yaml(recipe.stages))


def _relatives(part: recipes.Recipe | recipes.Phase) -> str:
    """When a phase is written, and what a part descends from and has as its anchor."""
    when = "only from a base" if isinstance(part, recipes.Phase) and part.when == "from_base" else ""
    named = {"parent": part.parent, "anchor": part.anchor}
    words = [when, *(f"{kind} {value}" for kind, value in named.items() if value)]
    return f" ({text})" if (text := ", ".join(filter(None, words))) else ""


def _print_part(console: Console, title: str, text: str) -> None:
    console.print(Text(f"\n{title}", style="bold"))
    console.print(Text(text.strip()))


def _yaml(settings: dict[str, Any]) -> str:
    text = io.StringIO()
    YAML().dump(settings, text)
    return text.getvalue()


def _console() -> Console:
    """As wide as the terminal; 160 columns in a pipe or file."""
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)
