"""Runs one stage of one round: inputs checked, function called, outputs written and committed with their manifest.

`dvc repro`, the CLI and the flows all come here, each stage in a process of its own. A stage has no effect outside its
outs: DVC may restore them from its run cache without running anything.

This file is shared by all stages: an edit of it does not make stages stale.
"""

import json
import shutil
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import polars as pl
import psutil

from tasks import pipeline, store
from tasks.engines import Metered
from tasks.errors import StoreError, UnknownName
from tasks.params import Block, load_params, stages_of
from tasks.stage import Input, Panel, Result, Stage, Strategy, content_id
from tasks.tables import TABLES, frame

PIECE = 2**28
"""Bytes of responses that are worked off at once where prompts can be taken each for itself."""
MOST = 2**20
"""Responses that are worked off at once, however small they are."""
DRAWN = 64
"""Ids looked at for each piece."""
STRETCHES = 8
"""Places of a table whose rows are measured."""
VERSIONS = ("flywheel", "torch", "transformers", "trl", "vllm", "polars", "pyarrow")


def run_stage(root: Path, name: str, stage_name: str) -> store.Manifest:
    """Runs a stage of a base or round, and gives its manifest.

    Raises:
        FlywheelError: in all its kinds; what was already made stays.
    """
    started = datetime.now(UTC)
    startup = time.time() - psutil.Process().create_time()
    params = load_params(root)
    block = params.block(name)
    stage = _stage(block, stage_name)
    meter = Metered(block.engine)
    with store.writing(root, name, stage.name) as draft:
        clock = time.perf_counter()
        code = {str(p.relative_to(root)): store.sha256(p) for p in pipeline.code_files(root, stage, block)}
        arguments, digests = _arguments(root, stage, block, draft, code)
        if "engine" in arguments:
            arguments["engine"] = meter
        result = _as_result(stage, _called(stage, arguments))
        ran, asked = time.perf_counter() - clock, meter.spent()
        metrics = _write(stage, draft, result)
        took, trains = time.perf_counter() - clock, "work" in arguments
        seconds = {
            "start": startup + meter.total("load_seconds"),
            "model": ran - meter.total("load_seconds") if trains else meter.total("seconds"),
            "run": 0.0 if trains else ran - asked,
            "write": took - ran - (meter.spent() - asked),
        }
        manifest = store.Manifest(
            round=name,
            stage=stage.name,
            outputs=draft.outputs,
            inputs=digests,
            params={k: block.raw.get(k) for k in pipeline.param_keys(stage)},
            code=code,
            seed=block.seed,
            versions=_versions(),
            metrics=metrics,
            tokens={k: int(meter.total(k)) for k in ("requests", "prompt_tokens", "completion_tokens")},
            seconds={name: round(some, 3) for name, some in seconds.items()},
            started=started.isoformat(timespec="milliseconds"),
            finished=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )
        _unchanged(root, stage, block, digests)
        draft.commit(manifest)
        if "work" in arguments:
            shutil.rmtree(arguments["work"])
    return manifest


def _stage(block: Block, name: str) -> Stage:
    own = {s.name: s for s in stages_of(block)}
    if name not in own:
        raise UnknownName("stage", name, own, f"{block.name} ({'a base' if block.is_base else 'a round'})")
    return own[name]


def _arguments(
    root: Path, stage: Stage, block: Block, draft: store.Draft, code: dict[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """What the stage's function is called with, and the digests of the inputs among it."""
    scratch = root / "data" / "cache"
    context = {
        "params": block.stages[stage.name],
        "engine": block.engine,
        "domain": block.domain,
        "seed": block.seed,
        "cache": scratch / "requests",
    }
    arguments = {f: draft.folder(f) for f in stage.folders}
    digests = {}
    for need in stage.inputs:
        arguments[need.argument], digests[need.argument] = _read(root, need, block)
    context["work"] = scratch / "work" / f"{block.name}-{stage.name}-{_identity(stage, block, digests, code)}"
    arguments |= {k: v for k, v in context.items() if k in stage.context}
    for key in {"cache", "work"} & stage.context:
        arguments[key].mkdir(parents=True, exist_ok=True)
    return arguments, digests


def _identity(stage: Stage, block: Block, digests: dict[str, str], code: dict[str, str]) -> str:
    """What a checkpoint belongs to: one made for other inputs, params or code must not be resumed from."""
    asked = {k: block.raw.get(k) for k in pipeline.param_keys(stage)}
    return content_id(json.dumps([asked, digests, code], sort_keys=True))


def _owner(need: Input, block: Block) -> str:
    return str(block.raw[need.ancestor]) if need.ancestor else block.name


def _read(root: Path, need: Input, block: Block) -> tuple[Any, str]:
    owner = _owner(need, block)
    if need.name in TABLES:
        return store.scan(root, owner, need.name)
    from tasks.models import resolve

    place, digest = store.folder(root, owner, need.name)
    resolve(place)  # what a pointer points to is checked too; the place itself is given, so that an adapter can name it
    return place, digest


def _unchanged(root: Path, stage: Stage, block: Block, digests: dict[str, str]) -> None:
    """Inputs were checked before they were read, and frames are read late: were they replaced in between?"""
    for need in stage.inputs:
        owner = _owner(need, block)
        if store.find(root, owner, need.name)[1].digest != digests[need.argument]:
            raise StoreError(
                f"{stage.name}@{block.name}: {need.name} of {owner} was replaced while it was being read; "
                "run it again. Nothing was written; the old version stays"
            )


def _called(stage: Stage, arguments: dict[str, Any]) -> Any:
    """What the stage's function gives; of a large round whose prompts it takes each for itself, piece by piece."""
    params = arguments.get("params")
    ranges = _ranges(arguments["responses"]) if isinstance(params, Strategy | Panel) and params.apart() else []
    if len(ranges) < 2:
        return stage.function(**arguments)
    [table] = stage.tables
    return Result({table.name: (stage.function(**_within(arguments, *some)) for some in ranges)})


def _ranges(responses: pl.LazyFrame) -> list[tuple[str | None, str | None]]:
    """Ranges of prompt ids, from (or all below) and to (or all above), with at most about `PIECE` bytes of responses each,
    as the longest of some stretches of the table are.

    A table that is sorted by prompt, as `generate` writes it, is parted exactly; of any other one some ids are drawn.
    """
    count = responses.select(pl.len()).collect().item()
    if count <= MOST // DRAWN:
        return []
    size = max(1, MOST // DRAWN // STRETCHES)
    some = pl.collect_all([responses.slice(n * (count - size) // (STRETCHES - 1), size) for n in range(STRETCHES)])
    piece = min(MOST, max(DRAWN, PIECE * size // max(1, *(s.estimated_size() for s in some))))
    if count <= piece:
        return []
    drawn = responses.select("prompt_id").with_row_index("row").filter(pl.col("row") % (piece // DRAWN) == 0)
    ids = drawn.collect(engine="streaming")["prompt_id"].drop_nulls().sort()
    ends = ids.gather_every(DRAWN)[1:].unique(maintain_order=True).to_list()
    return list(zip([None, *ends], [*ends, None], strict=True))


def _within(arguments: dict[str, Any], low: str | None, high: str | None) -> dict[str, Any]:
    """The arguments, their tables with the rows of the prompts in a range alone."""

    def rows(frame: pl.LazyFrame) -> pl.LazyFrame:
        prompt = pl.col("prompt_id" if "prompt_id" in frame.collect_schema() else "id")
        above = [prompt >= low] if low else []
        below = [(prompt < high) if low else (prompt < high).fill_null(True)] if high else []
        return frame.filter(*above, *below)

    return {k: rows(v) if isinstance(v, pl.LazyFrame) else v for k, v in arguments.items()}


def _as_result(stage: Stage, given: Any) -> Result:
    if isinstance(given, Result):
        return given
    if given is None:
        return Result({})
    return Result({stage.tables[0].name: given})


def _write(stage: Stage, draft: store.Draft, result: Result) -> dict[str, float]:
    """Writes all outputs of a stage into the draft; gives the metrics of all of them."""
    metrics: dict[str, float] = {}
    for name in pipeline.written(stage):
        if name in stage.folders:
            draft.describe_folder(name)
        else:
            table = TABLES[name]
            metrics |= draft.table(table, result.frames[name] if name in result.frames else frame(table))
    metrics |= result.metrics
    draft.file(f"metrics/{stage.name}.json", json.dumps(metrics, indent=1, sort_keys=True))
    for name in stage.plots:
        draft.file(f"plots/{name}.csv", result.plots.get(name, pl.DataFrame()).write_csv())
    return metrics


def _versions() -> dict[str, str]:
    found = {}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found
