"""What the table of the rounds is made of: manifests, measures, decisions and costs of each base and round."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from tasks.core import remembered, store
from tasks.core.champion import Election
from tasks.project.champion import decision, model_digest
from tasks.project.costs import Costs, Prices, of
from tasks.project.freshness import absent_files, stale_stages
from tasks.project.params import Block, Pipeline, stages_of
from tasks.views._labels import by_round

UNKNOWN = "–"


@dataclass(frozen=True)
class Cell:
    """A formatted value; `low` and `high` if it has an interval."""

    text: str
    low: float | None = None
    high: float | None = None
    style: str = ""
    value: float | None = None
    """The number of `text`, where it is a measure's."""


@dataclass(frozen=True)
class Facts:
    """Manifests, measures and decisions of a base or round."""

    block: Block
    stages: dict[str, store.Manifest] = field(default_factory=dict)
    measures: dict[tuple[str, int | None], Cell] = field(default_factory=dict)
    decisions: dict[str, tuple[bool, str]] = field(default_factory=dict)
    """Gate → (passed, reason)."""
    model: str | None = None
    """The digest of its model, as rows carry it."""
    stale: dict[str, str] = field(default_factory=dict)
    """Stages that today's plans and inputs would make anew, each with what was edited; empty where one before it was."""
    absent: tuple[str, ...] = ()
    """Files and manifests that are missing."""
    changed: tuple[str, ...] = ()
    """What is wrong with tables' files that are there and are not as they were written."""
    costs: Costs = field(default_factory=Costs)
    """What all its stages cost."""
    people: dict[str, Cell] = field(default_factory=dict)
    """What people's labels say of its judges."""
    standing: str = ""
    """`champion`, or by whom it was promoted by hand; empty for the others."""

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of all its stages."""
        return {k: v for m in self.stages.values() for k, v in m.metrics.items()}


def gather(root: Path, pipeline: Pipeline, results: Mapping[str, Election]) -> list[Facts]:
    """Facts of every base and round that has at least one manifest, parents first."""
    return [facts for facts in every_block(root, pipeline, results) if facts.stages]


def every_block(root: Path, pipeline: Pipeline, results: Mapping[str, Election]) -> list[Facts]:
    """Facts of every base and round, parents first."""
    stale, absent = stale_stages(root, pipeline), absent_files(root, pipeline)
    standing = {election.champion: "champion" for election in results.values()}
    people = by_round(root)
    if choice := decision(root):
        standing[choice.round] = f"by {choice.by}"
    return [
        replace(
            facts_of(root, block, pipeline.prices),
            stale=stale.get(name, {}),
            absent=(*absent.get(name, ()), *_lost(root, name)),
            changed=tuple(_changed(root, name)),
            standing=standing.get(name, ""),
            people={label: _percent(asdict(measure)) for label, measure in people.get(name, {}).items()},
        )
        for name, block in pipeline.blocks.items()
    ]


def _lost(root: Path, name: str) -> list[str]:
    """Manifests whose stage has run, for its metrics are there."""
    place = store.round_folder(root, name) / "manifests"
    return [str(place / f"{stage}.json") for stage in store.lost_manifests(root, name, store.manifests(root, name))]


def _changed(root: Path, name: str) -> Iterator[str]:
    """What `flywheel verify` would find in the bytes of a round's tables. Files that have not changed since they were last
    read are not read again; those of models are left to `verify`.
    """
    place, made = store.round_folder(root, name), store.manifests(root, name).values()
    tables = [(place / out, output) for m in made for out, output in m.outputs.items() if output.kind == "table"]
    return (text for text in remembered.damages(root, tables) if store.CHANGED in text)


def facts_of(root: Path, block: Block, prices: Prices | None = None) -> Facts:
    """Facts of one base or round, without its staleness and standing."""
    manifests = store.manifests(root, block.name)
    in_order = {s.name: manifests[s.name] for s in stages_of(block) if s.name in manifests}
    measures = {(r["name"], r["level"]): _percent(r) for r in _rows(root, block.name, "measures")}
    decisions = {r["gate"]: (r["passed"], r["reason"] or "") for r in _rows(root, block.name, "decisions")}
    model = model_digest(root, block.name, manifests)
    return Facts(block, in_order, measures, decisions, model, costs=of(in_order.values(), prices))


def _rows(root: Path, name: str, table: str) -> Iterable[dict[str, object]]:
    return store.read(root, name, table).iter_rows(named=True) if store.has(root, name, table) else ()


def _percent(row: dict[str, object]) -> Cell:
    value, low, high = (None if row[k] is None else 100 * row[k] for k in ("value", "low", "high"))  # type: ignore[operator]
    return Cell(UNKNOWN if value is None else f"{value:.1f}", low, high, value=value)
