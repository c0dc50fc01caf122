"""Reading beside a process that commits one version after the other: no false alarm, and never half of each."""

import multiprocessing
import time
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import polars as pl
import pytest
import synthetic
from filelock import FileLock

from tasks.core import store
from tasks.core.errors import Busy, StoreError
from tasks.core.frames import frame
from tasks.core.plan import Plan
from tasks.core.tables import TABLES
from tasks.project import champion, freshness
from tasks.views import boards, catalog, doctor, record, report, trace

ROUND = synthetic.block("r1", "r0")
ROWS = 2000
SECONDS, PAUSE = 3.0, 0.2


def commit(root: Path, version: int) -> None:
    """One version of a stage's two tables and a folder, each of which says which version it is."""
    prompt = [{"role": "user", "content": f"version {version}"}]
    ids = [f"{version}-{n}" for n in range(ROWS)]
    rows = {
        "training": [
            {"id": i, "prompt": prompt, "completion": prompt, "source": "responses", "weight": 1.0} for i in ids
        ]
    }
    rows["preferences"] = [
        {"id": i, "chosen": prompt, "rejected": [], "weight": 1.0, "smoothing": 0.0} for i in ids[: 3 + version % 2]
    ]
    with store.writing(root, "r1", "collect") as draft:
        for name, table in rows.items():
            draft.table(TABLES[name], frame(TABLES[name], table))
        (draft.folder("model") / "weights").write_text(str(version) * (1 + version % 3))
        draft.describe_folder("model")
        blank = {"inputs": {}, "versions": {}, "metrics": {"version": version}, "tokens": {}, "seconds": {}}
        plan = Plan(round="r1", stage="collect")
        draft.commit(
            store.Manifest(
                round="r1", stage="collect", plan=plan, outputs=draft.outputs, started="", finished="", **blank
            )
        )


def commit_on(root: Path, stop) -> None:
    version = 0
    while not stop.is_set():
        version += 1
        commit(root, version)
        time.sleep(PAUSE)


@contextmanager
def writer(root: Path):
    """A process that commits versions until the block ends; it must not have met anything odd, such as Busy."""
    fork = multiprocessing.get_context("forkserver")
    stop = fork.Event()
    process = fork.Process(target=commit_on, args=(root, stop))
    commit(root, 0)
    process.start()
    try:
        while store.manifests(root, "r1")["collect"].metrics["version"] == 0:
            time.sleep(0.01)
        yield
    finally:
        stop.set()
        process.join()
    assert process.exitcode == 0, "the writer failed"


def versions(texts) -> set[str]:
    return {str(text).partition("-")[0] for text in texts}


def read_on(read) -> int:
    """Calls `read` for some seconds; gives how many versions it saw."""
    seen, end = set(), time.monotonic() + SECONDS
    while time.monotonic() < end:
        version = read()
        assert len(version) == 1, version
        seen |= version
    return len(seen)


def test_tables_and_folders_are_read_whole(tmp_path):
    def read():
        rows = store.read(tmp_path, "r1", "training")
        assert rows.height == ROWS
        assert store.folder(tmp_path, "r1", "model")[0].name == "model"
        return versions(rows["id"])

    with writer(tmp_path):
        assert read_on(read) > 2


def test_sql_sees_one_version_of_all_tables(tmp_path):
    (tmp_path / "params.yaml").write_text("bases: {}")
    sql = """select id from training union all select id from preferences
             union all select cast(value as int)::varchar from metrics where name = 'version'"""
    with writer(tmp_path):
        assert read_on(lambda: versions(catalog.query(tmp_path, sql)["id"].to_pylist())) > 2


def test_views_a_trace_and_the_doctor_find_nothing_broken(tmp_path):
    (tmp_path / "params.yaml").write_text("bases: {}")

    def read():
        catalog.write_views(tmp_path, tmp_path / "views.duckdb")
        steps = catalog.consistently(tmp_path, lambda: _first_trace(tmp_path))
        assert [f.text for f in doctor.results(tmp_path, None) if f.status == "broken"] == []
        return versions(row["id"] for table, row in steps if table != "rounds")

    with writer(tmp_path):
        assert read_on(read) > 1


def _first_trace(root: Path):
    con = catalog.connect(root)
    id = con.sql("select id from training limit 1").fetchall()[0][0]
    return trace.trace(con, id)


def test_record_and_report_beside_a_stage_that_commits(tmp_path, monkeypatch):
    pipeline = synthetic.pipeline("r1")
    for module in (record, report, boards):
        monkeypatch.setattr(module, "load_params", lambda root: pipeline)
    for module in (champion, freshness):
        monkeypatch.setattr(module, "plans", synthetic.plans)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    record.prepare(tmp_path)
    synthetic.make(tmp_path, pipeline, "r0")
    evaluate = next(s for s in champion.stages_of(pipeline.block("r0")) if s.name == "evaluate")
    done = []

    def rewrite():
        while not done:
            synthetic.write(tmp_path, pipeline.block("r0"), evaluate, minute=len(done))

    thread = Thread(target=rewrite)
    thread.start()
    try:
        for _ in range(5):
            record.record(tmp_path)
            assert "r0" in boards.overview(tmp_path)
    finally:
        done.append(True)
        thread.join()


# What is corruption, and what is not


def test_damage_that_nobody_mends_is_told_at_once(tmp_path):
    commit(tmp_path, 1)
    (tmp_path / "data/round=r1/model/weights").write_text("22")
    start = time.monotonic()
    with pytest.raises(StoreError, match="sha256"):
        store.folder(tmp_path, "r1", "model")
    assert time.monotonic() - start < store.PATIENCE / 2


def test_an_unchanging_mess_ends_the_patience(tmp_path):
    commit(tmp_path, 1)
    (tmp_path / "data/round=r1/model/weights").write_text("2")
    staging = tmp_path / "data/round=r1/.staging/collect"
    (staging / "ready").mkdir()
    with FileLock(staging / "lock"), pytest.raises(ZeroDivisionError):
        store.steady(tmp_path, ["r1"], lambda: 1 // 0, patience=0.1)


def test_it_is_read_again_when_a_version_was_committed_meanwhile(tmp_path):
    commit(tmp_path, 1)
    calls = []

    def attempt():
        calls.append(len(calls))
        if len(calls) < 3:
            commit(tmp_path, len(calls) + 1)
            raise StoreError("torn")
        return "whole"

    assert store.steady(tmp_path, ["r1"], attempt) == "whole"
    assert calls == [0, 1, 2]


def test_a_reader_does_not_wait_for_the_next_run_of_a_stage(tmp_path, monkeypatch):
    """What was ready is in place; the lock is held by a run that takes hours."""
    commit(tmp_path, 1)
    staging = tmp_path / "data/round=r1/.staging/collect"
    (staging / "ready").mkdir()
    with store.FileLock(staging / "lock"):
        thread = Thread(target=store.recover, args=(tmp_path / "data/round=r1",))
        thread.start()
        (staging / "ready").rmdir()
        thread.join(5)
        assert not thread.is_alive()
        with pytest.raises(Busy), store.writing(tmp_path, "r1", "collect"):
            pass


def test_a_table_that_was_never_written_is_missing(tmp_path):
    with pytest.raises(StoreError, match="flywheel run r1"):
        store.read(tmp_path, "r1", "training")
    commit(tmp_path, 1)
    assert isinstance(store.read(tmp_path, "r1", "preferences"), pl.DataFrame)
