"""Connection to MLflow's store: its address, its client, the local database, and errors as one message.

The default store is mlflow.db at the project's root, with artifacts in mlruns/. Its addresses are relative to the project
(`dvc:///mlruns/…`), so the project's folder may be moved.
"""

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tasks.core.errors import FlywheelError, masked
from tasks.project.edit import lock
from tasks.views._dvc_addresses import PROJECT

DATABASE = "mlflow.db"
ARTIFACTS = "dvc:///mlruns"
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Environment variables that are set unless the user sets them."""
BACKENDS = ("mlflow", "sqlalchemy", "sqlite3", "requests", "urllib3", "botocore", "boto3")
"""Packages whose exceptions are MLflow's: its own, its store's, and its artifacts'."""


class Unreachable(FlywheelError):
    """MLflow does not answer. Nothing is lost, for the manifests have everything: a later `record` catches up."""


def tracking_uri(root: Path) -> str:
    """URI of MLflow's store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _own_uri(root / DATABASE)


def _own_uri(database: Path) -> str:
    return f"sqlite:///{database.resolve()}"


def artifact_location(root: Path) -> str | None:
    """Where a new experiment's artifacts lie; None where a server decides that."""
    return None if tracking_uri(root).startswith(("http:", "https:")) else ARTIFACTS


def prepare(root: Path) -> str:
    """Creates MLflow's store if it is missing, before several processes race for it; returns its URI."""
    with clear_errors(tracking_uri(root)):
        connect(root)
    return tracking_uri(root)


def connect(root: Path) -> Any:
    """A client; creates the local store if it is missing."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    own, uri = root / DATABASE, tracking_uri(root)
    with lock(root, "mlflow"):
        if uri == _own_uri(own) and not own.exists():
            _make_database(own)
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def _make_database(path: Path) -> None:
    """Creates MLflow's tables in a file beside `path`, then renames it: MLflow cannot use or repair the database of a
    process that was killed while it created the tables.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    new = path.with_suffix(".new")
    for leftover in path.parent.glob(f"{new.name}*"):
        leftover.unlink()
    new_store = SqlAlchemyStore(_own_uri(new), ARTIFACTS)
    new_store.engine.dispose()
    with closing(
        sqlite3.connect(new)
    ) as connection:  # persistent: commits take a fifth of the time, and the UI can read meanwhile
        connection.execute("pragma journal_mode = wal")
    new.replace(path)


@contextmanager
def clear_errors(uri: str) -> Iterator[None]:
    """Turns exceptions of MLflow and its stores into a FlywheelError.

    Raises:
        Unreachable: when it does not answer.
        FlywheelError: when it refuses a value.
    """
    try:
        yield
    except FlywheelError:
        raise
    except Exception as error:
        if type(error).__module__.split(".")[0] not in BACKENDS:
            raise
        line = masked(str(error).strip().split("\n")[0])
        if getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE":
            raise FlywheelError(f"MLflow at {masked(uri)} refuses a value: {line}") from error
        raise Unreachable(
            f"MLflow at {masked(uri)} does not answer: {line}. Start it, or point MLFLOW_TRACKING_URI elsewhere; "
            "then run `flywheel record`: nothing is lost, the manifests have everything"
        ) from error


@contextmanager
def project_of(root: Path) -> Iterator[None]:
    """Resolves `dvc://` addresses to this project while the block runs."""
    before = os.environ.get(PROJECT)
    os.environ[PROJECT] = str(root.resolve())
    try:
        yield
    finally:
        os.environ.pop(PROJECT)
        if before is not None:
            os.environ[PROJECT] = before
