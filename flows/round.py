"""Brings a round up to date: its stale stages in the order of their inputs, each one a run of the task `reproduce`.

Independent stages may run at the same time (a round is evaluated while the next one writes its prompts); of those that
can start, the one with most after it starts first. The order is kept here, not left to Prefect's `wait_for`, under
which a waiting task would hold one of the few places.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from graphlib import TopologicalSorter
from pathlib import Path
from queue import Empty, SimpleQueue

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.futures import PrefectFuture

from flows.connection import HereFlow
from flows.progress import Progress
from flows.reproduce import Reproduced, ended_with, with_retries
from tasks import plan

Submit = Callable[[str, list[PrefectFuture[Reproduced]]], PrefectFuture[Reproduced]]


@partial(HereFlow, name="round", flow_run_name="{round}")
def run_round(round: str, concurrency: int = 2, retries: int = 1) -> list[str]:
    """Bring a round up to date: itself and the rounds that it descends from.

    Args:
        round: A round or base of params.yaml, such as r2.
        concurrency: How many stages may run at the same time; each is a process of its own.
        retries: How often a stage is tried again when its engine could not answer or it was killed.

    Returns:
        The addresses of the stages that were brought up to date.
    """
    return bring_up_to_date([round], concurrency, retries)


def bring_up_to_date(names: Sequence[str], concurrency: int, retries: int) -> list[str]:
    """Runs the stale stages of rounds and of their ancestors, in the flow run that it is called in, and publishes them.

    Raises:
        StageFailed: of the first stage that failed; those that were running are finished, none is started after it, and
            what was made is published all the same.
    """
    from tasks.params import load_params

    root = Path()
    todo = plan.stale(root, *names)
    whole = plan.graph(load_params(root), names)
    graph = {item: whole[item] & set(todo) for item in todo}
    task = with_retries(retries)
    with published(), ended_with(), Progress(root, len(todo)) as progress:
        run_graph(graph, lambda item, after: task.submit(item, wait_for=after), concurrency, progress)
    return todo


def run_graph(graph: plan.Graph, submit: Submit, concurrency: int, progress: Progress) -> None:
    """Runs every stage of a graph after those that it needs, at most `concurrency` at a time.

    Raises:
        Exception: of the first task that failed, once the ones that were running have ended.
    """
    weight = {item: len(plan.descendants(graph, [item])) for item in graph}
    sorter, ready, ended = TopologicalSorter(graph), list[str](), SimpleQueue[str]()
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
            futures[item].add_done_callback(lambda _, item=item: ended.put(item))
        item = _next(ended)
        running.remove(item)
        if isinstance(outcome := futures[item].result(raise_on_failure=False), Reproduced):
            sorter.done(item)
            progress.finished(outcome)
        else:
            failed.append(item)
            progress.failed(item)
    if failed:
        futures[failed[0]].result()


def _next(ended: SimpleQueue[str]) -> str:
    """The next stage that ends. Polars' signal handler restarts system calls: Ctrl-C would not wake an untimed wait."""
    while True:
        with suppress(Empty):
            return ended.get(timeout=0.5)


@contextmanager
def published() -> Iterator[None]:
    """Publishes what the block made, also when it failed; its own error is the one that is told."""
    try:
        yield
    except Exception:
        try:
            publish()
        except Exception:
            get_run_logger().exception("what was made before the failure could not be published")
        raise
    publish()


def publish() -> None:
    """Brings MLflow up to date, and shows the table of the rounds as an artifact in Prefect's UI."""
    from tasks.record import record
    from tasks.report import markdown

    root = Path()
    get_run_logger().info(record(root))
    create_markdown_artifact(markdown(root), key="rounds", description="The rounds of this project")
