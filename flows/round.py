"""Brings a round up to date: runs its stale stages in topological order, each as a run of the task `reproduce`.

Independent stages may run at the same time (a round is evaluated while the next one writes its prompts). Of the stages
that can start, the one with the most descendants goes first. Scheduling is done here and not by Prefect's `wait_for`,
where a waiting task would occupy one of the few workers.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from graphlib import TopologicalSorter
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.futures import PrefectFuture

from flows.connection import HereFlow
from flows.progress import Progress
from flows.reproduce import Reproduced, stopping_stages, with_retries
from tasks.core.errors import FlywheelError
from tasks.project import graph as graphs

if TYPE_CHECKING:
    from tasks.views.diff import Version

FINAL = ("gate@", "evaluate-base@")
"""The last stages of a round and of a base."""

Submit = Callable[[str, list[PrefectFuture[Reproduced]]], PrefectFuture[Reproduced]]


@partial(HereFlow, name="round", flow_run_name="{round}")
def run_round(round: str, concurrency: int = 2, retries: int = 1) -> list[str]:
    """Bring a round up to date: itself, the rounds that it descends from, and its anchors.

    Args:
        round: A round or base of params.yaml, such as r2.
        concurrency: Number of stages that may run at the same time, each in its own process.
        retries: Number of retries of a stage whose engine could not answer or that was killed.

    Returns:
        The addresses of the stages that were brought up to date.
    """
    return bring_up_to_date([round], concurrency, retries)


def bring_up_to_date(names: Sequence[str], concurrency: int, retries: int) -> list[str]:
    """Runs the stale stages of rounds and of their ancestors in the current flow run, and publishes the results.

    Raises:
        StageFailed: of the first stage that failed. Running stages finish, no further one starts, and what was made is
            still published.
    """
    from tasks.project.params import load_params

    root = Path()
    todo = graphs.stale(root, *names)
    whole = graphs.graph(load_params(root), names)
    graph = {item: whole[item] & set(todo) for item in todo}
    task = with_retries(retries)
    earlier = _versions(root, names, todo)
    with publishing() as publish_soon, stopping_stages(), Progress(root, len(todo)) as progress:

        def submit(item: str, after: list[PrefectFuture[Reproduced]]) -> PrefectFuture[Reproduced]:
            future = task.submit(item, wait_for=after)
            if item.startswith(FINAL):
                future.add_done_callback(lambda _: publish_soon())
            return future

        run_graph(graph, submit, concurrency, progress)
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


def run_graph(graph: graphs.Graph, submit: Submit, concurrency: int, progress: Progress) -> None:
    """Runs the stages of a graph in topological order, at most `concurrency` at a time.

    Raises:
        Exception: of the first task that failed, once the running ones have ended.
    """
    weight = {item: len(graphs.descendants(graph, [item])) for item in graph}
    sorter, ready, finished = TopologicalSorter(graph), list[str](), SimpleQueue[str]()
    sorter.prepare()
    futures: dict[str, PrefectFuture[Reproduced]] = {}
    running: set[str] = set()
    failed: list[str] = []
    while sorter.is_active() and (running or not failed):
        ready = sorted([*ready, *sorter.get_ready()], key=lambda item: -weight[item])
        while ready and len(running) < concurrency and not failed:
            item = ready.pop(0)
            progress.started(item)
            running.add(item)
            futures[item] = submit(item, [futures[before] for before in sorted(graph[item])])
            futures[item].add_done_callback(lambda _, item=item: finished.put(item))
        item = _next(finished)
        running.remove(item)
        if isinstance(outcome := futures[item].result(raise_on_failure=False), Reproduced):
            sorter.done(item)
            progress.finished(outcome)
        else:
            failed.append(item)
            progress.failed(item)
    if failed:
        futures[failed[0]].result()


def _next(finished: SimpleQueue[str]) -> str:
    """The next stage that ends. Polls, because Polars' signal handler restarts system calls: Ctrl-C would not end `get`."""
    while True:
        with suppress(Empty):
            return finished.get(timeout=0.5)


@contextmanager
def publishing() -> Iterator[Callable[[], None]]:
    """Publishes the results when the block ends, also after an error, which is raised again.

    Yields a function that updates MLflow in the background while the block runs, so that rounds appear there early and
    little is left for the end.
    """
    log, root = get_run_logger(), Path()
    with ThreadPoolExecutor(1) as background:

        def publish_soon() -> None:
            with suppress(RuntimeError):  # the block has ended: everything is published below
                background.submit(_record, root, log)

        try:
            yield publish_soon
        except Exception:
            background.shutdown(cancel_futures=True)
            try:
                publish()
            except Exception:
                log.exception("results from before the failure could not be published")
            raise
    publish()


def _record(root: Path, log: Any) -> None:
    from tasks.views.record import record

    try:
        record(root, move_alias=False)
    except Exception as error:  # a stage may be replacing its files; the last call must succeed
        log.warning(f"MLflow will be updated at the end: {error}")


def publish() -> None:
    """Updates MLflow, and stores the table of the rounds as an artifact in Prefect's UI."""
    from tasks.views.record import record
    from tasks.views.report import markdown

    root = Path()
    get_run_logger().info(record(root))
    create_markdown_artifact(markdown(root), key="rounds", description="The rounds of this project")
