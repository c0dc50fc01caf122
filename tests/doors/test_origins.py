"""Other web pages in the user's browser and the servers of `flywheel up`, which ask for no login."""

import socket
from pathlib import Path

import httpx
import pytest
from ruamel.yaml import YAML
from starlette.datastructures import Headers
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from flows import origins, services

pytestmark = pytest.mark.xdist_group("services")

FOREIGN = {
    "a page of another site": {"origin": "http://evil.example"},
    "one with the server's name in its own": {"origin": "http://127.0.0.1.evil.example"},
    "one in a frame without an origin": {"origin": "null"},
    "one that pretends in a user's name": {"origin": "http://localhost@evil.example"},
    "a name that leads to this machine": {"host": "evil.example:{port}"},
    "one that begins like a private address": {"host": "10.evil.example:{port}"},
    "such a page's own request": {"host": "evil.example:{port}", "origin": "http://evil.example:{port}"},
}
PORTS = {"a server on another port": {"origin": "http://127.0.0.1:1"}, "one on port 80": {"origin": "http://localhost"}}
OWN = {
    "a program": {},
    "its page": {"origin": "http://127.0.0.1:{port}"},
    "its page by the other name": {"origin": "http://localhost:{port}"},
    "through a tunnel": {"host": "localhost:1234", "origin": "http://localhost:1234"},
}


def filled(headers: dict[str, str], port: int) -> dict[str, str]:
    return {name: value.format(port=port) for name, value in headers.items()}


@pytest.fixture(scope="module")
def started(tmp_path_factory, apart):
    """Prefect's server and MLflow's, as `flywheel up` starts them, by their addresses."""
    root = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("PREFECT_SERVER_API_PORT", "MLFLOW_PORT"):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                patch.setenv(variable, str(probe.getsockname()[1]))
        found = [services.prefect_server(root), services.mlflow_ui(root)]
        try:
            for service in found:
                services._launch(root, service)
            for service in found:
                services._wait_for(root, service)
            yield [service.url for service in found]
        finally:
            services.down(root)


@pytest.fixture(scope="module")
def run(started) -> str:
    """The address at which a run of a deployment is started."""
    api = f"{started[0]}/api"
    flow = httpx.post(f"{api}/flows/", json={"name": "round"}).json()["id"]
    deployment = httpx.post(f"{api}/deployments/", json={"name": "round", "flow_id": flow}).json()["id"]
    return f"{api}/deployments/{deployment}/create_flow_run"


def runs(run: str) -> int:
    return httpx.post(f"{run.partition('/deployments')[0]}/flow_runs/count", json={}).json()


@pytest.mark.parametrize("type_", ["application/json", "text/plain"])
@pytest.mark.parametrize("headers", (FOREIGN | PORTS).values(), ids=(FOREIGN | PORTS).keys())
def test_no_other_page_starts_a_run(run, headers, type_):
    before = runs(run)
    headers = filled(headers, httpx.URL(run).port) | {"content-type": type_}
    assert httpx.post(run, content="{}", headers=headers).status_code == 403
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    assert httpx.options(run, headers=headers | asked).status_code == 403
    assert httpx.post(run.replace("create_flow_run", "x"), content="{}", headers=headers).status_code == 403
    assert runs(run) == before


@pytest.mark.parametrize("headers", OWN.values(), ids=OWN.keys())
def test_programs_and_its_own_pages_start_one(run, headers):
    before = runs(run)
    assert httpx.post(run, json={}, headers=filled(headers, httpx.URL(run).port)).status_code == 201
    assert runs(run) == before + 1


@pytest.mark.parametrize("path", ["/api/events/in", "/api/events/out", "/api/logs/out"])
def test_no_other_page_opens_a_web_socket(started, path):
    address = started[0].replace("http", "ws", 1) + path
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        with pytest.raises(InvalidStatus, match="403"), connect(address, origin=origin):
            pass
    for origin in (None, started[0]):
        connect(address, origin=origin).close()


def test_no_other_page_shows_the_server_in_a_frame_or_takes_its_data_for_a_script(started):
    page = httpx.get(started[0], headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"})
    assert page.status_code == 200, "a link leads here"
    assert page.headers["x-frame-options"] == "SAMEORIGIN"
    assert page.headers["content-security-policy"] == "frame-ancestors 'self'"
    for site in origins.FOREIGN:
        answer = httpx.get(f"{started[0]}/api/version", headers={"sec-fetch-site": site, "sec-fetch-mode": "no-cors"})
        assert answer.status_code == 403
    assert httpx.get(started[1]).headers["x-frame-options"] == "SAMEORIGIN"


@pytest.mark.parametrize("type_", ["application/json", "text/plain"])
@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN.keys())
def test_no_other_site_writes_to_mlflow(started, headers, type_):
    headers = filled(headers, httpx.URL(started[1]).port) | {"content-type": type_}
    for api in ("api", "ajax-api"):
        path = f"{started[1]}/{api}/2.0/mlflow/experiments/create"
        assert httpx.post(path, content='{"name": "x"}', headers=headers).status_code == 403
    names = httpx.get(f"{started[1]}/api/2.0/mlflow/experiments/get-by-name", params={"experiment_name": "x"})
    assert names.status_code == 404


def test_mlflow_answers_its_own_page(started):
    path = f"{started[1]}/ajax-api/2.0/mlflow/experiments/create"
    assert httpx.post(path, json={"name": "own"}, headers={"origin": started[1]}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("host", "localhost"), ("host", "evil.example")],
        [("host", "")],
        [("host", "localhost:x")],
        [("host", "[::1")],
        [("host", "localhost/@evil.example")],
        [("host", "localhost:1"), ("origin", "")],
        [("host", "localhost:1"), ("origin", "http://localhost:1"), ("origin", "http://evil.example")],
        [("host", "localhost:1"), ("origin", "http://localhost:1/")],
        [("host", "localhost:1"), ("origin", "localhost:1")],
    ],
)
def test_what_is_no_name_of_a_server_is_refused(headers):
    raw = [(name.encode(), value.encode()) for name, value in headers]
    assert origins.refusal(Headers(raw=raw), frozenset(origins.LOOPBACK))


def test_a_server_in_a_container_has_a_name_of_its_own(monkeypatch):
    [compose] = YAML(typ="safe", pure=True).load_all((Path(__file__).parents[2] / "infra/compose.yaml").read_text())
    server = compose["services"]["prefect"]
    assert server["command"].startswith("python -m flows.server start "), "Prefect alone answers every page"
    monkeypatch.setenv(origins.HOSTS, server["environment"][origins.HOSTS])
    guard = origins.guarded(lambda **_: None)(final=True)
    worker = httpx.URL(compose["services"]["worker"]["environment"]["PREFECT_API_URL"])
    assert origins.refusal(Headers({"host": f"{worker.host}:{worker.port}"}), guard.hosts) is None
    assert origins.refusal(Headers({"host": "evil.example:4200"}), guard.hosts)
