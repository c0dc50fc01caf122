"""Makes the plan of every stage of every base and round: `data/plan/<round>/<stage>.json`.

The DVC stage `plan` runs this. Every other stage depends on its own plan and on its inputs, and on nothing else.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tasks.core import labels
from tasks.core.models import file_digest
from tasks.core.plan import FOLDER, SOURCES, TRANSPORT, Plan
from tasks.core.pointers import CONFIGURED
from tasks.core.stage import Input, Stage, Strategy
from tasks.core.tables import TABLES, Table
from tasks.engines import Engine
from tasks.project import recipes
from tasks.project.blocks import EXAM, Block, Pipeline, paths_of, plugin_values, reads_labels, stages_of
from tasks.project.closure import Modules
from tasks.project.params import FILE, load_params
from tasks.project.pipeline import is_available, needed_inputs, written
from tasks.where.here import Here

Plans = dict[tuple[str, str], Plan]
"""By (base or round, stage)."""


def plans(root: Path, pipeline: Pipeline) -> Plans:
    """The plan of every stage. Each module is looked up once for all of them."""
    modules, tables = Modules(root), {name: table_digest(table) for name, table in TABLES.items()}
    every = {
        (block.name, stage.name): plan(root, pipeline, block, stage, modules, tables)
        for block in pipeline.blocks.values()
        for stage in stages_of(block)
    }
    modules.keep()
    return every


def plan(
    root: Path,
    pipeline: Pipeline,
    block: Block,
    stage: Stage,
    code: Modules | None = None,
    tables: Mapping[str, str] | None = None,
) -> Plan:
    """The plan of a stage of a base or round. `code` has what was looked up of the modules for other stages, `tables` the digests
    of the definitions of tables.
    """
    settings, needed = block.stages[stage.name], needed_inputs(pipeline, block, stage)
    judges = pipeline.judges_of(block) if "judges" in stage.context else {}
    strategies = [*settings.members.values(), *judges.values()]
    opened = _opened_models(stage, strategies)
    engine = block.exam_engine if stage.name in EXAM else block.engine
    roster = {n: pipeline.roster[n] for n in sorted(opened) if n in pipeline.roster}
    asks = bool(set(stage.outputs) & {table for _, _, s in block.strategies() for table in s.reads_logprobs_of()})
    engines = [
        *({engine.strategy_name()} if engine and opened - set(roster) else ()),
        *(m.engine.strategy_name() for m in roster.values()),
    ]
    modules = [
        f"tasks.{stage.name}",
        *(type(s).__module__ for s in strategies),
        *((type(block.domain).__module__,) if "domain" in stage.context else ()),
        *(f"tasks.engines.{name}" for name in engines),
    ]
    return Plan(
        round=block.name,
        stage=stage.name,
        seed=_seed(pipeline, block, stage),
        ancestors=_ancestors(needed, block),
        reads=sorted(i.argument for i in needed if i.conditional and is_available(i, block)),
        domain=plugin_values(block.domain) if "domain" in stage.context else None,
        engine=_engine_values(engine, asks) if engine and opened - set(roster) else None,
        members={n: plugin_values(s) for n, s in sorted(settings.members.items())},
        options=settings.options.model_dump(mode="json") if settings.options else {},
        judges={n: plugin_values(s) for n, s in sorted(judges.items())},
        models={
            n: m.model_dump(mode="json", exclude={"engine"}) | {"engine": _engine_values(m.engine, asks)}
            for n, m in roster.items()
        },
        code=(code or Modules(root)).closure(modules),
        files=dict(_files(root, block, stage, judges)),
        tables={t.name: tables[t.name] if tables else table_digest(t) for t in stage_tables(stage)},
    )


def _engine_values(engine: Engine, asks: bool) -> dict[str, Any]:
    """An engine's values in a plan. One that leaves it open asks for log-probabilities where a strategy of the round reads those
    of the answers that the stage writes.
    """
    told = engine.model_copy(update={"logprobs": asks}) if getattr(engine, "logprobs", True) is None else engine
    return plugin_values(told, engine.transport)


def _opened_models(stage: Stage, strategies: Iterable[Strategy]) -> set[str]:
    """Models that strategies open through an engine; `train` only reads folders."""
    if "models" not in stage.context:
        return set()
    return {name for s in strategies if s.needs for name in s.opened_models()}


def _ancestors(needed: set[Input], block: Block) -> dict[str, str]:
    kinds = sorted({i.ancestor for i in needed if i.ancestor})
    return {k: name for k in kinds if (name := block.ancestor(k))}


def _seed(pipeline: Pipeline, block: Block, stage: Stage) -> int | None:
    """The round's seed; that of its base in the exam, whose draws no round chooses."""
    if "seed" not in stage.context:
        return None
    return pipeline.block(block.base).seed if stage.name in EXAM else block.seed


def _files(root: Path, block: Block, stage: Stage, judges: Mapping[str, Strategy]) -> Iterator[tuple[str, str]]:
    """sha256 of the files that a stage's strategies and domain read."""
    audited = [judge for judge in judges.values() if getattr(judge, "auditable", True)]  # the exam asks no others
    readers = [*block.stages[stage.name].members.values(), *audited] if stage.name != "base" else []
    readers += [block.domain] if "domain" in stage.context else []
    for path in sorted({path for reader in readers for _, path in paths_of(reader)}):
        files = (
            sorted((root / path).glob(f"*{labels.SUFFIX}"))
            if reads_labels(path) and (root / path).is_dir()
            else [root / path]
        )
        for file in files:
            yield file.relative_to(root).as_posix(), file_digest(file) if file.is_file() else "absent"


def stage_tables(stage: Stage) -> list[Table]:
    """The tables that a stage writes."""
    return [TABLES[name] for name in written(stage) if name in TABLES]


def table_digest(table: Table) -> str:
    """sha256 of a table's definition: columns, key, checks, metrics."""
    columns = [(f.name, str(f.type)) for f in table.schema]
    return hashlib.sha256(json.dumps([columns, table.key, table.checks, table.metrics]).encode()).hexdigest()


def transports(pipeline: Pipeline) -> dict[str, dict[str, Any]]:
    """Connection settings of engines (such as time-outs and keys' names), by block or model of the roster, and where the pieces of
    a block's stages run, as `NAME.where`, if not in the stages' own processes. They decide no answer, so
    they are stored beside the plans: the next round's weights can be added to a server without making a stage stale.
    """
    engines = {name: block.engine for name, block in pipeline.blocks.items()}
    engines |= {f"models.{name}": model.engine for name, model in pipeline.roster.items()}
    settings = {k: e.model_dump(mode="json", include=set(e.transport)) for k, e in engines.items() if e.transport}
    placed = {n: b.where for n, b in pipeline.blocks.items() if not isinstance(b.where, Here)}
    return settings | {f"{n}.where": plugin_values(where) for n, where in placed.items()}


def write(root: Path) -> int:
    """Writes the plans that changed, atomically, and removes those of removed rounds; returns how many it wrote.

    Raises:
        ParamsError: when params.yaml or a recipe is invalid; nothing is written then.
    """
    pipeline = load_params(root)
    current = plans(root, pipeline)
    count = sum(_write(root / FOLDER / name / f"{stage}.json", plan.text) for (name, stage), plan in current.items())
    sources = {f: file_digest(root / f) for f in (FILE, *(f"{recipes.FOLDER}/{n}.yaml" for n in recipes.names(root)))}
    for path, values in ((TRANSPORT, transports(pipeline)), (SOURCES, sources)):
        _write(root / path, json.dumps(values, indent=1, sort_keys=True) + "\n")
    if pipeline.data:
        _write(root / CONFIGURED, json.dumps({"url": pipeline.data}) + "\n")
    else:
        (root / CONFIGURED).unlink(missing_ok=True)
    for path in (root / FOLDER).glob("*/*.json"):
        if (path.parent.name, path.stem) not in current:
            path.unlink()
            if not any(path.parent.iterdir()):
                path.parent.rmdir()
    return count


def _write(path: Path, text: str) -> bool:
    if path.is_file() and path.read_bytes() == text.encode():
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)
    return True
