"""Collects the problems of params.yaml and its recipes, and raises them together."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from tasks.core.errors import ParamsError, masked, printable, suggest

NAME = r"[a-z][a-z0-9_]{0,40}"
"""Names of bases, rounds, members and phases."""
NAMING = "a name is a lower-case letter followed by letters, digits or _, and has at most 41 of them"


class Problems(list[str]):
    """Problems, each with its key, value and fix."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = file

    def add(self, path: str, message: str) -> None:
        """Adds a problem of the key at `path`."""
        self.once(f"{printable(path)}: {message}")

    def once(self, problem: str) -> None:
        """Adds a problem unless it is already there: rounds with the same recipe share its problems."""
        if problem not in self:
            self.append(problem)

    def name(self, name: Any, pattern: str, path: str) -> bool:
        """Whether a name matches `pattern`; adds a problem if not."""
        if re.fullmatch(pattern, str(name)):
            return True
        self.add(path, f"{NAMING}; rename it")
        return False

    def mapping(self, content: dict[str, Any], key: str) -> dict[str, Any]:
        """A section that maps names to blocks. Adds a problem and returns an empty dict if it does not."""
        part = content.get(key) or {}
        if isinstance(part, dict):
            return part
        self.add(key, f"must map names to blocks, not {part!r}")
        return {}

    def keys(self, raw: dict[str, Any], known: Iterable[str], required: Iterable[str], path: str) -> None:
        """Adds the unknown and missing keys of a block."""
        prefix = f"{path}." if path else ""
        for key in raw:
            if key not in set(known):
                self.add(f"{prefix}{key}", f"unknown key; {suggest(str(key), known)}")
        for key in sorted(set(required) - set(raw)):
            self.add(f"{prefix}{key}", "is missing; `flywheel schema` describes what it takes")

    def model(self, kind: type[BaseModel], values: Any, path: str, place: Callable[[str], str] | None = None) -> Any:
        """An instance of `kind`. Adds problems and returns None if the values are invalid. `place` maps a path to its location."""
        at = place or (lambda p: p)
        if not isinstance(values, dict):
            self.add(at(path), f"must be a block of parameters, not {values!r}")
            return None
        try:
            return kind(**values)
        except ValidationError as error:
            for key, why in reasons(error, kind):
                self.add(at(f"{path}.{key}" if key else path), why)
        except TypeError as error:  # keys that are not strings
            self.add(at(path), str(error))
        return None

    def raise_all(self) -> None:
        """Raises ParamsError with all problems, if there are any."""
        if self:
            lines = "\n".join(f"  {p}" for p in self)
            raise ParamsError(f"{self.file} has {len(self)} problem{'s' * (len(self) > 1)}:\n{lines}")


def reasons(error: ValidationError, kind: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """Each error as (path within the model, reason)."""
    for e in error.errors():
        path = ".".join(map(str, e["loc"]))
        if e["type"] == "extra_forbidden":
            yield path, f"unknown key; {suggest(str(e['loc'][-1]), _block(kind, e['loc'][:-1]).model_fields)}"
        elif e["type"] == "missing":
            yield path, "is missing; `flywheel schema` describes what it takes"
        else:
            yield path, f"{e['msg'][0].lower()}{e['msg'][1:]}, not {masked(repr(e['input']))}"


def _block(kind: type[BaseModel], path: Iterable[int | str]) -> type[BaseModel]:
    """The block of parameters at a path within `kind`, also where it may be null or is one of several in a map."""
    for key in path:
        field = kind.model_fields.get(str(key))
        kind = next(_blocks(field.annotation), kind) if field else kind
    return kind


def _blocks(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _blocks(inner)
