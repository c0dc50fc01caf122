"""Answers of workers on several machines: a journal for each piece, and a cache that they share."""

import multiprocessing
import shutil
import sqlite3

import driving
import projects
import pytest

from tasks.core import cache, objects, store, tables
from tasks.core.cache import JOURNAL, RequestCache, journalled, key
from tasks.core.errors import CheckFailed
from tasks.engines import transformers
from tasks.project import execute, pieces, plan
from tasks.where.here import Here


@pytest.fixture
def machines(monkeypatch):
    """This process is a worker among those of several machines."""
    monkeypatch.setattr(cache, "_over_machines", True)


def test_what_was_answered_before_a_machine_was_lost_is_read_first(tmp_path):
    place, answers = objects.place(tmp_path), {key(n): f"answer {n}" for n in range(5)}
    with pytest.raises(KeyboardInterrupt), journalled(place, "journal/7"):
        RequestCache(JOURNAL).put(answers)
        raise KeyboardInterrupt
    with journalled(place, "journal/70"):
        assert not RequestCache(JOURNAL).get(answers)
    with journalled(place, "journal/7"):
        assert RequestCache(JOURNAL).get([*answers, key("another")]) == answers
        RequestCache(JOURNAL).put({key(9): "more"})
    assert not place.names()  # its piece has a receipt


def test_a_batch_is_in_the_journal_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "FLUSH", 0.0)
    place = objects.place(tmp_path)
    with pytest.raises(KeyboardInterrupt), journalled(place, "journal/1"):
        for batch in range(3):
            RequestCache(JOURNAL).put({key(batch, n): n for n in range(4)})
        raise KeyboardInterrupt
    names = place.names()
    assert len(names) == 3
    place.delete(names[0])
    with pytest.raises(KeyboardInterrupt), journalled(place, "journal/1"):
        known = [len(RequestCache(JOURNAL).get([key(batch, n) for n in range(4)])) for batch in range(3)]
        raise KeyboardInterrupt
    assert sorted(known) == [0, 4, 4]


def _fill(folder, first: int) -> None:
    cache.over_machines(True)
    answers = RequestCache(folder)
    for n in range(first, first + 50):
        answers.put({key(n): n})
    answers.close()


def test_workers_share_a_cache_that_needs_no_memory_in_common(tmp_path, machines):
    writers = [multiprocessing.get_context("spawn").Process(target=_fill, args=(tmp_path, n)) for n in (0, 50)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(RequestCache(tmp_path).get([key(n) for n in range(100)])) == 100
    with sqlite3.connect(tmp_path / cache.SHARED) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert not (tmp_path / cache.FILE).exists()


def test_a_piece_that_is_done_again_asks_the_model_nothing(round_one, monkeypatch, machines):
    driving.fill(round_one, 30)
    shutil.rmtree(round_one / "data/base")
    shutil.copytree(projects.HERE / "data/base", round_one / "data/base")
    projects.rewrite(
        round_one,
        lambda c: c["bases"]["r0"].update({"engine": {"strategy": "transformers", "threads": 1, "device": "cpu"}}),
    )
    monkeypatch.setattr(pieces, "MAX_PROMPTS", 10)
    monkeypatch.setattr(pieces, "MAX_ROWS", 10)
    monkeypatch.setattr(pieces, "IDS_PER_PIECE", 2)
    monkeypatch.setattr(Here, "over_machines", True)
    plan.write(round_one)
    execute.run_stage(round_one, "r0", "base")
    with monkeypatch.context() as broken:
        broken.setitem(tables.responses.checks, "late", "prompt_id is null")
        with pytest.raises(CheckFailed):
            execute.run_stage(round_one, "r1", "generate")
    journals = list((round_one / "data/cache/work").glob("r1-generate-*/journal/*/*"))
    assert len(journals) == 1
    asked, decode = [], transformers.decode
    monkeypatch.setattr(transformers, "decode", lambda *given: asked.append(given) or decode(*given))
    made = execute.run_stage(round_one, "r1", "generate")
    assert made.tokens["requests"] == 90
    assert len(asked) == len(made.outputs["responses"].parts) - 1
    assert not (round_one / "data/cache/requests").exists()
    assert store.read(round_one, "r1", "responses")["error"].null_count() == 90
