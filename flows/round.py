"""Brings a round up to date: its stale stages in the order of their inputs, each one a run of the task `reproduce`.

Independent stages may run at the same time (a round is evaluated while the next one writes its prompts); of those that
can start, the one with most after it starts first. The order is kept here, not left to Prefect's `wait_for`, under
which a waiting task would hold one of the few places.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from graphlib import TopologicalSorter
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.futures import PrefectFuture

from flows.connection import HereFlow
from flows.progress import Progress
from flows.reproduce import Reproduced, ended_with, with_retries
from tasks import plan

LAST = ("gate@", "evaluate-base@")
"""The last stages of a round and of a base."""

Submit = Callable[[str, list[PrefectFuture[Reproduced]]], PrefectFuture[Reproduced]]


@partial(HereFlow, name="round", flow_run_name="{round}")
def run_round(round: str, concurrency: int = 2, retries: int = 1) -> list[str]:
    """Bring a round up to date: itself, the rounds that it descends from, and those whose models judge it.

    Args:
        round: A round or base of params.yaml, such as r2.
        concurrency: How many stages may run at the same time; each is a process of its own.
        retries: How often a stage is tried again when its engine could not answer or it was killed.

    Returns:
        The addresses of the stages that were brought up to date.
    """
    return bring_up_to_date([round], concurrency, retries)


def bring_up_to_date(names: Sequence[str], concurrency: int, retries: int) -> list[str]:
    """Runs the stale stages of rounds, their ancestors and jurors, in the flow run that it is called in, and publishes them.

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
    with published() as soon, ended_with(), Progress(root, len(todo)) as progress:

        def submit(item: str, after: list[PrefectFuture[Reproduced]]) -> PrefectFuture[Reproduced]:
            future = task.submit(item, wait_for=after)
            if item.startswith(LAST):
                future.add_done_callback(lambda _: soon())
            return future

        run_graph(graph, submit, concurrency, progress)
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
def published() -> Iterator[Callable[[], None]]:
    """Publishes what the block made, also when it failed; its own error is the one that is told.

    Gives a function that brings MLflow up to date while the block goes on: rounds are seen there as they come, and little
    is left for the end.
    """
    log, root = get_run_logger(), Path()
    with ThreadPoolExecutor(1) as background:

        def soon() -> None:
            with suppress(RuntimeError):  # the block has ended: all is published below
                background.submit(_recorded, root, log)

        try:
            yield soon
        except Exception:
            background.shutdown(cancel_futures=True)
            try:
                publish()
            except Exception:
                log.exception("what was made before the failure could not be published")
            raise
    publish()


def _recorded(root: Path, log: Any) -> None:
    from tasks.record import record

    try:
        record(root, crown=False)
    except Exception as error:  # a stage may be replacing what is read; the last call must succeed
        log.warning(f"MLflow is brought up to date at the end: {error}")


def publish() -> None:
    """Brings MLflow up to date, and shows the table of the rounds as an artifact in Prefect's UI."""
    from tasks.record import record
    from tasks.report import markdown

    root = Path()
    get_run_logger().info(record(root))
    create_markdown_artifact(markdown(root), key="rounds", description="The rounds of this project")
