"""Connection to MLflow's store: its address, its client, the local database, and errors as one message.

The default store is mlflow.db at the project's root, with artifacts in mlruns/. Its addresses are relative to the project
(`dvc:///mlruns/…`), so the project's folder may be moved.
"""

import errno
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.core.errors import FlywheelError, masked
from tasks.core.store import DISK_FULL
from tasks.project import databases
from tasks.project.edit import lock
from tasks.views._dvc_addresses import PROJECT
from tasks.views.record._database import (
    ARTIFACTS,
    commit_fast,
    damaged_text,
    make_artifacts_relative,
    make_usable,
    sqlite_file,
    sqlite_uri,
)

DATABASE = "mlflow.db"
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Environment variables that are set unless the user sets them."""
BACKENDS = ("mlflow", "sqlalchemy", "sqlite3", "alembic", "requests", "urllib3", "botocore", "boto3")
"""Packages whose exceptions are MLflow's: its own, its store's, and its artifacts'."""
FULL, DAMAGED = "database or disk is full", ("is malformed", "is not a database")
"""What SQLite says of a full disk (or that there was an I/O error), and of a damaged file."""


class Unreachable(FlywheelError):
    """MLflow does not answer. Nothing is lost, for the manifests have everything: a later `record` catches up."""


def tracking_uri(root: Path) -> str:
    """URI of MLflow's store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(root / DATABASE)


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
    logging.getLogger("mlflow.store.db.utils").setLevel(
        logging.CRITICAL
    )  # prints tracebacks of errors that it raises, too
    uri = tracking_uri(root)
    if why := databases.refusal(uri, databases.STARTING):  # MLflow itself asks for two minutes
        raise _away(uri, why)
    with lock(root, "mlflow"):
        if path := sqlite_file(uri):
            commit_fast()
            make_usable(path)
            if path == (root / DATABASE).resolve():
                make_artifacts_relative(path)
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


@contextmanager
def clear_errors(uri: str) -> Iterator[None]:
    """Turns exceptions of MLflow and its stores into a FlywheelError.

    Raises:
        Unreachable: when it does not answer, when there is no room for it, and when its file is damaged.
        FlywheelError: when it refuses a value.
    """
    try:
        yield
    except FlywheelError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _full(uri, f"{error.filename or 'a file'}: {error.strerror}") from error
    except Exception as error:
        if type(error).__module__.split(".")[0] not in BACKENDS:
            raise
        line = masked(str(error).strip().split("\n")[0])
        path = sqlite_file(uri)
        if FULL in line or (path and shutil.disk_usage(path.absolute().parent).free < DISK_FULL):
            raise _full(uri, line) from error
        if path and any(text in line for text in DAMAGED):
            raise Unreachable(damaged_text(path, line)) from error
        if getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE":
            raise FlywheelError(f"MLflow at {masked(uri)} refuses a value: {line}") from error
        raise _away(uri, line) from error


def _away(uri: str, why: str) -> Unreachable:
    return Unreachable(
        f"MLflow at {masked(uri)} does not answer: {why}. Start it, or point MLFLOW_TRACKING_URI elsewhere; "
        "then run `flywheel record`: nothing is lost, the manifests have everything"
    )


def _full(uri: str, why: str) -> Unreachable:
    return Unreachable(
        f"MLflow at {masked(uri)} could not be written: {why}. Free some disk space, then run `flywheel record`: nothing is "
        "lost, the manifests have everything"
    )


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
