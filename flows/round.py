"""Brings a round up to date: runs its stale stages in topological order, each as a run of the task `reproduce`.

Independent stages may run at the same time (a round is evaluated while the next one writes its prompts). Of the stages
that can start, the one with the most descendants goes first. Scheduling is done here and not by Prefect's `wait_for`,
where a waiting task would occupy one of the few workers.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from graphlib import TopologicalSorter
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Annotated

from prefect import get_run_logger
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from pydantic import Field

from flows import events
from flows.choices import LATEST, Round, resolve
from flows.connection import HereFlow
from flows.devices import tags
from flows.progress import Progress, published
from flows.publish import publishing
from flows.reproduce import Reproduced, stopping_stages, with_retries
from flows.serving import kept_open
from tasks.core.errors import FlywheelError
from tasks.project import graph as graphs

if TYPE_CHECKING:
    from tasks.views.diff import Version

FINAL = ("gate@", "evaluate-base@")
"""The last stages of a round and of a base."""

EXAM = ("evaluate@", "gate@", "evaluate-base@")

Submit = Callable[[str, list[PrefectFuture[Reproduced]]], PrefectFuture[Reproduced]]
Spent = Callable[[str], str | None]
"""Counts a stage that ran; returns why no other one may start, or None."""


def _title() -> str:
    return resolve(Path(), flow_run.parameters["round"])


@partial(HereFlow, name="round", flow_run_name=_title)
def run_round(
    round: Round = LATEST,
    concurrency: Annotated[int, Field(ge=1)] = 2,
    retries: Annotated[int, Field(ge=0)] = 1,
) -> list[str]:
    """Bring a round up to date: itself, the rounds that it descends from, and its anchors.

    Args:
        round: A round or base of params.yaml, such as r2; `latest` is the last round.
        concurrency: Number of stages that may run at the same time, each in its own process.
        retries: Number of retries of a stage whose engine could not answer; one that was killed is tried once more.

    Returns:
        The addresses of the stages that were brought up to date.
    """
    return bring_up_to_date([resolve(Path(), round)], concurrency, retries)


@partial(HereFlow, name="exam", flow_run_name=_title)
def run_exam(
    round: Round = LATEST,
    concurrency: Annotated[int, Field(ge=1)] = 2,
    retries: Annotated[int, Field(ge=0)] = 1,
) -> list[str]:
    """Have the models of a round and of those that it descends from sit their base's exam again, where it was edited. Makes
    no data and trains nothing.

    Args:
        round: A round or base of params.yaml, such as r2; `latest` is the last round.
        concurrency: Number of stages that may run at the same time, each in its own process.
        retries: Number of retries of a stage whose engine could not answer; one that was killed is tried once more.

    Returns:
        The addresses of the stages that were brought up to date.
    """
    name = resolve(Path(), round)
    stale = graphs.stale(Path(), name)
    if other := [item for item in stale if not item.startswith(EXAM)]:
        raise FlywheelError(
            f"{name} cannot sit the exam: {other[0]}{f' and {len(other) - 1} more' if other[1:] else ''} must run first, "
            f"which an exam does not; `flywheel run {name}`, or the deployment round/round, does"
        )
    return bring_up_to_date([name], concurrency, retries)


def bring_up_to_date(
    names: Sequence[str], concurrency: int, retries: int, spent: Spent | None = None, hold: bool = False
) -> list[str]:
    """Runs the stale stages of rounds and of their ancestors in the current flow run, and publishes the results. With `hold`,
    no model is promoted, and nothing is published where nothing was stale.

    Raises:
        StageFailed: of the first stage that failed. Running stages finish, no further one starts, and what was made is
            still published.
    """
    from tasks.project.params import load_params

    root = Path()
    todo = graphs.stale(root, *names)
    if hold and not todo:
        return todo
    whole = graphs.graph(load_params(root), names)
    graph = {item: whole[item] & set(todo) for item in todo}
    task = with_retries(retries)
    earlier = _versions(root, names, todo)
    made = list(dict.fromkeys(item.partition("@")[2] for item in todo))
    ran: list[str] = []

    def count(item: str) -> str | None:
        ran.append(item)
        return spent(item) if spent else None

    with (
        publishing(made, hold) as publish_soon,
        kept_open(root, todo) as before,
        stopping_stages(),
        Progress(root, todo, published(todo)) as progress,
    ):

        def submit(item: str, after: list[PrefectFuture[Reproduced]]) -> PrefectFuture[Reproduced]:
            before(item)
            future = task.with_options(tags=tags(root, item)).submit(item, wait_for=after)
            if item.startswith(FINAL):
                future.add_done_callback(lambda _: publish_soon())
            return future

        run_graph(graph, submit, concurrency, progress, count)
    for name in (item.removeprefix("gate@") for item in ran if item.startswith("gate@")):
        events.gated(root, name)
    for name, version in earlier.items():
        print_changes(root, name, version)
    return todo


def _versions(root: Path, names: Sequence[str], todo: Sequence[str]) -> "dict[str, Version | None]":
    """The present version of each of these rounds that has stale stages."""
    return {name: _version(root, name) for name in names if any(item.endswith(f"@{name}") for item in todo)}


def _version(root: Path, name: str) -> "Version | None":
    """The present version of a round; None where its files are damaged, which the run makes again."""
    from tasks.project.params import load_params
    from tasks.views.diff import version

    with suppress(FlywheelError):
        return version(root, load_params(root).block(name))
    return None


def print_changes(root: Path, name: str, earlier: "Version | None") -> None:
    """Prints what changed in a round, what that did to the exam, and what became of it. It is compared with its earlier version,
    or, where that has not sat the exam, with its parent. Prints nothing where nothing changed, and of a base's first version.
    """
    from tasks.project.params import load_params
    from tasks.views.diff import changes, version
    from tasks.views.report import verdict_line

    try:
        block = load_params(root).block(name)
        now = version(root, block)
        if earlier and earlier.side.manifests == now.side.manifests:
            return
        if earlier is None or earlier.evals is None:
            earlier = version(root, load_params(root).block(block.parent)) if block.parent else None
        if earlier:
            print(*changes(earlier, now), verdict_line(root, name), sep="\n")
    except FlywheelError as error:
        get_run_logger().warning(f"what changed in {name} cannot be told: {error}")


def run_graph(
    graph: graphs.Graph, submit: Submit, concurrency: int, progress: Progress, ran: Spent = lambda _: None
) -> None:
    """Runs the stages of a graph in topological order, at most `concurrency` at a time. `ran` is told of each stage whose
    command ran; once it returns a reason, the running ones finish and no further one starts.

    Raises:
        Exception: of the first task that failed, once the running ones have ended.
    """
    weight = {item: len(graphs.descendants(graph, [item])) for item in graph}
    sorter, ready, finished = TopologicalSorter(graph), list[str](), SimpleQueue[str]()
    sorter.prepare()
    futures: dict[str, PrefectFuture[Reproduced]] = {}
    running: set[str] = set()
    failed: list[str] = []
    stop: str | None = None
    while sorter.is_active() and (running or not (failed or stop)):
        ready = sorted([*ready, *sorter.get_ready()], key=lambda item: -weight[item])
        while ready and len(running) < concurrency and not (failed or stop):
            item = ready.pop(0)
            progress.started(item)
            running.add(item)
            futures[item] = submit(item, [futures[before] for before in sorted(graph[item])])
            futures[item].add_done_callback(lambda _, item=item: finished.put(item))
        item = _next(finished, progress.tick)
        running.remove(item)
        if isinstance(outcome := futures[item].result(raise_on_failure=False), Reproduced):
            sorter.done(item)
            progress.finished(outcome)
            stop = (ran(item) if outcome.ran else None) or stop
        else:
            failed.append(item)
            progress.failed(item)
    if failed:
        futures[failed[0]].result()


def _next(finished: SimpleQueue[str], tick: Callable[[], None]) -> str:
    """The next stage that ends; calls `tick` while none does. Polls, because Polars' signal handler restarts system calls:
    Ctrl-C would not end `get`.
    """
    while True:
        with suppress(Empty):
            return finished.get(timeout=0.5)
        tick()
