"""`kill -9` of `flywheel run`, and projects that lie elsewhere."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import faults
import projects
import psutil
import pytest
from typer.testing import CliRunner

from flows import services
from tasks.__main__ import app
from tasks.project import strays
from tasks.views import doctor, record, verify

pytestmark = [pytest.mark.xdist_group("services"), pytest.mark.timeout(900)]


def of_project(root: Path) -> list[psutil.Process]:
    """The processes whose working directory is the project, without this one and its own children."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            mine = os.getpid() in (process.pid, process.ppid())
            if process.cwd() == str(root) and not mine and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def commands(root: Path) -> list[list[str]]:
    """The command lines of the project's processes."""
    found = []
    for process in of_project(root):
        with suppress(psutil.Error):
            found.append(process.cmdline())
    return found


def until(condition, seconds: float = 300):
    """Waits until something is so."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.05)
    return value


@pytest.mark.torture(
    "`kill -9` of `flywheel run` while stages run",
    "its server and stages end, too; the next run makes the bytes of an undisturbed one",
)
def test_a_killed_run_leaves_no_process_and_loses_nothing(made, tries, tmp_path):
    calm = shutil.copytree(made, tmp_path / "calm", symlinks=True)
    environment = projects.own_code(made)
    for variable in ("PREFECT_API_URL", strays.VARIABLE):
        environment.pop(variable, None)
    command = [sys.executable, "-m", "tasks", "run", "r2"]
    for attempt in tries(5):
        limit = f"critique.auto_math.limit={2 + attempt}"  # half a round is stale: no earlier try can have made it
        projects.set_values(made, "r2", [limit])
        with (tmp_path / "output").open("w") as output:
            run = subprocess.Popen(command, cwd=made, env=environment, stdout=output, stderr=output)
        until(lambda run=run: run.poll() is not None or any("stage" in line for line in commands(made)))
        assert run.poll() is None, (tmp_path / "output").read_text()
        time.sleep(random.Random(attempt).uniform(0, 2))
        run.send_signal(signal.SIGKILL)
        run.wait()
        until(lambda: not of_project(made))
        assert strays.find(made) == []
        lock = verify.read_lock(made)
        findings = verify.verify(made, verify.stored_rounds(made, lock), lock).findings
        assert {f.kind for f in findings} <= {"differs from dvc.lock"}, "which runs the stage again"
    done = subprocess.run(command, cwd=made, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    projects.set_values(calm, "r2", [limit])
    with faults.ready("tasks.project.execute", "scipy.stats", "sklearn.linear_model"):
        assert faults.run(calm, projects.run_all) == 0
    assert faults.rows(made) == faults.rows(calm)
    until(lambda: not of_project(made))


STARTS_A_SERVICE = """
import sys, time
from pathlib import Path
from flows import services

command = ["sleep", "60"]
services._spawn(Path(), services.Service("thing", command, lambda: True), stdin=-3)
print("started", flush=True)
time.sleep(60)
"""


def test_the_doctor_names_what_outlived_its_command_and_nothing_else(made, monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    starter = subprocess.Popen([sys.executable, "-c", STARTS_A_SERVICE], cwd=made, stdout=subprocess.PIPE)
    assert starter.stdout.readline()
    assert strays.find(made) == []
    starter.kill()
    starter.wait()
    [stray] = strays.find(made)
    try:
        found = [f for f in doctor.strays(made, None) if f.status == "warn"]
        assert [(f.text.split()[0], f.fix) for f in found] == [(str(stray.pid), f"kill {stray.pid}")]
        assert strays.find(made, services=[stray.pid]) == []
        assert strays.find(made.parent) == []
    finally:
        stray.kill()
    until(lambda: not strays.find(made))


def test_a_server_for_one_command_ends_with_its_standard_input(tmp_path, monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    (tmp_path / ".flywheel").mkdir()
    service = services.prefect_server(tmp_path, services.free_port(), bound=True)
    process, _ = services._spawn(tmp_path, service, stdin=subprocess.PIPE)
    services._wait(tmp_path, service, lambda: process.poll() is None)
    process.stdin.close()
    process.wait(timeout=60)


def test_a_project_that_was_moved_works(made, monkeypatch, tmp_path):
    """Its record, artifacts, queries, comparisons and models."""
    import mlflow

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    record.record(made)
    moved = tmp_path / "some where" / "else"
    moved.parent.mkdir()
    made.rename(moved)
    monkeypatch.chdir(moved)

    def flywheel(*arguments: str) -> str:
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        return done.output

    assert "was up to date" in flywheel("record")
    assert "36" in flywheel("sql", "--format", "csv", "select count(*) from responses where round = 'r1'")
    assert "r1 → r2" in flywheel("diff", "r1", "r2")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{moved / 'mlflow.db'}")
    model = mlflow.artifacts.download_artifacts("models:/arithmetic@champion")
    assert (Path(model) / "MLmodel").is_file()
    runs = mlflow.search_runs(search_all_experiments=True)
    assert all(uri.startswith("dvc:/") for uri in runs["artifact_uri"])
    assert any(mlflow.MlflowClient().list_artifacts(run) for run in runs["run_id"][runs["tags.mlflow.runName"] == "r2"])
    assert str(made).encode() not in (moved / "mlflow.db").read_bytes()
