import json
import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import httpx
import projects
import psutil
import pytest

from flows import services
from tasks.core.errors import FlywheelError
from tasks.project import databases

pytestmark = pytest.mark.xdist_group("services")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def ports(monkeypatch):
    monkeypatch.setenv("PREFECT_SERVER_API_PORT", str(free_port()))
    monkeypatch.setenv("MLFLOW_PORT", str(free_port()))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)


def test_a_busy_port_is_named_with_who_has_it_and_what_to_set(tmp_path, ports):
    with socket.socket() as other:
        other.bind(("127.0.0.1", int(os.environ["PREFECT_SERVER_API_PORT"])))
        other.listen()
        with pytest.raises(FlywheelError) as raised, services.server(tmp_path):
            pass
    assert f"port {os.environ['PREFECT_SERVER_API_PORT']} is taken by process {os.getpid()}" in str(raised.value)
    assert "set PREFECT_SERVER_API_PORT" in str(raised.value)
    assert services.running(tmp_path) == {}


def test_a_port_that_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_SERVER_API_PORT", "http")
    with pytest.raises(FlywheelError, match="PREFECT_SERVER_API_PORT=http: must be a port"):
        services.prefect_server(tmp_path)


def test_mlflow_has_a_ui_of_its_own_where_its_store_is_a_server(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert services.mlflow_ui(tmp_path) is None


def test_down_without_up_does_nothing(tmp_path, capsys):
    services.down(tmp_path)
    assert "nothing is running" in capsys.readouterr().out
    assert not (tmp_path / ".flywheel").exists()


def test_a_process_that_has_the_pid_of_a_service_by_now_is_left_alone(tmp_path):
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as other:
        services.home(tmp_path).mkdir()
        started = psutil.Process(other.pid).create_time()
        for created, command in ((started - 100, ["sleep", "60"]), (started, ["sleep", "61"])):
            entry = {"pid": other.pid, "created": created, "command": command, "url": ""}
            (services.home(tmp_path) / "services.json").write_text(json.dumps({"mlflow": entry}))
            services.down(tmp_path)
            assert other.poll() is None
        assert services.Started(other.pid, started + 1, ["sleep", "60"], "").process, "the clock was corrected"
        other.kill()


def test_a_service_that_does_not_come_up_tells_why(tmp_path):
    command = [sys.executable, "-c", "import sys; sys.exit('no such database')"]
    with pytest.raises(FlywheelError, match="thing did not start.*\n.*no such database"):
        services._start(tmp_path, services.Service("thing", command, lambda: False))
    assert services.running(tmp_path) == {}


def test_a_service_that_found_no_room_says_so_without_its_log(tmp_path):
    command = [sys.executable, "-c", "raise OSError('(sqlite3.OperationalError) database or disk is full')"]
    with pytest.raises(FlywheelError, match=r"thing did not start: the disk is full .* free some space$"):
        services._start(tmp_path, services.Service("thing", command, lambda: False))


@pytest.mark.parametrize("content", [b"no database at all" * 400, b"SQLite format 3\0" + b"\xff" * 4000])
def test_a_database_of_prefect_that_is_none_is_set_aside(tmp_path, monkeypatch, capsys, content):
    for name in databases.PREFECT:
        monkeypatch.delenv(name, raising=False)
    services.home(tmp_path).mkdir()
    path = services.home(tmp_path) / "prefect.db"
    path.write_bytes(content)
    assert str(path) in services.database(tmp_path)[databases.PREFECT[0]]
    assert not path.exists()
    assert (path.parent / "prefect.db.damaged").read_bytes() == content
    assert "set aside as prefect.db.damaged" in capsys.readouterr().out


@pytest.mark.parametrize("error", [FlywheelError("no deployment"), KeyboardInterrupt()])
def test_when_up_fails_it_ends_what_it_has_started_and_nothing_else(made, monkeypatch, error):
    def thing(name: str) -> services.Service:
        return services.Service(name, ["sleep", "60"], lambda: True, port=free_port())

    def fail(*_) -> None:
        assert list(services.running(made)) == ["other", "prefect server", "mlflow"]
        raise error

    monkeypatch.setattr(services, "prefect_server", lambda _: thing("prefect server"))
    monkeypatch.setattr(services, "mlflow_ui", lambda _: thing("mlflow"))
    monkeypatch.setattr(services, "_deploy", fail)
    services._start(made, thing("other"))
    with pytest.raises(type(error)):
        services.up(made)
    assert list(services.running(made)) == ["other"]
    services.down(made)


@contextmanager
def listening(body: bytes, status: int = 200):
    """A server that answers everything with the same."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/api"
        server.shutdown()


@pytest.mark.parametrize(
    ("body", "status", "is_prefect"), [(b"true", 200, True), (b"<html>", 200, False), (b"true", 404, False)]
)
def test_not_every_server_is_prefects(body, status, is_prefect, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with listening(body, status) as url:
        assert services.answers(url) == is_prefect


@pytest.mark.parametrize(
    "url", ["http://[", "localhost:4200/api", "http://127.0.0.1:99999/api", "", "http://127.0.0.1:1"]
)
def test_an_address_at_which_nothing_can_answer(url):
    assert not services.answers(url)
    assert not services._polls(url)


def test_what_is_set_for_prefect_is_left_alone(tmp_path, monkeypatch):
    for name in (*databases.PREFECT, "PREFECT_HOME"):
        monkeypatch.delenv(name, raising=False)
    own = services.prefect_server(tmp_path).env
    assert own["PREFECT_HOME"].startswith(str(tmp_path))
    assert str(tmp_path) in own["PREFECT_SERVER_DATABASE_CONNECTION_URL"]
    monkeypatch.setenv("PREFECT_HOME", "/elsewhere")
    assert "PREFECT_HOME" not in services.prefect_server(tmp_path).env | services.worker(tmp_path, "").env
    for name in databases.PREFECT:
        with monkeypatch.context() as patch:
            patch.setenv(name, "postgresql+asyncpg://elsewhere")
            assert not set(databases.PREFECT) & set(services.prefect_server(tmp_path).env)


def test_mlflows_password_is_not_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@db/mlflow")
    service = services.mlflow_ui(tmp_path)
    assert not any("secret" in word for word in service.command)
    assert service.env["MLFLOW_BACKEND_STORE_URI"] == "postgresql://me:secret@db/mlflow"


def test_down_ends_a_service_with_its_children(tmp_path):
    (tmp_path / "child").touch()
    command = ["sh", "-c", f"sleep 60 & echo $! > {tmp_path}/child; wait"]
    services._start(tmp_path, services.Service("thing", command, lambda: (tmp_path / "child").stat().st_size > 0))
    assert list(services.running(tmp_path)) == ["thing"]
    child = psutil.Process(int((tmp_path / "child").read_text()))
    services.down(tmp_path)
    assert services.running(tmp_path) == {}
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_the_services_of_a_project(made, ports, monkeypatch, capsys):
    """`up`; a round from Python, in the server's history; `down`. The README's blocks and test_prefect.py start them by the worker."""
    services.up(made)
    server = services.running_server(made)
    started = services.running(made)
    try:
        assert set(started) == {"prefect server", "prefect worker", "mlflow"}
        printed = capsys.readouterr().out
        assert f"http://127.0.0.1:{os.environ['MLFLOW_PORT']}" in printed
        assert f"export PREFECT_API_URL={server}" in printed
        projects.set_exam(made, "gate", "improves", alpha=0.03)
        from flows.round import run_round

        gates = ["gate@r1", "gate@r2"]
        assert run_round("r2") == gates
        assert "[2/2] gate@r" in capsys.readouterr().out
        assert [r["state_type"] for r in found(server, "flow_runs")] == ["COMPLETED"]
        assert sorted(r["name"] for r in found(server, "task_runs")) == gates
        artifacts = {a["key"]: a["data"] for a in found(server, "artifacts")}
        assert "r2" in artifacts["rounds"]
        assert artifacts["page"].endswith("page.html)")
        assert "/#/experiments/" in artifacts["mlflow-r2"]
    finally:
        services.down(made)
    assert not any(s.process for s in started.values())
    services.down(made)


def found(server: str, kind: str) -> list[dict]:
    return httpx.post(f"{server}/{kind}/filter", json={}, trust_env=False).raise_for_status().json()
