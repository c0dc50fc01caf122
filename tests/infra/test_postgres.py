"""Prefect and MLflow on Postgres: a campaign and another round at once while the servers are restarted, and what is said where
Postgres lets nobody in.
"""

import subprocess
import sys
import time

import httpx
import postgres
import projects
import pytest
from postgres import free_port

from flows import services
from tasks.core import store
from tasks.core.errors import FlywheelError
from tasks.project import databases, pipeline
from tasks.project.edit import add_round
from tasks.project.params import load_params
from tasks.views import _doctor_services as doctor
from tasks.views.record import prepare, record
from tasks.views.record._connection import Unreachable

pytestmark = pytest.mark.xdist_group("services")
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
ASYNC = databases.ASYNC


@pytest.fixture(scope="module")
def server():
    """A server with the databases `prefect` and `mlflow`, which are empty."""
    if (programs := postgres.programs()) is None:
        pytest.skip("there is no Postgres on this machine (apt-get install postgresql)")
    pytest.importorskip("psycopg2", reason="MLflow's driver is not installed (pip install 'flywheel[postgres]')")
    with postgres.running(programs, "prefect", "mlflow") as running:
        yield running


@pytest.fixture
def on_postgres(server, monkeypatch):
    """The settings of Prefect and MLflow name the server, and ports that are free."""
    monkeypatch.setenv(databases.PREFECT[0], server.url("prefect", ASYNC))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url("mlflow"))
    monkeypatch.setenv("PREFECT_SERVER_API_PORT", str(free_port()))
    monkeypatch.setenv("MLFLOW_PORT", str(free_port()))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(databases, "STARTING", 0.0)
    return server


@pytest.mark.parametrize("driver", ["postgresql", ASYNC])
def test_why_a_server_lets_nobody_in_is_in_its_own_words(server, driver):
    assert databases.refusal(server.url("mlflow", driver)) is None
    assert 'database "other" does not exist' in databases.refusal(server.url("other", driver))
    assert "password authentication failed" in databases.refusal(server.url("mlflow", driver, "wrong"))
    closed = server.url("mlflow", driver).replace(str(server.port), str(free_port()))
    assert "refused" in databases.refusal(closed) or "failed" in databases.refusal(closed)
    assert databases.refusal(server.url("mlflow", driver).replace(str(server.port), "port"))


def test_an_absent_driver_is_named_with_what_installs_it():
    why = databases.refusal("mysql+mysqldb://me@127.0.0.1/x")
    assert "No module named 'MySQLdb'" in why
    assert "pip install 'flywheel[postgres]'" in why


@pytest.mark.parametrize("url", ["", "sqlite:///mlflow.db", "http://127.0.0.1:5000", "mlruns"])
def test_what_is_no_database_server_is_not_asked(url):
    assert databases.refusal(url) is None


def test_doctor_looks_at_both_databases(on_postgres, tmp_path, monkeypatch):
    found = [*doctor.mlflow(tmp_path, None), *doctor.prefects_database(tmp_path, None)]
    assert [(f.status, f.subject) for f in found] == [("ok", "mlflow"), ("ok", "prefect")]
    monkeypatch.setenv(databases.PREFECT[0], on_postgres.url("other", ASYNC))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", on_postgres.url("other"))
    found = [*doctor.mlflow(tmp_path, None), *doctor.prefects_database(tmp_path, None)]
    assert [f.status for f in found] == ["broken", "broken"]
    assert [name for f, name in zip(found, ("MLFLOW_TRACKING_URI", databases.PREFECT[0]), strict=True) if name in f.fix]
    assert not any(postgres.PASSWORD in f.text + f.fix for f in found)


def test_up_says_at_once_that_prefects_database_is_not_there(on_postgres, tmp_path, monkeypatch):
    monkeypatch.setenv(databases.PREFECT[0], on_postgres.url("other", ASYNC))
    with pytest.raises(FlywheelError, match='"other" does not exist') as raised:
        services.up(tmp_path)
    assert databases.PREFECT[0] in str(raised.value)
    assert postgres.PASSWORD not in str(raised.value)
    monkeypatch.setenv(databases.PREFECT[0], on_postgres.url("prefect"))
    with pytest.raises(FlywheelError, match=r"must begin with postgresql\+asyncpg://"):
        services.up(tmp_path)
    assert services.running(tmp_path) == {}


def test_record_says_at_once_that_mlflows_database_is_not_there(on_postgres, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", on_postgres.url("other"))
    with pytest.raises(Unreachable, match='"other" does not exist') as raised:
        prepare(tmp_path)
    assert postgres.PASSWORD not in str(raised.value)


@pytest.mark.demand
@pytest.mark.timeout(900)
def test_a_campaign_and_another_round_at_once_survive_the_servers(on_postgres, made):
    """Both runs begin with what is stale in the round that they share. Prefect's server is killed, and Postgres too, as they run."""
    add_round(made, "s2", "r1")
    projects.set_values(made, "r1", ["generate.sample.samples=2"])
    pipeline.write(made, load_params(made))
    services.up(made)
    try:
        client = httpx.Client(base_url=services.running_server(made), timeout=60, trust_env=False)
        runs = [start(client, "campaign/campaign", rounds=2), start(client, "round/round", round="s2")]
        wait(lambda: {state(client, run) for run in runs} == {"RUNNING"})
        wait(lambda: made_now(made, "r1", "generate"))
        on_postgres.stop()
        services.running(made)["prefect server"].process.kill()
        time.sleep(3)
        on_postgres.start()
        services.up(made)
        wait(lambda: {state(client, run) for run in runs} <= FINAL)
        log = (made / ".flywheel/logs/prefect-worker.log").read_text()[-3000:]
        assert [state(client, run) for run in runs] == ["COMPLETED"] * 2, log
    finally:
        services.down(made)
    assert all(made_now(made, name, "generate") for name in ("r1", "r2", "s2"))
    assert "was up to date" in record(made)
    count = "select count(*) from runs where lifecycle_stage = 'active' and status = 'FINISHED'"
    [(finished,)] = on_postgres.sql("mlflow", count)
    assert finished >= sum(len(store.manifests(made, name)) for name in ("r0", "r1", "r2", "s2"))
    [(unfinished,)] = on_postgres.sql("mlflow", "select count(*) from runs where status <> 'FINISHED'")
    assert unfinished == 0
    done = subprocess.run([sys.executable, "-m", "dvc", "status", "-q"], cwd=made, check=False)
    assert done.returncode == 0, "all is up to date"


def start(client: httpx.Client, name: str, **parameters) -> str:
    deployment = client.get(f"/deployments/name/{name}").raise_for_status().json()["id"]
    made = client.post(f"/deployments/{deployment}/create_flow_run", json={"parameters": parameters})
    return made.raise_for_status().json()["id"]


def state(client: httpx.Client, run: str) -> str:
    """The type of a run's state; empty while the server is away."""
    try:
        return client.get(f"/flow_runs/{run}").raise_for_status().json()["state"]["type"]
    except httpx.HTTPError:
        return ""


def made_now(root, name: str, stage: str) -> bool:
    """Whether a stage has run with the samples that this test asks for."""
    manifest = store.manifests(root, name).get(stage)
    return manifest is not None and manifest.plan.members["sample"]["samples"] == (2 if name == "r1" else 3)


def wait(done, seconds: float = 400) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.5)
