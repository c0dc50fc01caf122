"""What the table of the rounds is made of: manifests, measures, decisions and costs of each base and round."""

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from tasks.core import pointers, remembered, store
from tasks.core.champion import Election
from tasks.core.frames import frame
from tasks.core.tables import TABLES
from tasks.project.champion import decision, model_digest
from tasks.project.costs import Costs, Prices, of
from tasks.project.freshness import absent_files, stale_stages
from tasks.project.params import Block, Pipeline, stages_of
from tasks.project.plan import Plans
from tasks.views._labels import by_round

UNKNOWN = "–"
FILE = "file"
"""Column with the file of a row."""


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


def gather(
    root: Path,
    pipeline: Pipeline,
    results: Mapping[str, Election],
    current: Plans | None = None,
    measured: Container[str] | None = None,
) -> list[Facts]:
    """Facts of every base and round that has at least one manifest, parents first; as `every_block`."""
    return [facts for facts in every_block(root, pipeline, results, current, measured) if facts.stages]


def every_block(
    root: Path,
    pipeline: Pipeline,
    results: Mapping[str, Election],
    current: Plans | None = None,
    measured: Container[str] | None = None,
    measures: Collection[str] | None = None,
) -> list[Facts]:
    """Facts of every base and round, parents first. `current` are today's plans, where the caller has them. Of the blocks that
    are not among `measured` no table is read: they have no measures, decisions and labels. With `measures` no others are read,
    and these over all levels alone.
    """
    stale, absent = stale_stages(root, pipeline, current), absent_files(root, pipeline)
    standing = {election.champion: "champion" for election in results.values()}
    people = by_round(root)
    if choice := decision(root):
        standing[choice.round] = f"by {choice.by}"
    blocks = pipeline.blocks
    read = [block for name, block in blocks.items() if measured is None or name in measured]
    facts = {name: Facts(block, _in_order(root, block)) for name, block in blocks.items()}
    facts |= {f.block.name: f for f in facts_of_all(root, read, pipeline.prices, facts, measures)}
    changed = _changed(root, facts.values())
    return [
        replace(
            each,
            stale=stale.get(name, {}),
            absent=(*_lost(root, name, each.stages), *absent.get(name, ())),
            changed=tuple(changed.get(name, ())),
            standing=standing.get(name, ""),
            people={label: _percent(asdict(measure)) for label, measure in people.get(name, {}).items()},
        )
        for name, each in facts.items()
    ]


def _in_order(root: Path, block: Block) -> dict[str, store.Manifest]:
    manifests = store.manifests(root, block.name)
    return {s.name: manifests[s.name] for s in stages_of(block) if s.name in manifests}


def _lost(root: Path, name: str, made: Iterable[str]) -> list[str]:
    """Manifests whose stage has run, for its metrics are there."""
    place = store.round_folder(root, name) / "manifests"
    return [str(place / f"{stage}.json") for stage in store.lost_manifests(root, name, made)]


def _changed(root: Path, every: Iterable[Facts]) -> dict[str, list[str]]:
    """What `flywheel verify` would find in the bytes of tables, by base or round. Files that have not changed since they were
    last read are not read again; those of models are left to `verify`.
    """
    tables = [
        (store.round_folder(root, facts.block.name) / out, output)
        for facts in every
        for m in facts.stages.values()
        for out, output in m.outputs.items()
        if output.kind == "table"
    ]
    found: dict[str, list[str]] = {}
    for path, text in remembered.damages(root, tables):
        if store.CHANGED in text:
            found.setdefault(store.round_of(path), []).append(text)
    return found


def facts_of(root: Path, block: Block, prices: Prices | None = None) -> Facts:
    """Facts of one base or round, without its staleness and standing."""
    return facts_of_all(root, [block], prices, {block.name: Facts(block, _in_order(root, block))})[0]


def facts_of_all(
    root: Path,
    blocks: Sequence[Block],
    prices: Prices | None,
    known: Mapping[str, Facts],
    measured: Collection[str] | None = None,
) -> list[Facts]:
    """Facts of some bases and rounds, of which manifests are known, without staleness and standing. Their tables are read
    together.
    """
    names = [block.name for block in blocks]
    where = {} if measured is None else {"measures": pl.col("name").is_in(list(measured)) & pl.col("level").is_null()}
    measures, decisions = store.steady(
        root, names, lambda: [_rows(root, names, t, where.get(t)) for t in ("measures", "decisions")]
    )
    return [
        replace(
            known[name],
            measures={(r["name"], r["level"]): _percent(r) for r in measures.get(name, ())},
            decisions={r["gate"]: (r["passed"], r["reason"] or "") for r in decisions.get(name, ())},
            model=model_digest(root, name, known[name].stages),
            costs=of(known[name].stages.values(), prices),
        )
        for name in names
    ]


def _rows(
    root: Path, names: Iterable[str], table: str, where: pl.Expr | None = None
) -> dict[str, list[dict[str, Any]]]:
    """The rows of a checked table of each round that has it, in their order; those alone for which `where` holds."""
    manifests = {name: store.manifests(root, name) for name in names}
    outputs = ((n, m.outputs[table]) for n, made in manifests.items() for m in made.values() if table in m.outputs)
    found = [(name, store.round_folder(root, name) / table, output) for name, output in outputs]
    remembered.verify(root, [(place, output) for _, place, output in found])
    rounds = {path: name for name, place, output in found for path in store.paths(place, output)}
    if not rounds:
        return {}
    schema = frame(TABLES[table]).collect_schema()  # the table of an older round may lack a column
    every = pointers.scan(
        [*rounds], schema=schema, missing_columns="insert", extra_columns="ignore", include_file_paths=FILE
    )
    names_by_file = {str(path): name for path, name in rounds.items()}
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in every.filter(True if where is None else where).collect().iter_rows(named=True):
        rows.setdefault(names_by_file[row[FILE]], []).append(row)
    return rows


def _percent(row: dict[str, object]) -> Cell:
    value, low, high = (None if row[k] is None else 100 * row[k] for k in ("value", "low", "high"))  # type: ignore[operator]
    return Cell(UNKNOWN if value is None else f"{value:.1f}", low, high, value=value)
