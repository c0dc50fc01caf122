"""Which receipts count in another try, and which do not."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import driving
import projects
import pytest

from tasks.core import objects, store
from tasks.core.errors import FlywheelError, StoreError
from tasks.core.plan import Plan
from tasks.engines import fake
from tasks.engines.openai import Openai
from tasks.project import driver, execute, plan, worker
from tasks.where.here import Here


class Stopped(BaseException):
    """As Ctrl-C, or a kill."""


@pytest.fixture
def handed(monkeypatch) -> list[int]:
    """The pieces that were handed out."""
    numbers, run = [], Here.run

    def noted(self, job, pieces):
        numbers.extend(pieces)
        return run(self, job, pieces)

    monkeypatch.setattr(Here, "run", noted)
    return numbers


def stop_after(count: int, root, monkeypatch) -> None:
    """Stops `generate` when so many pieces are done."""
    with monkeypatch.context() as stopping:
        run = Here.run

        def stopped(self, job, pieces):
            yield from run(self, job, pieces[:count])
            raise Stopped

        stopping.setattr(Here, "run", stopped)
        with pytest.raises(Stopped):
            execute.run_stage(root, "r1", "generate")


def folders(root) -> list[str]:
    return [path.name for path in (root / "data/cache/work").glob("r1-generate-*")]


def test_a_library_of_another_version_does_all_pieces_again(round_one, handed, monkeypatch):
    stop_after(3, round_one, monkeypatch)
    first = len(handed)
    monkeypatch.setattr(execute, "_version", lambda name: "another")
    manifest = execute.run_stage(round_one, "r1", "generate")
    assert len(handed) == first + len(manifest.outputs["responses"].parts)


def test_another_name_of_the_weights_at_the_server_does_all_pieces_again(round_one):
    stage, planned = execute._stage("generate"), Plan.read(round_one, "r1", "generate")

    def scratch(name: str, concurrency: int = 1) -> str:
        engine = Openai(served={"a" * 64: name}, concurrency=concurrency)
        models = SimpleNamespace(names=["parent"], engine=lambda _: engine)
        return driver.Driver(round_one, stage, planned, {}, [(None, None)], Here(), None, models, {})._job.scratch

    assert scratch("wrong") != scratch("right") == scratch("right", concurrency=9)


def test_pieces_of_another_plan_are_gone_once_the_stage_is_made(round_one, monkeypatch):
    stop_after(2, round_one, monkeypatch)
    projects.set_values(round_one, "r1", ["engine.reply=echo"])
    plan.write(round_one)
    other = round_one / "data/cache/work/r1-generate-more-0123456789abcdef"
    other.mkdir()
    stop_after(2, round_one, monkeypatch)
    assert len(folders(round_one)) == 3
    assert len(driving.receipts(round_one)) == 4
    execute.run_stage(round_one, "r1", "generate")
    assert folders(round_one) == [other.name]


def test_a_kill_while_pieces_are_cleared_does_no_harm(round_one, monkeypatch):
    remove = shutil.rmtree

    def killed(path, **how):
        if "cache" not in str(path) or "writing" in str(path):
            return remove(path, **how)
        next(p for p in sorted(Path(path).rglob("*")) if p.is_file()).unlink()
        raise Stopped

    with monkeypatch.context() as killing:
        killing.setattr(shutil, "rmtree", killed)
        with pytest.raises(Stopped):
            execute.run_stage(round_one, "r1", "generate")
    made = driving.made(round_one, "generate")
    execute.run_stage(round_one, "r1", "generate")  # as DVC does, which saw no end of it
    assert driving.made(round_one, "generate") == made
    assert not folders(round_one)


def test_receipts_in_a_bucket_go_before_what_they_name(round_one, tmp_path, monkeypatch):
    stage, planned = execute._stage("generate"), Plan.read(round_one, "r1", "generate")
    place = objects.place(tmp_path / "bucket")
    models = SimpleNamespace(names=["parent"], engine=lambda _: fake.Fake())
    made = driver.Driver(round_one, stage, planned, {}, [(None, None)], Here(), place, models, {})
    files = ("000000-0.parquet", "000000.json", "000001-0.parquet")
    names = [f"{made._job.scratch}/summaries/{name}" for name in files]
    gone = []
    for name in names:
        place.put_once(name, b"")
    monkeypatch.setattr(place, "delete", gone.append)
    made.clear()
    assert gone == [names[1], names[0], names[2]]


def test_parts_that_are_gone_are_all_made_again_in_the_next_try(round_one, monkeypatch):
    stop_after(4, round_one, monkeypatch)
    for part in sorted((round_one / "data/cache/work").glob("r1-*/parts/*"))[:3]:
        part.unlink()
    with pytest.raises(StoreError, match="is gone"):
        execute.run_stage(round_one, "r1", "generate")
    execute.run_stage(round_one, "r1", "generate")


def test_requests_that_all_fail_are_rows_where_all_may_fail(round_one):
    projects.set_values(round_one, "r1", ["engine.error_rate=1", "engine.max_error_share=1"])
    plan.write(round_one)
    execute.run_stage(round_one, "r1", "generate")
    rows = store.read(round_one, "r1", "responses")
    assert len(rows) == rows["error"].count() == 3 * driving.SOME


def test_requests_that_cannot_succeed_are_asked_again_once_they_can(round_one, monkeypatch):
    with monkeypatch.context() as refusing:
        refusing.setattr(fake._FakePolicy, "sample_columns", lambda *_: None)
        refusing.setattr(fake._FakePolicy, "sample", _refused)
        with pytest.raises(FlywheelError, match="can succeed"):
            execute.run_stage(round_one, "r1", "generate")
    assert not driving.receipts(round_one)
    execute.run_stage(round_one, "r1", "generate")
    assert store.read(round_one, "r1", "responses")["error"].count() == 0


def _refused(self, requests):
    refusal = fake.Completion("", 0, 9, "error", error="longer than the context", permanent=True)
    yield from ((n, refusal) for n in range(len(requests)))


def test_the_seconds_of_a_first_pass_count(round_one, monkeypatch):
    for stage in ("generate", "judge"):
        execute.run_stage(round_one, "r1", stage)
    made, summaries = [], worker._Worker._summaries

    def slow(self, number):
        made.append(number)
        return summaries(self, number).model_copy(update={"seconds": {"run": 1000.0}})

    monkeypatch.setattr(worker._Worker, "_summaries", slow)
    seconds = execute.run_stage(round_one, "r1", "filter").seconds
    assert len(made) > 4
    assert 1000 * len(made) < seconds["run"] < 1000 * (len(made) + 1)
