"""Commits to MLflow's database wait for the disk where a power failure would damage it else."""

import sqlite3
from contextlib import closing

import pytest
from sqlalchemy import create_engine

from tasks.views.record import _database

FULL, NORMAL = 2, 1


@pytest.mark.parametrize(("journal", "waits"), [("wal", NORMAL), ("delete", FULL)])
def test_only_a_database_with_a_write_ahead_log_waits_less(tmp_path, journal, waits):
    path = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"pragma journal_mode = {journal}")
        connection.execute("create table t (x)")
    _database.commit_fast()
    engine = create_engine(_database.sqlite_uri(path))
    with engine.connect() as connection:
        assert connection.exec_driver_sql("pragma synchronous").scalar() == waits
    engine.dispose()
