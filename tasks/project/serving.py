"""Keeps one engine up for the stages of a round that ask its parent's model, from `prompts` to `critique`.

The server belongs to the process that called `serve`. It ends with that, when the round's stages are made, when
`stop` asks for it, and when another process waits for its GPU while none asks the server: a stage that then starts loads the
model itself, as it would without a server.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from tasks.core import devices, store
from tasks.core.errors import Busy, EngineError, FlywheelError
from tasks.core.models import digest, resolve
from tasks.core.plan import Plan, read_transport
from tasks.core.plugin import load
from tasks.engines import Engine, _served
from tasks.project import strays
from tasks.project.execute import model_folder
from tasks.project.freshness import is_result_of_plan
from tasks.project.params import load_params

STAGES = ("prompts", "generate", "judge", "critique")
"""Stages between which a round's engine stays up."""
POLL = 0.5
"""Seconds between two looks at the round."""
LOG = ".flywheel/logs"


def folder(root: Path) -> Path:
    """Where the records of servers lie."""
    return _served.place(root / "data/cache/requests")


def served_plans(root: Path, name: str) -> list[Plan]:
    """The plans of the stages of a round that ask its parent's model, in order.

    Raises:
        StoreError: where there is no plan.
    """
    return [plan for plan in _plans(root, name) if plan.engine is not None and "parent_model" in plan.reads]


def _plans(root: Path, name: str) -> list[Plan]:
    return [Plan.read(root, name, stage) for stage in STAGES]


def engine_of(root: Path, plan: Plan) -> Engine:
    """The engine of a stage of a round, as the stage opens it."""
    values = (plan.engine or {}) | read_transport(root).get(plan.round, {})
    return load("engines", values["strategy"])(**{k: v for k, v in values.items() if k != "strategy"})  # type: ignore[no-any-return]


def problem(root: Path, name: str) -> str | None:
    """Why no server can answer the stages of a round; None where one can."""
    plans = served_plans(root, name)
    if not plans:
        return f"no stage of {name} from {STAGES[0]} to {STAGES[-1]} asks a model that the round's engine runs"
    engine = engine_of(root, plans[0])
    if engine.strategy_name() != "vllm":
        return (
            f"the engine of {name} is {engine.strategy_name()}; a server is kept for vllm alone: set engine.strategy of its "
            "base to vllm"
        )
    if problems := engine.problems():
        return "; ".join(problems)
    parent, stages = plans[0].ancestors["parent"], _plans(root, name)
    opened = {kind: owner for plan in stages for kind, owner in plan.ancestors.items() if f"{kind}_model" in plan.reads}
    others = {owner for owner in opened.values() if owner != parent}
    loaded = {n for plan in stages for n, m in plan.models.items() if load("engines", m["engine"]["strategy"]).loads}
    if devices.devices() and (beside := sorted(others | loaded)):
        return f"stages of {name} load {', '.join(beside)} beside the parent, for which the server would leave no room"
    return None


def stays_open(root: Path, name: str) -> bool:
    """Whether the engine of a round shall stay up from one stage to the next."""
    return any(getattr(engine_of(root, plan), "stay_open", False) for plan in served_plans(root, name))


def is_up(root: Path, name: str) -> bool:
    """Whether a server of a round is up, or starting."""
    return any(record.round == name for record in _served.records(folder(root)))


def is_made(root: Path, plans: list[Plan]) -> bool:
    """Whether stages have the results of these plans."""
    return all(is_result_of_plan(root, plan.round, plan.stage) for plan in plans)


def serve(root: Path, name: str, tell: Callable[[str], None]) -> None:
    """Keeps a server up for the stages of a round, until they are made or something else ends it (see the module).

    Raises:
        UnknownName: for a round that params.yaml does not have.
        FlywheelError: where none can answer them, or one is up already.
        EngineError: where it does not start, or dies.
    """
    if load_params(root).block(name).is_base:
        raise FlywheelError(f"{name} is a base, whose model answers the rounds that start from it; name one of those")
    if why := problem(root, name):
        raise FlywheelError(why)
    plans = served_plans(root, name)
    if is_made(root, plans):
        tell(f"{name} has what its stages from {plans[0].stage} to {plans[-1].stage} make; nothing to serve.")
        return
    engine, parent = engine_of(root, plans[0]), plans[0].ancestors["parent"]
    model = model_folder(root, parent)
    me = psutil.Process()
    record = _served.Record(name, str(model.absolute()), me.pid, me.create_time())
    with _only_one(root, name), _recorded(root, record):
        gpus = engine.tensor_parallel * engine.data_parallel_size  # type: ignore[attr-defined]
        weights = digest(model)
        log = root / LOG / f"serve-{name}.log"
        environment = os.environ | strays.signature(root)
        tell(f"starting vLLM on the weights {weights[:12]}… of {parent}; its log is {log}")
        with (
            devices.device_lock(gpus) as held,
            _served.started(engine, resolve(model), weights, log, environment) as server,  # type: ignore[arg-type]
        ):
            _served.kept(server, record, held).write(folder(root))
            tell(
                f"{server.record.url} answers the stages of {name} until {plans[-1].stage}@{name} is made; Ctrl-C ends it"
            )
            over = _until_over(root, plans, server, held)
            record.remove(folder(root))  # before the server ends: a stage that starts now loads the model itself
            tell(over)


def _until_over(root: Path, plans: list[Plan], server: "_served.Server", gpus: tuple[str, ...]) -> str:
    """Waits until the server has no more to do; says why."""
    name, made = plans[0].round, Made(root, plans[0].round)
    while True:
        time.sleep(POLL)
        if not server.lives:
            raise EngineError(f"the server of {name} died; see {root / LOG}/serve-{name}.log")
        if _served.users(folder(root), name):
            continue  # of another round, too: an exam of the parent's
        if made():
            return f"{plans[-1].stage}@{name} is made: the server ends with the round"
        if gpus and devices.are_wanted(gpus):
            return f"another process waits for {', '.join(gpus)}: the server makes room"


class Made:
    """Whether the served stages of a round have their results; bytes are looked at only when a manifest is another one."""

    def __init__(self, root: Path, name: str) -> None:
        self._root, self._name = root, name
        self._seen: list[tuple[int, int, int] | None] = []

    def __call__(self) -> bool:
        """As of now, by today's plans."""
        plans, before = served_plans(self._root, self._name), self._seen
        place = store.round_folder(self._root, self._name) / "manifests"
        self._seen = [_stamp(place / f"{plan.stage}.json") for plan in plans]
        return self._seen != before and is_made(self._root, plans)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    with suppress(FileNotFoundError):
        stat = path.stat()
        return stat.st_mtime_ns, stat.st_size, stat.st_ino
    return None


@contextmanager
def _only_one(root: Path, name: str) -> Iterator[None]:
    folder(root).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder(root) / f"{name}.lock", timeout=0):
            yield
    except Timeout as error:
        raise Busy(f"a server of {name} is up already; `flywheel serve --stop {name}` ends it") from error


@contextmanager
def _recorded(root: Path, record: "_served.Record") -> Iterator[None]:
    record.write(folder(root))
    try:
        yield
    finally:
        record.remove(folder(root))


def stop(root: Path, name: str | None = None) -> list[str]:
    """Ends the servers that are up for the project's rounds, or that of one; returns these rounds."""
    up = [record for record in _served.records(folder(root)) if name in (None, record.round)]
    keepers = [psutil.Process(record.pid) for record in up]
    for keeper in keepers:
        with suppress(psutil.NoSuchProcess):
            keeper.terminate()
    for straggler in psutil.wait_procs(keepers, timeout=2 * _served.GRACE)[1]:
        straggler.kill()  # the server ends by itself then
    return [record.round for record in up]
