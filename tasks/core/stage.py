"""Defines stages: the signature of a stage's function declares what it reads and writes.

    @stage(outputs=[tables.judgments])
    def judge(
        members: dict[str, Judging], options: JudgeOptions, prompts: pl.LazyFrame, responses: pl.LazyFrame,
        models: Annotated[Models, Opens("parent", "base")], domain: Domain, seed: int,
    ) -> pl.LazyFrame: ...

An argument is one of
- `members`: the stage's strategies by the names that the recipe gives them; or `strategy`, where it takes exactly one.
  The annotation names the base class of these strategies, whose `__call__` is their contract;
- `options`: what belongs to the stage and to no strategy, such as the judge whose score is the reward;
- `judges`: the judges of the round's recipe, by name, for an evaluation of them;
- a table (`pairs`) or folder (`model`) of this round, or of an ancestor: `parent_prompts`, `anchor_responses`. One whose
  annotation allows None is optional: it is given, and a dependency, only where a strategy reads it (`read_tables`). An
  anchor's must be, for not every round has one; a base has no optional tables;
- an output folder of its own (the `model` of `train`): a staging place to write to;
- `models`: the models that it may open: the ancestors in its annotation, and the roster's;
- `overviews`: what strategies with two passes must know of all prompts, by member; None where the call sees them all;
- `domain` and `seed` of the round; `work`, a scratch folder that survives a kill, for checkpoints; `where`, the round's placement.

A large round is worked off in *pieces*, each with the rows of a range of prompts (`tasks.project.pieces`). What needs a look
at all of them takes two passes: `first_pass` of the stage gives each piece's small summaries, a strategy's `fold` makes one
overview of these, and the stage's function is called for each piece with it. Summaries and overviews are data frames, so
pieces may be anywhere.

dvc.yaml, plans, validation, the JSON schema and the contract test are derived from it.
"""

import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args, get_origin

from tasks.core.plugin import TASKS, Params, Plugin
from tasks.core.tables import TABLES, Table

if TYPE_CHECKING:
    import polars as pl

CONTEXT = ("members", "strategy", "options", "judges", "models", "domain", "seed", "work", "overviews", "where")
ANCESTORS = ("parent", "base", "anchor", "grandparent")
OPTIONAL = ("anchor", "grandparent")
"""Ancestors that not every round has: `anchor` is the base or round that it names, `grandparent` its parent's parent."""
Ability = Literal["samples", "scores", "traces", "entropies", "embeds"]
"""What an engine can do: complete chats, score given completions, give the log-probability of each sampled token, its
entropy, and the hidden states of a text."""
ONLY = ""
"""Name of the strategy of a stage that takes exactly one."""
Overviews = Mapping[str, "pl.DataFrame"] | None
"""The overviews of a stage's members, by name; None where the stage sees all prompts."""


class Strategy(Plugin):
    """A strategy of a stage: fields are its parameters, `__call__` takes the stage's case."""

    needs: ClassVar[frozenset[Ability]] = frozenset()
    """Abilities that it needs of the engine of each model that it opens."""

    def opened_models(self) -> frozenset[str]:
        """Names of the models that it opens: ancestors (`parent`, `base`, `anchor`, `grandparent`), models of the roster,
        or `model`, the round's own, where its stage evaluates that.
        """
        return frozenset({"parent"}) if self.needs else frozenset()

    def read_tables(self) -> frozenset[str]:
        """Argument names of the optional tables of its stage that it reads, such as `anchor_training`. Bases, and rounds
        without such an ancestor, have None in their place.
        """
        return frozenset()

    def reads_logprobs_of(self) -> frozenset[str]:
        """The tables of answers (`responses`, `refinements`) whose `logprob` or `mean_logprob` it reads. Their stage asks the
        engine for log-probabilities then, where these are not free.
        """
        return frozenset()

    def per_prompt_only(self) -> bool:
        """Whether it handles each prompt independently. A large table is then processed in pieces."""
        return False

    def needs_overview(self) -> bool:
        """Whether it handles each prompt independently once it knows the `overview` of all prompts. A large table is then
        processed in pieces, in two passes.
        """
        return False

    def summary(self, case: Any) -> "pl.LazyFrame":
        """First pass: what of a piece decides about others: narrow rows, for whoever folds them reads all pieces'."""
        raise NotImplementedError

    def fold(self, summaries: "pl.LazyFrame") -> "pl.DataFrame":
        """The overview of all prompts from the summaries of all pieces, which may be more than memory holds. It must not depend
        on how the rows were cut into pieces. Of one with a `prompt_id` a piece gets its own prompts' rows alone.
        """
        raise NotImplementedError

    def overview(self, case: Any) -> "pl.DataFrame":
        """The overview that the case brings along; without one it is made from the case, which then has all prompts."""
        return self.fold(self.summary(case).collect().lazy()) if case.overview is None else case.overview


@dataclass(frozen=True)
class Opens:
    """In the annotation of `models`: the ancestors whose models a stage may open."""

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        object.__setattr__(self, "names", names)


@dataclass(frozen=True)
class Result:
    """Result of a stage with more than one table: frames by table name, metrics, plots, warnings."""

    frames: dict[str, Any]
    """A frame, or an iterator of frames that are one table together."""
    metrics: dict[str, float] = field(default_factory=dict)
    plots: dict[str, Any] = field(default_factory=dict)
    """Data frames by name of the plot; written as CSV for `dvc plots`."""
    warnings: tuple[str, ...] = ()
    """Warnings for the user: printed when the stage ends, and kept in its manifest."""


@dataclass(frozen=True)
class Input:
    """Something that a stage reads: a table or folder, of this round or of an ancestor."""

    argument: str
    name: str
    ancestor: str | None = None
    optional: bool = False
    """It is there only where a strategy reads it, or opens it; else the argument is None."""
    opened: bool = False
    """A model that `models` may open, and no argument of its own."""

    @property
    def conditional(self) -> bool:
        """Whether it is read only where a strategy asks for it: an optional table, or an ancestor's model to open."""
        return self.optional or (self.opened and self.ancestor is not None)


@dataclass(frozen=True)
class Stage:
    """A declared stage."""

    name: str
    function: Callable[..., Any]
    tables: tuple[Table, ...]
    folders: tuple[str, ...]
    plots: dict[str, dict[str, Any]]
    bases: Literal["only", "too", "no"]
    strategy: type[Strategy]
    """Base class of its strategies."""
    many: bool
    """Whether several strategies work side by side in it; else it takes exactly one."""
    options: type[Params] | None
    inputs: tuple[Input, ...]
    context: frozenset[str]
    first_pass: "Callable[..., Mapping[str, pl.LazyFrame]] | None" = None
    """Takes the arguments of `function` that it names, and returns the `summary` of each member that needs an overview."""

    @property
    def first_pass_arguments(self) -> tuple[str, ...]:
        """Names of the arguments that the first pass takes."""
        return tuple(inspect.signature(self.first_pass).parameters) if self.first_pass else ()

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of all tables and folders that it writes."""
        return (*(t.name for t in self.tables), *self.folders)

    def needed_inputs(self, strategies: Iterable[Strategy], judges: Iterable[Strategy] = ()) -> set[Input]:
        """The inputs that these strategies want: all but the optional tables that none of them reads and the models of
        ancestors that none opens. For `judges`, which are evaluated, `parent` stands for the evaluated model.
        """
        chosen = list(strategies)
        tables = {name for s in chosen for name in s.read_tables()}
        models = {name for s in chosen for name in s.opened_models()}
        models |= {name for j in judges for name in j.opened_models()} - {"parent"}
        return {i for i in self.inputs if _is_needed(i, tables, models)}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the stage's function directly, for tests and notebooks."""
        return self.function(*args, **kwargs)


def stage(
    outputs: Iterable[Table] = (),
    *,
    folders: Iterable[str] = (),
    plots: dict[str, dict[str, Any]] | None = None,
    bases: Literal["only", "too", "no"] = "no",
    first_pass: "Callable[..., Mapping[str, pl.LazyFrame]] | None" = None,
) -> Callable[[Callable[..., Any]], Stage]:
    """Declares a stage: the tables and folders that it writes, and whether bases have it too.

    Raises:
        TypeError: when an argument's name is neither a table, a folder nor a context name, or when its annotation does not
            say what its strategies are.
    """

    def declare(function: Callable[..., Any]) -> Stage:
        signature = inspect.signature(function, eval_str=True).parameters
        output_folders = tuple(folders)
        inputs = [_input(p, function) for n, p in signature.items() if n not in CONTEXT and n not in output_folders]
        if "models" in signature:
            inputs += [_model_input(name) for name in _opens(signature["models"].annotation)]
        strategy, many = _strategies(signature, function)
        options = signature["options"].annotation if "options" in signature else None
        context = frozenset(n for n in signature if n in CONTEXT)
        return Stage(
            function.__name__, function, tuple(outputs), output_folders, plots or {}, bases, strategy, many, options,
            tuple(inputs), context, first_pass,
        )  # fmt: skip

    return declare


def _strategies(signature: Any, function: Callable[..., Any]) -> tuple[type[Strategy], bool]:
    many = "members" in signature
    annotation = signature["members" if many else "strategy"].annotation if many or "strategy" in signature else None
    kind = get_args(annotation)[-1] if many and get_args(annotation) else annotation
    if not (isinstance(kind, type) and issubclass(kind, Strategy)):
        raise TypeError(
            f"{function.__module__}.{function.__name__}: needs an argument `members: dict[str, X]` or `strategy: X`, X the "
            "base class of its strategies"
        )
    return kind, many


def _opens(annotation: Any) -> tuple[str, ...]:
    opens = [a for a in getattr(annotation, "__metadata__", ()) if isinstance(a, Opens)]
    return opens[0].names if opens else ()


def _model_input(name: str) -> Input:
    if name == "model":
        return Input("model", "model", opened=True)
    return Input(f"{name}_model", "model", name, name in OPTIONAL, opened=True)


def _input(parameter: inspect.Parameter, function: Callable[..., Any]) -> Input:
    argument = parameter.name
    ancestor, _, name = argument.partition("_")
    optional = type(None) in get_args(parameter.annotation)
    if ancestor in ANCESTORS and name:
        if ancestor in OPTIONAL and get_origin(parameter.annotation) is not None and not optional:
            raise TypeError(f"{function.__name__}: {argument} must allow None, for not every round has {ancestor}")
        return Input(argument, _check_name(name, argument, function), ancestor, optional)
    return Input(argument, _check_name(argument, argument, function), None, optional)


def _is_needed(need: Input, tables: set[str], models: set[str]) -> bool:
    asked_for = need.ancestor in models if need.opened else need.argument in tables
    return asked_for or not need.conditional


def _check_name(name: str, argument: str, function: Callable[..., Any]) -> str:
    if name not in TABLES and name != "model":
        raise TypeError(f"{function.__module__}.{function.__name__}: argument {argument!r} names no table or folder")
    return name


@cache
def stages() -> dict[str, Stage]:
    """Every stage by name, in topological order."""
    from graphlib import TopologicalSorter

    packages = sorted(m.name for m in pkgutil.iter_modules([str(TASKS)]) if m.ispkg)
    modules = {p: import_module(f"tasks.{p}") for p in packages}
    declared = {p: s for p, module in modules.items() if isinstance(s := getattr(module, p, None), Stage)}
    writers = {o: s.name for s in declared.values() for o in s.outputs if s.bases != "only"}
    reads = {
        n: {writers[i.name] for i in s.inputs if not i.ancestor and i.name in writers} for n, s in declared.items()
    }
    return {n: declared[n] for n in TopologicalSorter(reads).static_order()}
