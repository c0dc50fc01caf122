"""A record asks MLflow about what is new, however many rounds were recorded before; about others where one asks for it."""

import functools
import inspect
import shutil
import sqlite3
from collections import Counter
from contextlib import closing

import pytest
import synthetic

from tasks.core.errors import UnknownName
from tasks.project import champion as champions
from tasks.project import freshness
from tasks.views import _page_data, record
from tasks.views._dvc_addresses import PROJECT
from tasks.views.record import _connection, _memory, _runs

pytestmark = pytest.mark.xdist_group("mlflow")
PLAN = synthetic.pipeline("r1", "r2", "r3")
TRACES = {"start_trace", "log_spans", "search_traces", "add_items_to_review_queue", "list_review_queues"}
"""Calls of which a round needs as many as it has items that changed."""
CHAMPION = {"get_registered_model", "set_registered_model_alias"}
"""Calls that depend on whether it is champion."""


def _patch(patch, root):
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    patch.setenv(PROJECT, str(root))
    patch.setattr(record, "load_params", lambda root: PLAN)
    patch.setattr(champions, "plans", synthetic.plans)
    patch.setattr(_runs, "figures", lambda *_: [])


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A project of which the base and a round were recorded. Not to be changed: `root` is a copy."""
    root = tmp_path_factory.mktemp("recorded")
    with pytest.MonkeyPatch.context() as patch:
        _patch(patch, root)
        for name in ("r0", "r1"):
            synthetic.make(root, PLAN, name)
            record.record(root)
    with closing(sqlite3.connect(root / "mlflow.db")) as connection:
        connection.execute("pragma wal_checkpoint(truncate)")
    return root


@pytest.fixture
def root(recorded, tmp_path, monkeypatch):
    """A copy of it."""
    _patch(monkeypatch, tmp_path)
    shutil.copytree(recorded, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("mlflow.db-*"))
    return tmp_path


@pytest.fixture
def calls(root, monkeypatch):
    """The calls of MLflow's stores, each with its arguments as text."""
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Registry
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as Tracking

    made, within = [], []

    def watched(name, function):
        @functools.wraps(function)
        def call(self, *args, **kwargs):
            if not within:
                made.append((name, repr((args, kwargs))))
            within.append(name)
            try:
                return function(self, *args, **kwargs)
            finally:
                within.pop()

        return call

    for kind in (Tracking, Registry):
        for name, function in inspect.getmembers(kind, inspect.isfunction):
            if not name.startswith("_"):
                monkeypatch.setattr(kind, name, watched(name, function))
    return made


def book(root):
    client = _connection.connect(root)
    experiment = client.get_experiment_by_name("toy").experiment_id
    return client, client.search_runs([experiment]), client.search_logged_models([experiment])


def test_old_rounds_cause_no_calls(root, calls):
    counted = {}
    for name in ("r2", "r3"):
        _, runs, models = book(root)
        old = [run.info.run_id for run in runs] + [model.model_id for model in models]
        synthetic.make(root, PLAN, name)
        calls.clear()
        assert "1 run, 10 stages, 1 version" in record.record(root)
        assert not [call for call in calls if any(id in call[1] for id in old)]
        counted[name] = Counter(call for call, _ in calls if call not in TRACES | CHAMPION)
    assert counted["r2"] == counted["r3"]
    assert counted["r3"]["create_run"] == 1 + 10

    calls.clear()
    assert "was up to date" in record.record(root)
    assert len(calls) < 15 and not {name for name, _ in calls if name.startswith(("log", "create", "set"))}


def test_what_is_remembered_may_be_deleted(root, calls):
    (root / _memory.FILE).unlink()
    assert "was up to date" in record.record(root)
    assert not {name for name, _ in calls if name.startswith(("log_batch", "create"))}


def test_one_plan_of_all_rounds_serves_a_whole_record(root, monkeypatch):
    """Also the page of the rounds."""
    synthetic.make(root, PLAN, "r2")
    made = []
    monkeypatch.setattr(champions, "plans", lambda *a: made.append(a) or synthetic.plans(*a))
    for module in (freshness, _page_data):
        monkeypatch.setattr(module, "plans", lambda *_: pytest.fail("planned again"))
    record.record(root)
    assert len(made) == 1


def test_a_run_that_somebody_deleted_is_made_again_where_one_asks_for_it(root):
    client, runs, _ = book(root)
    [deleted] = [run.info.run_id for run in runs if run.info.run_name == "r1"]
    client.delete_run(deleted)
    assert "was up to date" in record.record(root)
    assert "1 run, 10 stages" in record.record(root, again=["r1"])
    in_force = [r.info.run_name for r in book(root)[1] if "superseded_by" not in r.data.tags]
    assert sorted(in_force) == sorted(set(in_force)) and {"r1", "train@r1"} < set(in_force)
    assert "was up to date" in record.record(root, again=["r1"])
    with pytest.raises(UnknownName, match="did you mean"):
        record.record(root, again=["r11"])


def test_a_stage_s_run_that_somebody_deleted_is_made_again(root):
    client, runs, _ = book(root)
    client.delete_run(next(run.info.run_id for run in runs if run.info.run_name == "train@r1"))
    assert "1 stage new" in record.record(root, again=["r1"])
    assert len(book(root)[1]) == len(runs)
