"""One definition of a stage: its function's signature is the only place that says what it reads and writes.

    @stage(outputs=[tables.pairs])
    def pair(params: Strategy, responses: pl.LazyFrame, judgments: pl.LazyFrame) -> pl.LazyFrame: ...

An argument is one of
- `params`: the stage's block of params.yaml, as the chosen strategy (or the `Panel` that the annotation names);
- a table (`pairs`) or folder (`model`) of this round, or of an ancestor: `parent_model`, `base_evals`;
- an output folder of its own (the `model` of `train`): a staging place to write to;
- `engine`, `domain`, `seed` of the round; `cache`, where engines keep answered requests; `work`, a scratch folder that
  survives a kill, for checkpoints.
Everything else (dvc.yaml, validation, the JSON schema, the contract test) is derived from that.

A strategy is a file of its stage's folder with one public `Strategy` subclass, found by the file's name. There is no list.

This file is shared by all stages: an edit of it does not make stages stale.
"""

import hashlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from tasks.errors import UnknownName
from tasks.tables import TABLES, Table

CONTEXT = ("params", "engine", "domain", "seed", "cache", "work")
ANCESTORS = ("parent", "base")


class Params(BaseModel):
    """Validated values of params.yaml: unknown keys are refused, nothing can be changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)

    @classmethod
    def strategy_name(cls) -> str:
        """The name by which params.yaml asks for it: the name of its file."""
        return cls.__module__.rpartition(".")[2]


class Strategy(Params):
    """One way to do a stage's work: its fields are its parameters, calling it does the work."""

    needs: ClassVar[frozenset[Literal["samples", "scores"]]] = frozenset()
    """What it asks of the round's engine."""
    opens: ClassVar[bool] = False
    """Whether it asks engines that its own params name: then an edit of any engine makes its panel's stage stale."""
    example: ClassVar[dict[str, Any]] = {}
    """Params with which the contract test runs it: those without a default, and small counts where it is slow."""

    def apart(self) -> bool:
        """Whether what becomes of a prompt's rows depends on that prompt's rows alone, and no engine is asked: a large
        table is then worked off in pieces, some prompts after the others.
        """
        return False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Does the work; each stage says in its `__init__.py` what its strategies are given and give back."""
        raise NotImplementedError


class Panel(Params):
    """A stage whose strategies work side by side: `panel` names them, each with its own parameters."""

    panel: dict[str, Strategy]
    """The members by name; one file of the stage's folder each."""

    def apart(self) -> bool:
        """When all members do."""
        return all(member.apart() for member in self.panel.values())


@dataclass(frozen=True)
class Result:
    """What a stage gives back when one table is not all: frames by table name, metrics, curves to plot."""

    frames: dict[str, Any]
    """A frame, or an iterator of frames that are one table together."""
    metrics: dict[str, float] = field(default_factory=dict)
    plots: dict[str, Any] = field(default_factory=dict)
    """Data frames by name of the plot; written as CSV for `dvc plots`."""


@dataclass(frozen=True)
class Input:
    """Something that a stage reads: a table or folder, of this round or of an ancestor."""

    argument: str
    name: str
    ancestor: str | None = None


@dataclass(frozen=True)
class Stage:
    """What the decorator read from a stage's function."""

    name: str
    function: Callable[..., Any]
    tables: tuple[Table, ...]
    folders: tuple[str, ...]
    plots: dict[str, dict[str, Any]]
    bases: Literal["only", "too", "no"]
    params: type[Params]
    inputs: tuple[Input, ...]
    context: frozenset[str]

    @property
    def is_panel(self) -> bool:
        """Whether several strategies work side by side in it."""
        return issubclass(self.params, Panel)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of all tables and folders that it writes."""
        return (*(t.name for t in self.tables), *self.folders)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the stage's function as it stands: what tests and notebooks do."""
        return self.function(*args, **kwargs)


def stage(
    outputs: Iterable[Table] = (),
    *,
    folders: Iterable[str] = (),
    plots: dict[str, dict[str, Any]] | None = None,
    bases: Literal["only", "too", "no"] = "no",
) -> Callable[[Callable[..., Any]], Stage]:
    """Declares a stage: the tables and folders that it writes, and whether bases have it too.

    Raises:
        TypeError: when an argument's name is neither a table, a folder nor a context name.
    """

    def declare(function: Callable[..., Any]) -> Stage:
        signature = inspect.signature(function, eval_str=True).parameters
        written = tuple(folders)
        inputs = tuple(_input(n, function) for n in signature if n not in CONTEXT and n not in written)
        params = signature["params"].annotation if "params" in signature else Strategy
        used = frozenset(n for n in signature if n in CONTEXT)
        return Stage(function.__name__, function, tuple(outputs), written, plots or {}, bases, params, inputs, used)

    return declare


def _input(argument: str, function: Callable[..., Any]) -> Input:
    ancestor, _, name = argument.partition("_")
    if ancestor in ANCESTORS and name:
        return Input(argument, _known(name, argument, function), ancestor)
    return Input(argument, _known(argument, argument, function))


def _known(name: str, argument: str, function: Callable[..., Any]) -> str:
    if name not in TABLES and name != "model":
        raise TypeError(f"{function.__module__}.{function.__name__}: argument {argument!r} names no table or folder")
    return name


# Discovery: by file name.


def names(package: str) -> list[str]:
    """Names of the plug-ins of a package of `tasks`: its files, in alphabetical order."""
    paths = [str(Path(__file__).parent / package)]
    return sorted(m.name for m in pkgutil.iter_modules(paths) if not m.name.startswith("_") and not m.ispkg)


@cache
def load(package: str, name: str) -> type[Any]:
    """The one public class of `tasks/<package>/<name>.py` that is a `Params`.

    Raises:
        UnknownName: when there is no such file.
    """
    if name not in names(package):
        kind = package[:-1] if package in ("domains", "engines") else f"{package} strategy"
        raise UnknownName(kind, name, names(package))
    module = import_module(f"tasks.{package}.{name}")
    return chosen(vars(module), module.__name__)


def chosen(namespace: dict[str, Any], module: str) -> type[Any]:
    """The plug-in class of a module: public, defined there, and meant to be named in params.yaml."""
    found = [
        c
        for n, c in namespace.items()
        if isinstance(c, type) and issubclass(c, PLUGINS()) and c.__module__ == module and not n.startswith("_")
    ]
    assert len(found) == 1, f"{module} must define exactly one public strategy, not {[c.__name__ for c in found]}"
    return found[0]


@cache
def PLUGINS() -> tuple[type[Any], ...]:
    """The base classes of what is found by file name."""
    from tasks.domains import Domain
    from tasks.engines import Engine

    return (Strategy, Domain, Engine)


@cache
def stages() -> dict[str, Stage]:
    """Every stage by name, in an order in which they can run (inputs before those who read them)."""
    from graphlib import TopologicalSorter

    root = Path(__file__).parent
    packages = [m.name for m in pkgutil.iter_modules([str(root)]) if m.ispkg]
    found = [s for p in sorted(packages) if isinstance(s := getattr(import_module(f"tasks.{p}"), p, None), Stage)]
    writers = {o: s.name for s in found for o in s.outputs if s.bases != "only"}
    reads = {s.name: {writers[i.name] for i in s.inputs if not i.ancestor and i.name in writers} for s in found}
    return {n: next(s for s in found if s.name == n) for n in TopologicalSorter(reads).static_order()}


# Identity: what makes a seed or an id is content, never a position.


def seed_of(*parts: object) -> int:
    """A 63-bit seed from what identifies a draw, for example (round seed, prompt id, sample index)."""
    text = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def content_id(*parts: object) -> str:
    """The id of a row: 16 hexadecimal digits of the sha256 of its content and of its parents' ids."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()[:16]
