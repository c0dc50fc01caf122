"""The content of params.yaml, expanded and validated: bases, rounds and the roster of models."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, PlainValidator, ValidationError, model_validator

from tasks.core import labels, models
from tasks.core.errors import ModelRefused, UnknownName
from tasks.core.plugin import Params, Plugin, load, names
from tasks.core.stage import Stage, Strategy, stages
from tasks.domains import Domain
from tasks.engines import Engine
from tasks.project.budget import Budget
from tasks.project.costs import Prices
from tasks.project.problems import reasons
from tasks.where import Placement
from tasks.where.here import Here

FILE = "params.yaml"
EXAM = ("evaluate", "gate")
"""Stages whose settings belong to the base."""


class Campaign(Params):
    """How MLflow names the project's rounds and model, and what a run of the campaign may spend."""

    name: str = Field("flywheel", pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.-]{0,99}$")
    """Name of the MLflow experiment and of the registered model: letters, digits, blanks and `_ . -`."""
    budget: Budget | None = None
    """What one run of the campaign may spend: `tokens`, `hours`, `money`; null has no limit."""


class Defaults(Params):
    """Defaults of rounds."""

    recipe: str = "sharpen"
    """Recipe of rounds that name none."""


def _engine(value: Any) -> Engine:
    """An engine from `{strategy: NAME, …}`."""
    if isinstance(value, Engine):
        return value
    if not isinstance(value, dict) or "strategy" not in value:
        raise ValueError(f"must name its strategy, as in {{strategy: {names('engines')[0]}}}")
    try:
        kind = load("engines", str(value["strategy"]))
        return kind.model_validate({k: v for k, v in value.items() if k != "strategy"})  # type: ignore[no-any-return]
    except UnknownName as error:
        raise ValueError(str(error)) from error
    except ValidationError as error:
        raise ValueError("; ".join(f"{path}: {why}" for path, why in reasons(error, kind))) from error


class RosterModel(Params):
    """A model that strategies open by name: a folder, pinned by its digest, or a model on a server."""

    engine: Annotated[Any, PlainValidator(_engine)]
    """The engine that runs it: `{strategy: …}`."""
    path: Path | None = None
    """Its folder; null for an engine that queries a server. A model of this project does not belong here: a round names the
    base or round that makes it as `anchor`, so that it is made first."""
    digest: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """Digest of the folder: stages that open the model become stale when it changes."""

    @model_validator(mode="after")
    def _is_pinned(self) -> "RosterModel":
        if self.path is None:
            if getattr(self.engine, "model", "") is None:
                raise ValueError("write engine.model, the name under which the server has it")
            if self.engine.loads:
                raise ValueError(f"engine {self.engine.strategy_name()} loads a model: write its folder under `path`")
            return self
        if maker := models.made_by(self.path):
            raise ValueError(
                f"{self.path} is made by this project: name {maker} as the `anchor` of the rounds that open it"
            )
        if self.digest is None:
            raise ValueError(f"pin the model: {_pin_hint(self.path)}")
        return self

    def folder(self) -> Path:
        """Its folder, checked.

        Raises:
            ModelRefused: when it is missing, cannot be loaded, or does not have the pinned digest.
        """
        assert self.path is not None
        models.check(self.path)
        if (digest := models.digest(self.path)) != self.digest:
            raise ModelRefused(
                f"{self.path}: the model's digest is {digest}, but {FILE} pins {self.digest}: restore the folder, or pin "
                "the new digest if the change is intended"
            )
        return self.path


def _pin_hint(path: Path) -> str:
    try:
        models.check(path)
        return f"write digest: {models.digest(path)}"
    except ModelRefused as error:
        return f"write its digest once the model is complete: {error}"


@dataclass(frozen=True)
class Settings:
    """Settings of one stage of a block: its strategies by member, and its options."""

    members: dict[str, Strategy]
    options: Params | None = None


@dataclass(frozen=True)
class Block:
    """A base or round, expanded and validated."""

    name: str
    parent: str | None
    base: str
    seed: int
    domain: Domain
    engine: Engine
    stages: dict[str, Settings]
    anchor: str | None = None
    grandparent: str | None = None
    recipe: str | None = None
    values: dict[str, Any] = field(default_factory=dict)
    """Every value as plain JSON, defaults filled in: by stage, `domain`, `engine`, `seed`."""
    origins: dict[str, str] = field(default_factory=dict)
    """Dotted path of a value → where it comes from. A value that is missing here is its strategy's default."""
    exam_engine: Engine | None = None
    """The base's engine, which runs `evaluate` and `gate`."""
    where: Placement = field(default_factory=Here)
    """Where the pieces of its stages run, which decides no row; a round that says nothing has its base's."""

    @property
    def is_base(self) -> bool:
        """Whether it is a base, without a parent."""
        return self.parent is None

    @property
    def is_phase(self) -> bool:
        """Whether it is a phase of another round's recipe: a step on the way, and no result."""
        return "." in (self.recipe or "")

    def ancestor(self, kind: str) -> str | None:
        """Name of its parent, base, anchor or grandparent; None where it has none. A base is its own base."""
        return {"parent": self.parent, "base": self.base, "anchor": self.anchor, "grandparent": self.grandparent}[kind]

    def strategies(self) -> Iterator[tuple[str, str, Strategy]]:
        """Every strategy, as (stage, member, strategy)."""
        for stage, settings in self.stages.items():
            yield from ((stage, member, strategy) for member, strategy in settings.members.items())


@dataclass(frozen=True)
class Pipeline:
    """All of params.yaml, validated."""

    campaign: Campaign
    blocks: dict[str, Block]
    """Bases and rounds, ancestors first."""
    roster: dict[str, RosterModel] = field(default_factory=dict)
    default_judges: dict[str, Strategy] = field(default_factory=dict)
    """Judges of the default recipe, which the evaluation of a base measures."""
    prices: Prices | None = None
    """None where params.yaml has none."""
    data: str | None = None
    """The bucket of the tables' parts; None for the project's folder."""

    @cached_property
    def rounds(self) -> dict[str, Block]:
        """The rounds without the bases."""
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
        """The blocks from the base to the named one, parents first."""
        block = self.block(name)
        return ([] if block.parent is None else self.lineage(block.parent)) + [block]

    def judges_of(self, block: Block) -> dict[str, Strategy]:
        """The judges of a round's recipe; of a base, those of the default recipe."""
        return block.stages["judge"].members if "judge" in block.stages else self.default_judges


def stages_of(block: Block) -> list[Stage]:
    """The stages of a base or round, in the order in which they run."""
    return [s for s in stages().values() if (s.bases != "no" if block.is_base else s.bases != "only")]


def plugin_values(plugin: Plugin, without: frozenset[str] = frozenset()) -> dict[str, Any]:
    """A plug-in as plain values: `strategy` and every parameter."""
    return {"strategy": plugin.strategy_name()} | plugin.model_dump(mode="json", exclude=set(without))


def input_files(block: Block) -> dict[str, Path]:
    """The files that a block's domain and strategies read, by dotted path; a base's model is another matter."""
    plugins: dict[str, Plugin] = {"domain": block.domain}
    plugins |= {f"{stage}.{member}": s for stage, member, s in block.strategies() if stage != "base"}
    return {f"{key}.{at}": path for key, plugin in plugins.items() for at, path in paths_of(plugin)}


def reads_labels(path: Path) -> bool:
    """Whether a path is the folder of people's labels, or a file in it."""
    return path.is_relative_to(labels.FOLDER) and ".." not in path.parts


def paths_of(value: Any, at: str = "") -> Iterator[tuple[str, Path]]:
    """Every file path among a plug-in's parameters, also in lists, maps and blocks, as (dotted path, file)."""
    if isinstance(value, Path):
        yield at, value
    elif isinstance(value, BaseModel | Mapping):
        items = value if isinstance(value, BaseModel) else value.items()
        for key, inner in items:
            yield from paths_of(inner, f"{at}.{key}" if at else str(key))
    elif isinstance(value, list | tuple | set | frozenset):
        for n, inner in enumerate(value):
            yield from paths_of(inner, f"{at}.{n}")
