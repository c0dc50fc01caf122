"""Checks of `flywheel doctor` that are about MLflow, Prefect and the processes that they and the stages run in."""

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote

import psutil

from tasks.core.errors import masked
from tasks.project import databases
from tasks.project import strays as processes
from tasks.project.databases import damage, tables
from tasks.project.params import Pipeline
from tasks.views._findings import Finding, broken, ok, warn
from tasks.views.record import tracking_uri

SERVICES, PREFECT = Path(".flywheel/services.json"), Path(".flywheel/prefect.db")


def mlflow(root: Path, pipeline: Pipeline | None) -> Iterator[Finding]:
    """Whether MLflow's store can be reached, without importing MLflow."""
    uri = tracking_uri(root)
    if uri.startswith(("http:", "https:")):
        yield _server("mlflow", uri, f"{uri.rstrip('/')}/health", "start it, or unset MLFLOW_TRACKING_URI")
    elif uri.startswith("sqlite:///"):
        yield _database(root / uri.removeprefix("sqlite:///"))
    elif uri.partition(":")[0].partition("+")[0] in databases.SERVERS:
        yield _database_server("mlflow", "MLFLOW_TRACKING_URI", uri)
    else:
        yield ok("mlflow", f"at {masked(uri)}; not checked")


def _database_server(subject: str, setting: str, url: str) -> Finding:
    if why := databases.refusal(url):
        return broken(subject, f"{masked(url)}: {why}", f"start it, create the database, or change {setting}")
    return ok(subject, f"the database {masked(url)} answers")


def _database(path: Path) -> Finding:
    if not path.is_file():
        return ok("mlflow", f"{path.name} does not exist yet; `flywheel record` creates it")
    fix = "`flywheel record` sets it aside, and creates it again from the manifests"
    if why := damage(path, every_page=True):
        return broken("mlflow", f"{path}: {why}", "move it away; `flywheel record` creates it again from the manifests")
    if "runs" not in tables(path):
        return broken("mlflow", f"{path}: its tables were never finished", fix)
    with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as con:
        runs = con.execute("select count(*) from runs where lifecycle_stage = 'active'").fetchone()[0]
    return ok("mlflow", f"{path.name} holds {runs} runs")


def prefect(root: Path, pipeline: Pipeline | None) -> Iterator[Finding]:
    """Whether the Prefect server answers: the configured one, or the one that `flywheel up` started."""
    configured, started = os.environ.get("PREFECT_API_URL"), _started(root)
    if configured:
        yield _server("prefect", configured, f"{configured.rstrip('/')}/health", "start it, or unset PREFECT_API_URL")
    elif started:
        yield _server("prefect", started, f"{started}/api/health", "`flywheel down`, then `flywheel up`")
    else:
        yield ok(
            "prefect", "no server is configured; each run starts one for itself, `flywheel up` starts one that stays"
        )


def _started(root: Path) -> str | None:
    """URL of the server that `flywheel up` started and `flywheel down` has not stopped."""
    try:
        return json.loads((root / SERVICES).read_text())["prefect server"]["url"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _server(subject: str, server: str, url: str, fix: str) -> Finding:
    import httpx

    address = masked(server)
    try:
        response = httpx.get(url, timeout=3, trust_env=False)
    except httpx.HTTPError as error:
        return broken(subject, f"{address} does not answer ({type(error).__name__})", fix)
    return (
        ok(subject, f"{address} answers")
        if response.status_code < 400
        else broken(subject, f"{address}: {response.status_code}", fix)
    )


def prefects_database(root: Path, pipeline: Pipeline | None) -> Iterator[Finding]:
    """Whether Prefect's database can be used: the server that is set, or else the file under the project."""
    path, setting = root / PREFECT, next((name for name in databases.PREFECT if os.environ.get(name)), None)
    if setting:
        if not os.environ[setting].startswith("sqlite"):
            yield _database_server("prefect", setting, os.environ[setting])
    elif why := damage(path, every_page=True):
        yield broken(
            "prefect", f"{PREFECT}: {why}", "the next `flywheel up` or `run` sets it aside; it holds the history alone"
        )


def strays(root: Path, pipeline: Pipeline | None) -> Iterator[Finding]:
    """Processes of services and stages whose command is gone."""
    found = processes.find(root, _services(root))
    for process in found:
        with suppress(psutil.Error):
            command = " ".join(process.cmdline())[:80].replace("\n", " ")
            yield warn(
                "strays", f"{process.pid} ({command}) outlived the command that started it", f"kill {process.pid}"
            )
    if not found:
        yield ok("strays", "no process outlived the command that started it")


def _services(root: Path) -> set[int]:
    """Pids of what `flywheel up` started."""
    try:
        return {int(entry["pid"]) for entry in json.loads((root / SERVICES).read_text()).values()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return set()
