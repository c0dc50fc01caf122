"""A disk without room: one message, no traceback, nothing old lost, and all goes on when there is room again."""

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import faults
import projects
import pytest

from tasks.core import store
from tasks.core.errors import StoreError
from tasks.project.execute import run_stage
from tasks.project.params import load_params, stages_of
from tasks.views.record import _connection


@pytest.fixture
def disk(tmp_path):
    with faults.small_disk(tmp_path / "disk", 64) as place:
        yield place


@pytest.fixture
def made(disk, campaign, monkeypatch):
    """A copy of the campaign on the small disk."""
    shutil.copytree(campaign, disk / "project", symlinks=True)
    monkeypatch.chdir(disk / "project")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return disk / "project"


@pytest.mark.torture(
    "a full disk while a stage runs", "a message that says so; the old version; all is made once there is room"
)
def test_a_stage(made, disk, tmp_path, tries):
    blocks = load_params(made).blocks
    stages = [(name, stage.name) for name, block in blocks.items() for stage in stages_of(block)]
    before, failures = faults.rows(made), 0
    with faults.ready("tasks.project.execute", "pyarrow.parquet", "scipy.stats", "sklearn.linear_model"):
        for attempt in tries(60):
            chance = random.Random(attempt)
            name, stage = chance.choice(stages)
            with faults.room_for(disk, int(2 ** chance.uniform(10, 17))):
                code = faults.run(made, run_stage, Path(), name, stage, output=tmp_path / "output")
            output = (tmp_path / "output").read_text()
            assert code in (0, 1) and "Traceback" not in output, output
            assert code == 0 or "full" in output or "No space left" in output, output
            failures += code
            assert faults.rows(made) == before, f"{stage}@{name}, try {attempt}"
            faults.check_files(made, *blocks)
    assert failures
    assert faults.run(made, run_stage, Path(), "r1", "train") == 0


def test_a_train_that_copies_its_parents_model(disk):
    """Python's `copytree` collects what failed in one error, which has no number."""
    parent = disk / "parent"
    parent.mkdir()
    (parent / "model.safetensors").write_bytes(bytes(4_000_000))
    with faults.room_for(disk, 3_000_000):
        with pytest.raises(StoreError, match="the disk is full .*Nothing already made is lost"):
            with store.writing(disk, "r1", "train") as draft:
                shutil.copytree(parent, draft.folder("model"), dirs_exist_ok=True)


def flywheel(root, *arguments):
    """Runs a command by a project's own code."""
    command = [sys.executable, "-m", "tasks", *arguments]
    env = {k: v for k, v in projects.own_code(root).items() if k != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)


def test_python_keeps_no_compiled_code_where_there_is_little_room(disk, tmp_path):
    for place, kept in ((disk, False), (tmp_path, True)):
        root = projects.make(place / "project", git=False)
        assert flywheel(root, "recipes").returncode == 0
        assert bool(list((root / "tasks").rglob("*/__pycache__/*.pyc"))) is kept


@pytest.mark.parametrize(("module", "command"), [("project/recipes", "recipes"), ("filter/threshold", "schema")])
def test_compiled_code_that_was_cut_short_is_removed(tmp_path, module, command):
    """Python 3.11 keeps it where the disk is full while it imports, and fails at every later import."""
    root = projects.make(tmp_path / "project", git=False)
    arguments = [command, *(["--recipe"] if command == "schema" else [])]
    assert flywheel(root, *arguments).returncode == 0
    folder, name = module.split("/")
    [compiled] = (root / f"tasks/{folder}/__pycache__").glob(f"{name}.*.pyc")
    os.truncate(compiled, compiled.stat().st_size // 2)
    done = flywheel(root, *arguments)
    assert done.returncode == 75, done.stderr
    assert str(compiled.relative_to(root)) in done.stderr
    assert done.stderr.count("\n") == 1
    assert not compiled.exists()
    assert flywheel(root, *arguments).returncode == 0


@pytest.mark.torture(
    "a full disk while MLflow's database is made or written",
    "a message that says so, and no half-made one; all is recorded once there is room",
)
def test_mlflow(disk, tmp_path, tries, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root, output, full = disk / "project", tmp_path / "output", 0
    root.mkdir()
    with faults.ready("tasks.views.record", "mlflow.store.tracking.sqlalchemy_store", "mlflow.store.db.utils"):
        for attempt in tries(40):
            chance = random.Random(attempt)
            if made := chance.random() < 0.5:
                for file in root.glob("mlflow.*"):
                    file.unlink()
            with faults.room_for(disk, int(2 ** chance.uniform(10, 21 if made else 16))):
                code = faults.run(root, log_a_run, attempt, output=output)
            text = output.read_text()
            assert code in (0, 1) and "Traceback" not in text, text
            assert code == 0 or "Free some disk space" in text or "No space left" in text, text
            full += code
            assert faults.run(root, log_a_run, attempt, output=output) == 0, output.read_text()
            assert f"run {attempt}" in runs(root / "mlflow.db")
            assert not list(root.glob("*.damaged"))
    assert full


def log_a_run(attempt):
    """Logs a run as `record` does, with a thousand metrics."""
    from mlflow.entities import Metric

    with _connection.clear_errors(_connection.tracking_uri(Path())):
        client = _connection.connect(Path())
        run = client.create_run("0", run_name=f"run {attempt}").info.run_id
        client.log_batch(run, [Metric(f"m{n}", n, 0, 0) for n in range(1000)])
        client.set_terminated(run)


def runs(path):
    """Names of the runs that are complete."""
    with closing(sqlite3.connect(path)) as connection:
        return {name for (name,) in connection.execute("select name from runs where status = 'FINISHED'")}
