"""A disk without room: one message, no traceback, nothing old lost, and all goes on when there is room again."""

import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import faults
import projects
import pytest

from tasks.core import store
from tasks.core.errors import StoreError
from tasks.project.execute import run_stage
from tasks.project.params import load_params, stages_of
from tasks.views import record


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


@pytest.mark.torture(
    "a full disk while MLflow's database is made or written",
    "a message that says so, no failed round; the next `record` completes it",
)
def test_mlflow(made, disk, tmp_path, tries):
    with faults.ready("tasks.views.record", "mlflow.store.tracking.sqlalchemy_store"):
        assert faults.run(made, record.record, Path()) == 0
        whole, told = runs(made), []
        for attempt in tries(20):
            chance = random.Random(attempt)
            if chance.random() < 0.7:
                for file in made.glob("mlflow.*"):
                    file.unlink()
            projects.set_exam(made, "gate", "improves", alpha=0.01 + attempt / 1000)
            with faults.room_for(disk, int(2 ** chance.uniform(12, 22))):
                code = faults.run(made, show_record, output=tmp_path / "output")
            told.append((tmp_path / "output").read_text())
            assert code in (0, 1) and "Traceback" not in told[-1], told[-1]
            assert faults.run(made, record.record, Path()) == 0
            assert runs(made) >= whole
    assert any("Free some disk space" in text or "No space left" in text for text in told), told


def show_record():
    """What `flywheel record` prints."""
    print(record.record(Path()))


def runs(root):
    """Names of the runs that MLflow has."""
    with closing(sqlite3.connect(root / "mlflow.db")) as connection:
        return {name for (name,) in connection.execute("select name from runs where status = 'FINISHED'")}
