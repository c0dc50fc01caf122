"""The rounds that a recipe writes: one for each of its phases, then the main one.

    flywheel round add r4 --parent r3 --recipe temporal        r4a (temporal.first), r4b (temporal.second), r4 (temporal)

Each is a line of params.yaml that names parent, base and anchor itself, so nothing else needs to know of phases. A phase
has the letter of its place in the recipe, also where an earlier one is left out (`when: from_base`). What descends from a
phase that is left out descends from that phase's parent; what has it as its anchor takes the nearest ancestor that this
phase made.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Any

from tasks.core.errors import FlywheelError
from tasks.project import recipes
from tasks.project.recipes import Phase, Recipe

Rounds = Mapping[str, Mapping[str, Any]]
"""The rounds of params.yaml by name, as they are written there."""


@dataclass(frozen=True)
class Line:
    """A round that a recipe writes."""

    name: str
    main: str
    """The round that was asked for, beside which it is written."""
    recipe: str
    parent: str
    anchor: str | None
    """As the recipe names it: an ancestor or a phase."""


def lines(name: str, parent: str, recipe: str, part: Recipe | Phase, rounds: Rounds) -> list[Line]:
    """What a recipe, or one of its phases alone, writes as the round `name` from `parent`: the main round last."""
    written: list[Line] = []
    parents: dict[str | None, str] = {None: parent}
    """What descends from a phase: its round, or the parent of one that is left out."""
    if isinstance(part, Phase):
        return [Line(name, name, recipe, parent, part.anchor)]
    for letter, (phase, settings) in zip(ascii_lowercase, part.phases.items(), strict=False):
        parents[phase] = parents[settings.parent]
        if settings.when == "always" or parent not in rounds:
            written.append(Line(f"{name}{letter}", name, f"{recipe}.{phase}", parents[phase], settings.anchor))
            parents[phase] = f"{name}{letter}"
    return [*written, Line(name, name, recipe, parents[part.parent], part.anchor)]


def anchor_of(line: Line, rounds: Rounds) -> str | None:
    """The base or round that is a line's anchor, among `rounds` and the lines before it.

    Raises:
        FlywheelError: when there is none.
    """
    parent = rounds.get(line.parent)
    if line.anchor is None or line.anchor == "parent":
        return line.anchor and line.parent
    if line.anchor == "base":
        return parent["base"] if parent else line.parent
    if line.anchor == "grandparent":
        return parent["parent"] if parent else _refuse(line, f"the parent {line.parent} is a base, which has none")
    file = line.recipe.partition(".")[0]
    near = [n for name in _lineage(line, rounds) for n in (name, *beside(name, file, rounds))]
    made = (n for n in near if n in rounds and rounds[n].get("recipe") == f"{file}.{line.anchor}")
    return next(made, None) or _refuse(line, f"neither {line.main} nor an ancestor of it has a round of this phase")


def beside(name: str, recipe: str, rounds: Rounds) -> list[str]:
    """The rounds of a recipe's phases that were written with the round `name`."""
    named = [n for letter in ascii_lowercase if (n := f"{name}{letter}") in rounds]
    return [n for n in named if str(rounds[n].get("recipe")).startswith(f"{recipe}.")]


def _lineage(line: Line, rounds: Rounds) -> list[str]:
    """The round that is written, then its ancestors, the nearest first."""
    names = [line.main, line.parent]
    while names[-1] in rounds and (parent := rounds[names[-1]]["parent"]) not in names:
        names.append(parent)
    return names


def _refuse(line: Line, reason: str) -> str:
    where = recipes.place(line.recipe).removesuffix("stages") + "anchor"
    fix = "start from another parent" + (", or name another anchor with --anchor" if line.name == line.main else "")
    raise FlywheelError(f"{where}: {line.name} has no anchor {line.anchor!r}: {reason}; {fix}")
