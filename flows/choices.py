"""Drop-downs of the parameter forms: the rounds and recipes that exist when a flow is deployed.

They are hints, not limits: deployments do not enforce them, so that a round that was added a minute ago can be run, and a
wrong name fails with the nearest right ones. A campaign deploys again what it ran from, `flywheel up` all of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tasks.core.errors import FlywheelError
from tasks.project import graph, recipes
from tasks.project.params import load_params

LATEST = "latest"
"""In the place of a round's name: the last round of params.yaml, whichever that is when the flow runs."""
SAME = "as the last round"
"""In the place of a recipe's name."""


@dataclass(frozen=True)
class Choices:
    """Puts names into a parameter's JSON schema; none where the project cannot be read."""

    names: Callable[[Path], list[str]]

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> dict[str, Any]:
        try:
            return handler(core) | {"enum": self.names(Path())}
        except FlywheelError:
            return handler(core)


def _rounds(root: Path) -> list[str]:
    """Newest first."""
    return [LATEST, *reversed(load_params(root).blocks)]


def _recipes(root: Path) -> list[str]:
    return [SAME, *recipes.names(root)]


Round = Annotated[str, Choices(_rounds)]
Recipe = Annotated[str, Choices(_recipes)]


def resolve(root: Path, round: str) -> str:
    """The name of a round or base, with `latest` resolved.

    Raises:
        UnknownName: when there is none of that name.
    """
    params = load_params(root)
    if round == LATEST and LATEST not in params.blocks:
        return next(reversed(graph.rounds(root)), next(iter(params.blocks)))
    return params.block(round).name


__all__ = ["LATEST", "SAME", "Recipe", "Round", "resolve"]
