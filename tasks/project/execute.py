"""Runs one stage of one round: checks inputs, calls its function, writes outputs, commits them with a manifest.

`dvc repro`, the CLI and the flows all use this, each stage in its own process. The stage's plan holds all parameters, so
params.yaml is not read. A stage has no effect outside its outs, because DVC may restore them from its run cache.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import polars as pl
import psutil
from pyarrow import ArrowException
from pydantic import ValidationError

from tasks.core import devices, pointers, store
from tasks.core.cache import JOURNAL
from tasks.core.errors import EngineError, FlywheelError, StoreError, UnknownName
from tasks.core.frames import frame
from tasks.core.ids import content_id
from tasks.core.plan import TRANSPORT, Plan, read_transport
from tasks.core.plugin import TASKS, load
from tasks.core.roster import SERVED, Models, Source
from tasks.core.stage import Input, Result, Stage, Strategy
from tasks.core.tables import TABLES
from tasks.project import health, pieces
from tasks.project.blocks import EXAM
from tasks.project.closure import module_file
from tasks.project.driver import Driver
from tasks.project.headlines import metrics_text
from tasks.where import Placement

VERSIONS = ("flywheel", "torch", "transformers", "trl", "vllm", "polars", "pyarrow", "lm_eval")
COUNTS = ("requests", "prompt_tokens", "completion_tokens")
"""Of a model's meter, what manifests keep."""


def run_stage(root: Path, name: str, stage_name: str) -> store.Manifest:
    """Runs a stage of a base or round according to its plan; returns its manifest.

    Raises:
        FlywheelError: any subclass. The old version stays.
    """
    started = datetime.now(UTC)
    startup = time.time() - psutil.Process().create_time()
    stage = _stage(stage_name)
    plan = _plan(root, name, stage_name)
    _check_code(root, plan)
    with store.writing(root, name, stage.name) as draft:
        clock, earlier = time.perf_counter(), devices.held()
        inputs = {i.argument: i for i in stage.inputs if _is_read(i, plan) and _owner(i, plan)}
        digests = {a: store.find(root, str(_owner(i, plan)), i.name)[1].digest for a, i in inputs.items()}
        if taken := draft.restored(plan, digests):
            return taken
        with closing(_models(root, stage, plan)) as models:
            bounds = _pieces(root, stage, plan, inputs, models)
            read = partial(_unread if bounds else _read, root)
            arguments = _arguments(root, stage, plan, inputs, draft, digests, models, read)
            driver = (
                Driver(root, stage, plan, digests, bounds, _where(root, plan), draft.bucket, models, _versions())
                if bounds
                else None
            )
            result = _in_pieces(driver, arguments) if driver else _as_result(stage, _call(stage, arguments))
            run_seconds, model_seconds = time.perf_counter() - clock, models.spent()
            metrics = _write(root, name, stage, draft, result)
            _check_models(models, driver)
            warnings = [*result.warnings, *_unsent(models), *health.warnings(stage.name, _written(draft), arguments)]
        total_seconds, trains = time.perf_counter() - clock, "work" in arguments
        seconds = {
            "start": startup + models.total("load_seconds"),
            "model": run_seconds - models.total("load_seconds") if trains else models.total("seconds"),
            "run": 0.0 if trains else run_seconds - model_seconds,
            "write": total_seconds - run_seconds - (models.spent() - model_seconds),
        }
        gpus = _held_since(earlier)
        kinds = devices.kinds(gpus)
        if driver:
            own = total_seconds - run_seconds
            seconds |= {"run": driver.done.seconds["run"], "write": driver.done.seconds["write"] + own}
            gpus, kinds = driver.done.gpus, list(driver.done.kinds.values())
        manifest = store.Manifest(
            round=name,
            stage=stage.name,
            plan=plan,
            outputs=draft.outputs,
            inputs=digests,
            versions=_versions(),
            metrics=metrics,
            warnings=warnings,
            tokens={k: int(models.total(k)) for k in COUNTS},
            usage={name: {k: getattr(meter, k) for k in COUNTS} for name, meter in sorted(models.meters.items())},
            seconds={part: round(value, 3) for part, value in seconds.items()},
            gpus=kinds,
            gpu_seconds=round(sum(gpus.values()), 3),
            started=started.isoformat(timespec="milliseconds"),
            finished=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )
        _check_unchanged(root, plan, inputs, digests)
        manifest = draft.commit(manifest)
        if driver:
            driver.clear()
        if trains:
            shutil.rmtree(arguments["work"])
    return manifest


def _stage(name: str) -> Stage:
    if module_file(Path(__file__).parents[2], f"tasks.{name}") is None or not isinstance(
        stage := getattr(import_module(f"tasks.{name}"), name, None), Stage
    ):
        from tasks.core.stage import stages

        raise UnknownName("stage", name, stages())
    return stage


def _plan(root: Path, name: str, stage: str) -> Plan:
    try:
        return Plan.read(root, name, stage)
    except StoreError:
        from tasks.project.params import load_params

        load_params(root).block(name)  # raises UnknownName for a wrong name
        raise


def _check_code(root: Path, plan: Plan) -> None:
    """The code that runs must be what the plan says, or the manifest would not tell the truth."""
    stage = f"{plan.stage}@{plan.round}"
    for file, digest in plan.code.items():
        if not (root / file).is_file() or store.sha256(root / file) != digest:
            raise StoreError(f"{stage}: {file} was edited since the plan was made; `flywheel plan`, then run it again")
        if store.sha256(TASKS.parent / file) != digest:
            raise StoreError(
                f"{stage}: the code that runs is not this project's: {TASKS.parent / file} is not {file} as it is here; "
                "install this project (`pip install -e .`), or set PYTHONPATH to it"
            )


def _is_read(need: Input, plan: Plan) -> bool:
    """Whether the stage reads an input, always or by its plan."""
    return not need.conditional or need.argument in plan.reads


def _owner(need: Input, plan: Plan) -> str | None:
    """The base or round that an input belongs to; None where this one has no such ancestor."""
    if need.ancestor is None:
        return plan.round
    owner = plan.ancestors.get(need.ancestor)
    return None if owner == plan.round else owner  # a base is its own base


def _models(root: Path, stage: Stage, plan: Plan, journal: bool = False) -> Models:
    """The models that the stage may open: its own, its ancestors' and the roster's. With `journal` those that are loaded here
    keep their answers in the journal of a piece.
    """
    transport = read_transport(root)
    engine_owner = plan.ancestors.get("base", plan.round) if stage.name in EXAM else plan.round
    with _checked(root / TRANSPORT):
        engine = plan.engine and _plugin("engines", plan.engine | transport.get(engine_owner, {}))
        roster = {n: _roster_source(values, transport.get(f"models.{n}", {})) for n, values in plan.models.items()}
    opened = {i.ancestor or "model": i for i in stage.inputs if i.opened and _is_read(i, plan)}
    owners = {k: plan.ancestors.get(k) if i.ancestor else plan.round for k, i in opened.items()}
    sources = {k: Source(engine, partial(model_folder, root, owner)) for k, owner in owners.items() if owner}
    budget = _budget(root, stage, plan, engine)
    return Models(sources | roster, root / "data/cache/requests", budget, JOURNAL if journal else None)


@contextmanager
def _checked(path: Path) -> Iterator[None]:
    """Says of values that an engine does not take which file they stand in."""
    try:
        yield
    except ValidationError as error:
        why = error.errors()[0]
        key = ".".join(map(str, why["loc"]))
        raise StoreError(f"{path}: {key}: {why['msg']}; `flywheel plan` makes it again") from error


def _budget(root: Path, stage: Stage, plan: Plan, engine: Any) -> int | None:
    """Tokens that the stage may generate: what the stages before it have left of the round's budget; None without one."""
    budget: int | None = engine and engine.token_budget
    if budget is None or stage.name in EXAM:
        return None
    from tasks.core.stage import stages

    before = list(stages())[: list(stages()).index(stage.name)]
    spent = (m.tokens.get("completion_tokens", 0) for n, m in store.manifests(root, plan.round).items() if n in before)
    return max(0, budget - sum(spent))


def model_folder(root: Path, owner: str) -> Path:
    """A round's model folder, checked. Not resolved, so that an adapter can name it as its base."""
    from tasks.core.models import resolve

    folder, _ = store.folder(root, owner, "model")
    resolve(folder)  # checks a pointer's target
    return folder


def _roster_source(values: Mapping[str, Any], transport: Mapping[str, Any]) -> Source:
    from tasks.project.blocks import RosterModel

    model = RosterModel.model_validate({**values, "engine": {**values["engine"], **transport}})
    return Source(model.engine, model.folder if model.path else lambda: SERVED)


def _plugin(package: str, values: Mapping[str, Any]) -> Any:
    """A plug-in from its values in a plan."""
    return load(package, values["strategy"])(**{k: v for k, v in values.items() if k != "strategy"})


def _arguments(
    root: Path,
    stage: Stage,
    plan: Plan,
    inputs: dict[str, Input],
    draft: store.Draft,
    digests: dict[str, str],
    models: Models,
    read: Callable[[Input, str], Any],
) -> dict[str, Any]:
    """Arguments of the stage's function; `read` gives an input of a base or round."""
    members: dict[str, Strategy] = {n: _plugin(stage.name, v) for n, v in plan.members.items()}
    context: dict[str, Callable[[], Any]] = {
        "members": lambda: members,
        "strategy": lambda: next(iter(members.values())),
        "options": lambda: stage.options and stage.options(**plan.options),
        "judges": lambda: {n: _plugin("judge", v) for n, v in plan.judges.items()},
        "models": lambda: models,
        "domain": lambda: _plugin("domains", plan.domain or {}),
        "seed": lambda: plan.seed,
        "work": lambda: _work(root, plan, digests),
        "overviews": lambda: None,
        "where": lambda: _where(root, plan),
    }
    arguments = {f: draft.folder(f) for f in stage.folders}
    arguments |= {i.argument: None for i in stage.inputs if not i.opened}
    arguments |= {a: read(i, str(_owner(i, plan))) for a, i in inputs.items() if not i.opened}
    return arguments | {k: make() for k, make in context.items() if k in stage.context}


def _work(root: Path, plan: Plan, digests: dict[str, str]) -> Path:
    """Scratch folder for checkpoints, one per plan and inputs, so that no other run's checkpoints are resumed."""
    identity = content_id(plan.digest, json.dumps(digests, sort_keys=True))
    work = root / "data/cache/work" / f"{plan.round}-{plan.stage}-{identity}"
    work.mkdir(parents=True, exist_ok=True)
    return work


def _read(root: Path, need: Input, owner: str, keep: Callable[[store.Part], bool] | None = None) -> Any:
    """An input of a base or round, checked; of a table only the parts that `keep` wants."""
    return store.scan(root, owner, need.name, keep)[0] if need.name in TABLES else model_folder(root, owner)


def _unread(root: Path, need: Input, owner: str) -> Any:
    """An input that others read and check, piece by piece."""
    if need.name not in TABLES:
        return model_folder(root, owner)
    return pointers.scan(store.paths(*store.find(root, owner, need.name)))


def _pieces(root: Path, stage: Stage, plan: Plan, inputs: dict[str, Input], models: Models) -> list[pieces.Piece]:
    """The pieces of a large stage. None with a budget of tokens: which requests it has left over depends on their order."""
    argument = pieces.goes_by(stage)
    if argument not in inputs or not models.is_unlimited:
        return []
    place, output = store.find(root, str(_owner(inputs[argument], plan)), argument)
    strategies = [_plugin(stage.name, values) for values in plan.members.values()]
    try:
        return pieces.cut(stage, strategies, store.paths(place, output))
    except (ArrowException, OSError):
        store.verify(place, output)  # names the file that is damaged
        raise


def _where(root: Path, plan: Plan) -> Placement:
    """Where the round's pieces run."""
    with _checked(root / TRANSPORT):
        return _plugin("where", read_transport(root).get(f"{plan.round}.where", {"strategy": "here"}))  # type: ignore[no-any-return]


def _check_unchanged(root: Path, plan: Plan, inputs: dict[str, Input], digests: dict[str, str]) -> None:
    """Frames are lazy: inputs may have been replaced after they were checked."""
    for argument, need in inputs.items():
        owner = str(_owner(need, plan))
        if store.find(root, owner, need.name)[1].digest != digests[argument]:
            raise StoreError(
                f"{plan.stage}@{plan.round}: {need.name} of {owner} was replaced while it was being read; "
                "run it again. Nothing was written; the old version stays"
            )


def _in_pieces(driver: Driver, arguments: dict[str, Any]) -> Result:
    """What workers make of the pieces of a large table."""
    done = driver.run(pieces.by_member(arguments))
    if models := arguments.get("models"):
        models.meters.update(done.meters)
    table = store.Checked(done.output, driver.bring, driver.forget_lost)
    return Result({driver.stage.tables[0].name: table}, warnings=done.warnings)


def _call(stage: Stage, arguments: dict[str, Any]) -> Any:
    """Calls the stage's function. Where a large table is not left to workers, because a budget of tokens counts requests in their
    order, it does so piece by piece, if the strategies can.
    """
    cut = pieces.pieces(stage, arguments)
    if len(cut) < 2:
        return stage.function(**arguments)
    [table] = stage.tables
    return Result({table.name: pieces.passes(stage, arguments, cut)})


def _as_result(stage: Stage, result: Any) -> Result:
    if isinstance(result, Result):
        return result
    return Result({}) if result is None else Result({stage.tables[0].name: result})


def _write(root: Path, owner: str, stage: Stage, draft: store.Draft, result: Result) -> dict[str, float]:
    """Writes all outputs of a stage into the draft; returns their metrics."""
    from tasks.project.pipeline import written

    metrics: dict[str, float] = {}
    for name in written(stage):
        if name in stage.folders:
            draft.describe_folder(name)
        else:
            table = TABLES[name]
            metrics |= draft.table(table, result.frames[name] if name in result.frames else frame(table))
    metrics |= result.metrics
    draft.file(f"metrics/{stage.name}.json", metrics_text(root, owner, stage.name, metrics))
    for name in stage.plots:
        draft.file(f"plots/{name}.csv", result.plots.get(name, pl.DataFrame()).write_csv())
    return metrics


def _check_models(models: Models, driver: Driver | None) -> None:
    """Raises FlywheelError where too many requests failed; the pieces that had some are done again in another try."""
    try:
        models.check()
    except FlywheelError as error:
        if driver:
            count = "failed" if isinstance(error, EngineError) else "permanent"
            driver.forget(lambda receipt: any(meter[count] for meter in receipt.meters.values()))
        raise


def _written(draft: store.Draft) -> dict[str, pl.LazyFrame]:
    """The tables of a draft."""
    tables = {n: o for n, o in draft.outputs.items() if o.kind == "table"}
    return {n: pointers.scan(store.paths(draft.new / n, o)) for n, o in tables.items()}


def _held_since(earlier: Mapping[str, float]) -> dict[str, float]:
    """Seconds for which the stage held each GPU that it held; others may have run in this process before."""
    seconds = {name: total - earlier.get(name, 0.0) for name, total in devices.held().items()}
    return {name: value for name, value in seconds.items() if value > 0}


def _unsent(models: Models) -> list[str]:
    """A warning where the budget kept requests from being sent."""
    count = int(models.total("unsent"))
    return [f"{count} requests were not sent: the round's engine.token_budget is spent"] if count else []


def _versions() -> dict[str, str]:
    return {name: _version(name) for name in VERSIONS}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
