"""`kill -9` of what writes outside the rounds: MLflow's database, a person's decision, labels; and databases that are none."""

import random
import sqlite3
from contextlib import closing
from pathlib import Path

import faults
import pytest

from tasks.core import labels
from tasks.project import champion
from tasks.project.databases import damage
from tasks.project.labels import file_of, write
from tasks.views import record
from tasks.views.record import _connection, _database


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with faults.ready("tasks.views.record", "mlflow.store.tracking.sqlalchemy_store", "mlflow.store.db.utils"):
        yield


@pytest.mark.torture("`kill -9` while mlflow.db is first made", "none, or a whole one; the next command makes it")
def test_a_killed_making_of_mlflows_database(tmp_path, tries, server):
    seconds = faults.duration(tmp_path, record.prepare, Path())
    for attempt in tries(20):
        for file in tmp_path.glob("mlflow*"):
            file.unlink()
        faults.killed(random.Random(attempt).uniform(0, seconds), tmp_path, record.prepare, Path())
        assert faults.run(tmp_path, record.prepare, Path()) == 0
        with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
            assert connection.execute("select count(*) from experiments").fetchone()


@pytest.mark.torture("`kill -9` while an older mlflow.db is migrated", "the old schema or the new one, and every run")
def test_a_killed_migration_of_mlflows_database(tmp_path, tries, server):
    old = tmp_path / "old.db"
    assert faults.run(tmp_path, make_older, old) == 0
    for attempt in tries(20):
        for file in tmp_path.glob("mlflow*"):
            file.unlink()
        (tmp_path / "mlflow.db").write_bytes(old.read_bytes())
        faults.killed(random.Random(attempt).uniform(0, 1.5), tmp_path, record.prepare, Path())
        assert names(tmp_path / "mlflow.db") == {"kept"}
        assert faults.run(tmp_path, record.prepare, Path()) == 0
        assert names(tmp_path / "mlflow.db") == {"kept"}


def make_older(path):
    """A database as an MLflow of some migrations ago left it, with a run."""
    from alembic import command
    from mlflow.store.db import utils
    from sqlalchemy import create_engine

    engine = create_engine(f"sqlite:///{path}")
    config = utils._get_alembic_config(str(engine.url))
    with engine.begin() as connection:
        utils.InitialBase.metadata.create_all(connection)
        config.attributes["connection"] = connection
        command.upgrade(config, "0584bdc529eb")
        connection.exec_driver_sql(
            "insert into runs (run_uuid, name, lifecycle_stage, experiment_id) values ('1', 'kept', 'active', 0)"
        )
    engine.dispose()


def names(path):
    with closing(sqlite3.connect(path)) as connection:
        return {name for (name,) in connection.execute("select name from runs")}


@pytest.mark.torture(
    "`kill -9` of `record` and `promote`",
    "a whole decision, and a record of which the next one completes what is missing: each result once",
)
def test_killed_records_and_promotions(made, tries, server, monkeypatch):
    for attempt in tries(20):
        chance = random.Random(attempt)
        name = chance.choice(["r0", "r1", "r2"])
        work = (record.promote, Path(), name) if chance.random() < 0.5 else (record.record, Path())
        before = champion.decision(made)
        faults.killed(chance.uniform(0, 6), made, *work)
        decided = champion.decision(made)
        assert decided == before or decided.round == name
    assert faults.run(made, record.promote, Path(), "r1") == 0
    client = _connection.connect(made)
    [experiment] = [e for e in client.search_experiments() if e.name != "Default"]
    runs = [r for r in client.search_runs([experiment.experiment_id], max_results=1000) if r.info.status == "FINISHED"]
    digests = [(r.info.run_name, r.data.tags.get("digest"), r.data.tags.get("mlflow.parentRunId")) for r in runs]
    assert len(digests) == len(set(digests))
    assert {r.info.run_name for r in runs} >= {"r0", "r1", "r2", "generate@r1"}
    assert client.get_model_version_by_alias(experiment.name, "champion").tags["round"] == "r1"


@pytest.mark.parametrize("content", [b"", b"no database at all" * 400, None])
def test_a_database_that_is_none_is_set_aside_and_made_again(tmp_path, monkeypatch, capsys, content):
    """Empty, of another kind, or cut off while its tables were made in place."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    path = tmp_path / "mlflow.db"
    if content is None:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("create table experiments (experiment_id integer)")
    else:
        path.write_bytes(content)
    record.prepare(tmp_path)
    assert "set aside as mlflow.db.damaged" in capsys.readouterr().err
    assert (tmp_path / "mlflow.db.damaged").exists()
    assert _connection.connect(tmp_path).search_experiments()


def test_a_damaged_page_is_told_by_name_and_no_round_fails_for_it(made, server):
    assert faults.run(made, record.prepare, Path()) == 0
    path = made / "mlflow.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("pragma wal_checkpoint(truncate)")
        [page] = connection.execute("select rootpage from sqlite_master where name = 'experiments'").fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    assert damage(path, every_page=True)
    text = record.record(made)
    assert "mlflow.db is damaged" in text and "move it away" in text


def test_a_database_of_a_newer_mlflow_is_refused_by_name_and_left_as_it_is(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    record.prepare(tmp_path)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        connection.execute("update alembic_version set version_num = 'ffffffffffff'")
        connection.commit()
    with pytest.raises(_connection.FlywheelError, match=r"mlflow\.db: its schema ffffffffffff .* newer one made it"):
        record.prepare(tmp_path)
    assert _database._revision(tmp_path / "mlflow.db") == "ffffffffffff"


def test_a_log_that_is_left_of_a_removed_database_is_not_read_into_the_next(tmp_path, server):
    assert faults.run(tmp_path, record.prepare, Path()) == 0
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        connection.execute("insert into experiments (name, lifecycle_stage) values ('old', 'active')")
        connection.commit()
        log = (tmp_path / "mlflow.db-wal").read_bytes()
    (tmp_path / "mlflow.db").unlink()
    (tmp_path / "mlflow.db-wal").write_bytes(log)
    assert faults.run(tmp_path, record.prepare, Path()) == 0
    assert damage(tmp_path / "mlflow.db", every_page=True) is None
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        assert connection.execute("select name from experiments").fetchall() == [("Default",)]


def test_artifacts_of_an_older_record_are_found_where_the_project_lies_now(tmp_path, server):
    """An older version wrote the project's place into the addresses."""
    old, place = tmp_path / "mlruns-of-mine" / "old", tmp_path / "new"
    old.mkdir(parents=True)
    assert faults.run(old, log_an_artifact, old) == 0
    assert old.as_uri() in locations(old / "mlflow.db")["experiments"]
    old.rename(place)
    assert faults.run(place, read_the_artifact) == 0
    found = locations(place / "mlflow.db")
    assert "dvc:///mlruns" in found["experiments"] and old.as_uri() not in found["experiments"] + found["runs"]


def log_an_artifact(old):
    """As an older version recorded it."""
    client = _connection.connect(Path())
    experiment = client.create_experiment("mine", (old / "mlruns").as_uri())
    client.log_text(client.create_run(experiment, run_name="r1").info.run_id, "a page", "page.html")


def read_the_artifact():
    from mlflow.artifacts import load_text

    client = _connection.connect(Path())
    [run] = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    with _connection.project_of(Path()):
        assert load_text(f"{run.info.artifact_uri}/page.html") == "a page"


def locations(path):
    """Every address of artifacts, by table."""
    with closing(sqlite3.connect(path)) as connection:
        return {
            table: str(connection.execute(f"select {column} from {table}").fetchall())
            for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri"))
        }


@pytest.mark.torture("`kill -9` while labels are stored", "every label but the last one, each line whole")
def test_killed_labels(tmp_path, tries):
    kept = 0
    with faults.ready("tasks.project.labels"):
        seconds = faults.duration(tmp_path, put_labels, Path(), -1)
        for attempt in tries(100):
            faults.killed(random.Random(attempt).uniform(0, seconds), tmp_path, put_labels, Path(), attempt)
            stored = labels.read(file_of(tmp_path, "Ada"))
            assert len(stored) >= kept
            told = (tmp_path / "told").read_text().split()
            assert {label.id for label in stored} >= set(told)
            kept = len(stored)


def put_labels(root, attempt):
    """Stores twenty labels, and tells each that is stored."""
    for n in range(20):
        row = {"round": "r1", "source": "responses", "id": f"{attempt}-{n}", "prompt_id": None}
        write(root, "Ada", **row, digest="d", label="right", note="as it should be")
        with (root / "told").open("a") as told:
            told.write(f"{row['id']}\n")
