import re
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from time import sleep
from types import SimpleNamespace

import projects
import pytest
from prefect.logging import disable_run_logger

from flows import progress as progress_file
from flows import publish, round
from flows.progress import Progress
from flows.publish import publishing, slug
from flows.reproduce import Reproduced
from flows.round import _version, print_changes, run_exam, run_graph
from tasks.core import store
from tasks.core.errors import FlywheelError
from tasks.project import plan
from tasks.project.edit import add_round
from tasks.project.execute import run_stage

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

    ran = False

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
            task.set_result(Reproduced(item, 0.0, self.ran))


def go(graph, concurrency=2, fails=()):
    runner = Runner(fails)
    try:
        with Progress(Path(), list(graph)) as progress:
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
    with pytest.raises(ValueError, match="b"), Progress(Path(), list(DIAMOND)) as progress:
        run_graph(DIAMOND, runner.submit, 2, progress)
    runner.pool.shutdown()
    assert set(runner.ended) == {"a", "b", "c"}


@pytest.mark.parametrize("reachable", [True, False])
def test_what_was_made_before_a_failure_is_published_and_the_failure_is_raised(monkeypatch, reachable):
    calls = []

    def fail(*_):
        calls.append(1)
        if not reachable:
            raise ConnectionError("no MLflow")

    monkeypatch.setattr(publish, "publish", fail)
    with disable_run_logger(), pytest.raises(ValueError, match="r3's engine"), publishing():
        raise ValueError("r3's engine")
    assert calls == [1]


def test_once_the_budget_is_spent_the_running_ones_end_and_no_other_starts(monkeypatch):
    monkeypatch.setattr(progress_file, "rows", lambda *_: "")
    monkeypatch.setattr(progress_file, "manifest_of", lambda *_: SimpleNamespace(warnings=[]))
    runner = Runner()
    told = []

    def spent(item):
        told.append(item)
        return "the budget is reached" if item != "a" else None

    runner.ran = True
    with Progress(Path(), list(DIAMOND)) as progress:
        run_graph(DIAMOND, runner.submit, 2, progress, spent)
    runner.pool.shutdown()
    assert set(runner.ended) == {"a", "b", "c"}
    assert set(told) == {"a", "b", "c"}


def test_what_did_not_run_spends_nothing():
    with Progress(Path(), list(DIAMOND)) as progress:
        run_graph(DIAMOND, (runner := Runner()).submit, 2, progress, lambda item: item)
    runner.pool.shutdown()
    assert set(runner.ended) == set(DIAMOND)


def test_a_long_stage_says_how_long_it_runs_and_what_share_is_done(made, monkeypatch):
    reports = []
    monkeypatch.setattr(progress_file, "EVERY", 0)
    monkeypatch.setattr(progress_file, "expected_seconds", lambda *_: {"evaluate@r1": 30.0, "gate@r1": 10.0})
    with Progress(made, ["evaluate@r1", "gate@r1"], lambda *report: reports.append(report)) as progress:
        progress.started("evaluate@r1")
        progress.running["evaluate@r1"] -= 15
        progress.tick()
        progress.running["evaluate@r1"] -= 60
        progress.tick()
        progress.finished(Reproduced("evaluate@r1", 75.0, False))
    shares, texts = zip(*reports, strict=True)
    assert texts[0] == "running evaluate@r1 for 15 s of about 30 s"
    assert shares == pytest.approx((15 / 40, 0.95 * 30 / 40, 30 / 40), abs=0.01), "it is not done before it is"


def test_how_long_a_stage_takes_is_known_from_its_last_run_or_an_ancestors(made):
    add_round(made, "r3", "r2")
    known = progress_file.expected_seconds(made, ["evaluate@r3", "evaluate-base@r0", "gate@r2", "gate@r0"])
    manifests = store.manifests(made, "r2")
    assert known["evaluate@r3"] == sum(manifests["evaluate"].seconds.values())
    assert known["gate@r2"] == sum(manifests["gate"].seconds.values())
    assert "evaluate-base@r0" in known
    assert "gate@r0" not in known, "a base has no gate"


@pytest.mark.parametrize(("name", "key"), [("r2", "r2"), ("R_2.a", "r-2-a"), ("—", "round")])
def test_an_artifacts_key_has_nothing_but_letters_digits_and_dashes(name, key):
    assert slug(name) == key


def test_progress_is_a_line_a_stage(made, capsys):
    items = ["generate@r1", "evaluate-base@r0", *(f"judge@r{n}" for n in range(10))]
    with Progress(made, items) as progress:
        progress.started("generate@r1")
        progress.finished(Reproduced("generate@r1", 1.0, True))
        progress.started("evaluate-base@r0")
        progress.finished(Reproduced("evaluate-base@r0", 1.0, False))
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("[ 1/12] generate@r1")
    assert first.endswith("responses 36")
    assert second.startswith("[ 2/12] evaluate-base@r0")
    assert second.endswith("was up to date")


def changed(root, name, capsys, before):
    capsys.readouterr()
    print_changes(root, name, before)
    return capsys.readouterr().out.splitlines()


def test_a_run_says_what_it_changed_in_a_round(made, capsys):
    before = _version(made, "r2")
    assert changed(made, "r2", capsys, before) == [], "nothing ran"
    projects.set_values(made, "r2", ["generate.sample.samples=4"])
    plan.write(made)
    for stage in ("generate", "judge"):
        run_stage(made, "r2", stage)
    settings, rows, exam, verdict = changed(made, "r2", capsys, before)
    assert settings == "r2 against its version before: generate.sample.samples 3 → 4"
    assert rows.startswith("  rows: responses 36 → 48, judgments ")
    assert exam == "  exam: the same answers"
    assert re.match(
        r"r2: (promoted|held back by .*); pass@1 [\d.]+ % \(r1: .*; kept \d+ of 48 answers; champion of r0: ", verdict
    )


def test_a_first_version_is_compared_with_the_parent(made, capsys):
    settings, rows, exam, verdict = changed(made, "r2", capsys, None)
    assert settings.startswith("r2 against its parent r1: seed 1 → 2")
    assert rows.startswith("  rows: other content in responses, judgments")
    assert re.fullmatch(r"  exam: pass@1 [\d.]+ → [\d.]+ % \(.* points, 95 % .* … .*\) on \d+ held-out problems", exam)
    assert verdict.startswith("r2: ")
    assert changed(made, "r0", capsys, None) == [], "a base has no parent"


def test_a_summary_that_cannot_be_made_fails_nothing(made, capsys, monkeypatch):
    for part in (made / "data/round=r2/evals").iterdir():
        part.write_bytes(b"torn")
    assert _version(made, "r2") is None
    warnings = []
    monkeypatch.setattr(round, "get_run_logger", lambda: SimpleNamespace(warning=warnings.append))
    assert changed(made, "r2", capsys, None) == []
    [warning] = warnings
    assert "evals" in warning


def test_an_exam_makes_no_data(made):
    projects.set_values(made, "r2", ["generate.sample.samples=4"])
    with pytest.raises(FlywheelError, match="r2 cannot sit the exam: generate@r2 and .* `flywheel run r2`"):
        run_exam.fn("latest")
