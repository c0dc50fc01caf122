"""MLflow's server down at the start, in the middle and at the end: nothing fails, and nothing is recorded twice."""

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import httpx
import pytest
import synthetic
from typer.testing import CliRunner

from tasks.__main__ import app
from tasks.project import champion as champions
from tasks.views import record
from tasks.views._dvc_addresses import PROJECT
from tasks.views.record import _connection, _runs

PLAN = synthetic.pipeline("r1")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A project with a base and a round, whose MLflow is a server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(record, "load_params", lambda root: PLAN)
    monkeypatch.setattr(champions, "plans", synthetic.plans)
    monkeypatch.setattr(_runs, "figures", lambda *_: [])
    monkeypatch.setenv(PROJECT, str(tmp_path))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    record.prepare(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    for name in ("r0", "r1"):
        synthetic.make(tmp_path, PLAN, name)
    return tmp_path


@contextmanager
def server(root):
    """MLflow's own server on the project's database; yields a function that kills it."""
    uri = os.environ["MLFLOW_TRACKING_URI"]
    place = root / "server"
    place.mkdir(exist_ok=True)
    env = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_TRACKING_URI": ""}
    command = [sys.executable, "-m", "mlflow", "server", "--port", uri.rpartition(":")[2], "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{root / 'mlflow.db'}", "--artifacts-destination", str(place)]
    with (place / "log").open("ab") as log:
        process = subprocess.Popen(command, cwd=place, env=env, stdout=log, stderr=log, start_new_session=True)

    def kill():
        os.killpg(process.pid, 9)
        process.wait()

    try:
        end = time.monotonic() + 120
        while not _answers(uri):
            assert process.poll() is None and time.monotonic() < end, (place / "log").read_text()
            time.sleep(0.2)
        yield kill
    finally:
        if process.poll() is None:
            kill()


def _answers(uri):
    try:
        return httpx.get(f"{uri}/health").status_code == 200
    except httpx.TransportError:
        return False


def test_what_was_missed_is_recorded_once(root, monkeypatch):
    assert "does not answer" in record.record(root), "at the start: no exception"
    with pytest.raises(record.Unreachable):
        record.record(root, strict=True)

    with server(root) as kill:
        left, end = [8], _runs.Recorder._end

        def dying(self, run, finished):
            left[0] -= 1
            if not left[0]:
                kill()
            end(self, run, finished)

        with monkeypatch.context() as patch:
            patch.setattr(_runs.Recorder, "_end", dying)
            assert "does not answer" in record.record(root, move_alias=False), "in the middle"

    with server(root):
        assert "champion is r1, version 2" in record.record(root)
        assert "was up to date" in record.record(root)
        client = _connection.connect(root)
        experiment = client.get_experiment_by_name("toy").experiment_id
        runs = client.search_runs([experiment])
        names = [r.info.run_name for r in runs]
        assert len(names) == len(set(names)) == 1 + 2 + 1 + 10 and {r.info.status for r in runs} == {"FINISHED"}
        assert sorted(v.tags["round"] for v in client.search_model_versions("name = 'toy'")) == ["r0", "r1"]
        models = client.search_logged_models([experiment])
        assert sorted(m.name for m in models) == ["r0", "r1"]
        [curve] = [r.info.run_id for r in runs if r.info.run_name == "train@r1"]
        assert len(client.get_metric_history(curve, "sft/loss")) == 50
        traces = client.search_traces(locations=[experiment], include_spans=False)
        changed = {t.info.tags["item"] for t in traces}
        assert len(traces) == len(changed) > 10 and {t.info.tags["change"] for t in traces} == {"won"}
        assert {len(t.info.assessments) for t in traces} == {3}

    assert "does not answer" in record.record(root), "at the end"
    shutil.rmtree(root / "server")


def test_a_strict_run_fails_where_nothing_answers(made, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert CliRunner().invoke(app, ["run", "r1"]).exit_code == 0
    assert isinstance(CliRunner().invoke(app, ["run", "r1", "--strict"]).exception, record.Unreachable)
