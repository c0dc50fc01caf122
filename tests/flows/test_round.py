from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from time import sleep

import pytest
from prefect.logging import disable_run_logger

from flows import round
from flows.progress import Progress
from flows.reproduce import Reproduced
from flows.round import publishing, run_graph

DIAMOND = {"a": set(), "b": {"a"}, "c": {"a"}, "d": {"b", "c"}, "leaf": {"a"}}


class Task(Future):
    """What Prefect's futures can do of what a flow asks of them."""

    def result(self, raise_on_failure=True):
        error = self.exception()
        if error and raise_on_failure:
            raise error
        return error or super().result()


class Runner:
    """Runs tasks in threads, and takes down what ran when."""

    def __init__(self, fails=()):
        self.fails, self.pool, self.lock = fails, ThreadPoolExecutor(8), Lock()
        self.started, self.ended, self.after, self.at_once, self.most = [], [], {}, 0, 0

    def submit(self, item, after):
        task = Task()
        self.after[item] = len(after)
        self.pool.submit(self.run, item, task)
        return task

    def run(self, item, task):
        with self.lock:
            self.started.append(item)
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        sleep(0 if item in self.fails else 0.2)  # what fails does so before the others end
        with self.lock:
            self.at_once -= 1
            self.ended.append(item)
        if item in self.fails:
            task.set_exception(ValueError(item))
        else:
            task.set_result(Reproduced(item, 0.0, False))


def go(graph, concurrency=2, fails=()):
    runner = Runner(fails)
    try:
        with Progress(None, len(graph)) as progress:
            run_graph(graph, runner.submit, concurrency, progress)
    finally:
        runner.pool.shutdown()
    return runner


def test_each_runs_once_after_what_it_needs():
    runner = go(DIAMOND, concurrency=8)
    assert sorted(runner.started) == sorted(DIAMOND)
    assert runner.started[0] == "a"
    assert runner.ended.index("d") > max(runner.ended.index("b"), runner.ended.index("c"))
    assert runner.after == {"a": 0, "b": 1, "c": 1, "d": 2, "leaf": 1}, "Prefect draws these edges"


@pytest.mark.parametrize("concurrency", [1, 2, 3])
def test_no_more_at_once_than_allowed(concurrency):
    assert go(DIAMOND, concurrency).most == concurrency


def test_what_most_depends_on_starts_first():
    graph = {"evaluate": set(), "prompts": set(), "generate": {"prompts"}, "train": {"generate"}}
    assert go(graph, concurrency=1).started == ["prompts", "generate", "evaluate", "train"]


def test_after_a_failure_the_running_ones_end_and_no_other_starts():
    with pytest.raises(ValueError, match="b"):
        go(DIAMOND, concurrency=2, fails=("b",))
    runner = Runner(fails=("b",))
    with pytest.raises(ValueError, match="b"), Progress(None, 5) as progress:
        run_graph(DIAMOND, runner.submit, 2, progress)
    runner.pool.shutdown()
    assert set(runner.ended) == {"a", "b", "c"}


@pytest.mark.parametrize("reachable", [True, False])
def test_what_was_made_before_a_failure_is_published_and_the_failure_is_raised(monkeypatch, reachable):
    calls = []

    def publish():
        calls.append(1)
        if not reachable:
            raise ConnectionError("no MLflow")

    monkeypatch.setattr(round, "publish", publish)
    with disable_run_logger(), pytest.raises(ValueError, match="r3's engine"), publishing():
        raise ValueError("r3's engine")
    assert calls == [1]


def test_progress_is_a_line_a_stage(made, capsys):
    with Progress(made, 12) as progress:
        progress.started("generate@r1")
        progress.finished(Reproduced("generate@r1", 1.0, True))
        progress.started("evaluate-base@r0")
        progress.finished(Reproduced("evaluate-base@r0", 1.0, False))
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("[ 1/12] generate@r1")
    assert first.endswith("responses 36")
    assert second.startswith("[ 2/12] evaluate-base@r0")
    assert second.endswith("was up to date")
