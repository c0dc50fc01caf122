"""MLflow's database where it is an SQLite file: made, brought up to date and, where it is none, set aside.

MLflow cannot use or repair the database of a process that was killed while it created or migrated the tables, and it does
neither in one transaction. So both are done in a file beside it, which is renamed when it is whole.
"""

import re
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from tasks.core.cache import set_aside
from tasks.core.errors import FlywheelError
from tasks.project import databases

ARTIFACTS = "dvc:///mlruns"
SCHEME = "sqlite:///"
AGAIN = "`flywheel record` makes it again from the manifests"
"""How MLflow's database comes back."""


def sqlite_uri(path: Path) -> str:
    """URI of an SQLite file."""
    return f"{SCHEME}{path.resolve()}"


def sqlite_file(uri: str) -> Path | None:
    """The file of MLflow's store; None where it is a server, or another kind of database."""
    return Path(uri.removeprefix(SCHEME)) if uri.startswith(SCHEME) and uri != SCHEME else None


def damaged_text(path: Path, why: str) -> str:
    """Says that a database is damaged, and what to do."""
    return f"{path} is damaged ({why}): move it away, and {AGAIN}"


def make_usable(path: Path) -> None:
    """Creates the database if it is missing, migrates one of an older MLflow, and sets aside what is none.

    Raises:
        FlywheelError: for a database of a newer MLflow, and one that cannot be migrated, which stays as it was.
    """
    if why := _defect(path):
        aside = set_aside(path)
        print(f"{path}: {why}; set aside as {aside.name}, and made again from the manifests", file=sys.stderr)
    if not path.exists():
        _make(path)
    else:
        _bring_up_to_date(path)


def commit_fast() -> None:
    """Lets SQLite wait for the disk at checkpoints and not at each of the hundred commits a round. A kill loses nothing. A
    power failure may lose the last commits; then the experiment has not the mark of what is remembered, and the next record
    makes them again. A database without a write-ahead log, which somebody else made, could be damaged then, and waits as ever.
    """
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    if not event.contains(Engine, "connect", _wait_at_checkpoints):
        event.listen(Engine, "connect", _wait_at_checkpoints)


def _wait_at_checkpoints(connection: Any, _: Any) -> None:
    if isinstance(connection, sqlite3.Connection) and connection.execute("pragma journal_mode").fetchone()[0] == "wal":
        connection.execute("pragma synchronous = normal")


def make_artifacts_relative(path: Path) -> None:
    """Makes the addresses of artifacts relative to the project, in whose folder `mlruns` they lie. An older version wrote the
    place where the project was then.
    """
    with closing(sqlite3.connect(path)) as connection, connection:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            select = f"select distinct {column} from {table} where {column} like 'file:%'"
            for (uri,) in connection.execute(select).fetchall():
                if old := re.match(r"file:.*/mlruns(?=/|$)", uri):
                    new = ARTIFACTS + uri[old.end() :]
                    connection.execute(f"update {table} set {column} = ? where {column} = ?", (new, uri))


def _defect(path: Path) -> str | None:
    """Why a file is no database of MLflow, or one of which the making was cut off before it held a run."""
    if not path.exists() or (why := databases.damage(path)):
        return why if path.exists() else None
    if not {"alembic_version", "runs"} <= databases.tables(path):
        return "its tables were never finished"
    return None if _revision(path) or _runs(path) else "its tables were never finished"


def _revision(path: Path) -> str | None:
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("select version_num from alembic_version").fetchone()
    return found and str(found[0])


def _runs(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("select count(*) from runs").fetchone()[0])


def _make(path: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    new = _fresh(path)
    SqlAlchemyStore(sqlite_uri(new), ARTIFACTS).engine.dispose()
    _put(new, path)


def _bring_up_to_date(path: Path) -> None:
    """Migrates a database of an older MLflow."""
    from alembic.script import ScriptDirectory
    from mlflow.store.db import utils

    found = _revision(path)
    scripts = ScriptDirectory.from_config(utils._get_alembic_config(""))
    if found == scripts.get_current_head():
        return
    if found not in {script.revision for script in scripts.walk_revisions()}:
        raise FlywheelError(
            f"{path}: its schema {found} is not known to this MLflow, so a newer one made it; install that one, or move the "
            f"file away, and {AGAIN}"
        )
    _migrate(path)


def _migrate(path: Path) -> None:
    from mlflow.store.db import utils
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError

    _close_log(path)
    new = _fresh(path)
    with closing(sqlite3.connect(path)) as old, closing(sqlite3.connect(new)) as copy:
        old.backup(copy)
    engine = create_engine(sqlite_uri(new))
    try:
        utils._upgrade_db(engine)
    except SQLAlchemyError as error:
        line = str(error).split("\n")[0]
        if not _runs(path):  # its making was cut off
            set_aside(path)
            _make(path)
            return
        raise FlywheelError(
            f"{path}: cannot be migrated to the schema of this MLflow ({line}), and is as it was; move it away, and {AGAIN}"
        ) from error
    finally:
        engine.dispose()
    _put(new, path)


def _close_log(path: Path) -> None:
    """Moves the write-ahead log into the file, for a log that stays would be read into the file that takes its place.

    Raises:
        FlywheelError: when another process has the database open.
    """
    with closing(sqlite3.connect(path, timeout=5)) as connection:
        try:
            connection.execute("pragma journal_mode = delete")
        except sqlite3.OperationalError as error:
            raise FlywheelError(
                f"{path}: must be migrated to the schema of this MLflow, but another process has it open ({error}); end it "
                "(`flywheel down`), and try again"
            ) from error


def _fresh(path: Path) -> Path:
    """The file beside it, without what an earlier try left."""
    new = path.with_suffix(".new")
    for leftover in (*path.parent.glob(f"{new.name}*"), *(path.with_name(path.name + s) for s in ("-wal", "-shm"))):
        leftover.unlink(missing_ok=True)
    return new


def _put(new: Path, path: Path) -> None:
    with closing(sqlite3.connect(new)) as connection:
        # Persistent: commits take a fifth of the time, and the UI can read meanwhile.
        connection.execute("pragma journal_mode = wal")
    new.replace(path)
