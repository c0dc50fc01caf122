"""Prefect as its user has it: a server, a worker, the API that the UI uses, and the UI in a browser."""

import json
import re
import shutil
import signal
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import projects
import psutil
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from test_services import free_port

from flows import crashes, deploy, services
from tasks.core import store
from tasks.core.errors import Busy
from tasks.project import champion, graph
from tasks.project.params import load_params

pytestmark = [pytest.mark.xdist_group("services"), pytest.mark.timeout(900)]
PATIENCE = 400
"""Seconds after which something that should happen counts as never happening."""


class Server:
    """The API of a server, and the project that its worker runs."""

    def __init__(self, root: Path, url: str) -> None:
        self.root, self.url = root, url
        self.client = httpx.Client(base_url=f"{url}/api", timeout=60, trust_env=False)

    def post(self, path: str, **content):
        return self.client.post(path, json=content).raise_for_status().json()

    def get(self, path: str):
        return self.client.get(path).raise_for_status().json()

    def deployment(self, name: str) -> dict:
        return self.get(f"/deployments/name/{name}")

    def start(self, name: str, **parameters) -> str:
        """Starts a flow run as the UI does, and returns its id."""
        return self.post(f"/deployments/{self.deployment(name)['id']}/create_flow_run", parameters=parameters)["id"]

    def state(self, run: str) -> dict:
        return self.get(f"/flow_runs/{run}")["state"]

    def until(self, run: str, *names: str) -> dict:
        """Waits until a run is in one of these states."""
        final = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
        return wait(
            lambda: self.state(run),
            lambda s: s["name"] in names or s["type"] in final,
            lambda s: s["name"] in names,
            lambda: self.log(run),
        )

    def log(self, run: str) -> str:
        query = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC"}
        return "\n".join(line["message"] for line in self.post("/logs/filter", **query))

    def artifacts(self) -> dict[str, dict]:
        """The latest artifacts by key."""
        return {a["key"]: a for a in self.post("/artifacts/latest/filter")}

    def events(self, *names: str) -> list[dict]:
        return self.post("/events/filter", filter={"event": {"name": list(names)}})["events"]


def wait(read, done, right=lambda value: True, explain=lambda: ""):
    """The first value that is `done`, which must be `right`."""
    deadline = time.monotonic() + PATIENCE
    while not done(value := read()):
        assert time.monotonic() < deadline, f"{value}\n{explain()}"
        time.sleep(0.2)
    assert right(value), f"{value}\n{explain()}"
    return value


@pytest.fixture(scope="module")
def server(campaign, tmp_path_factory, apart):
    """A server and a worker for a copy of the campaign, which is the working directory of this module's tests."""
    root = tmp_path_factory.mktemp("prefect") / "project"
    shutil.copytree(campaign, root, symlinks=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for variable, value in {
            "PREFECT_SERVER_API_PORT": str(free_port()),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
        }.items():
            patch.setenv(variable, value)
        started = services.prefect_server(root)
        services._start(root, started)
        try:
            services._deploy(root, f"{started.url}/api")
            services._start(root, services.worker(root, f"{started.url}/api"))
            yield Server(root, started.url)
        finally:
            services.down(root)


@pytest.fixture(autouse=True)
def here(server, monkeypatch):
    """The project's params.yaml and data as they were, before each test."""
    monkeypatch.chdir(server.root)
    before = (server.root / "params.yaml").read_text()
    with temporary_settings({PREFECT_API_URL: f"{server.url}/api"}):
        yield
    (server.root / "params.yaml").write_text(before)


def edit_gate(root: Path, alpha: float) -> None:
    """Makes the gates stale, and nothing else."""
    projects.set_exam(root, "gate", "improves", alpha=alpha)


def stages() -> list[psutil.Process]:
    """The processes that are running a stage of this project."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if "stage" in process.cmdline() and process.cwd() == str(Path.cwd()):
                found.append(process)
    return found


def test_everything_is_deployed_under_its_own_name(server):
    deployed = {d["name"]: d for d in server.post("/deployments/filter")}
    assert deployed.keys() == deploy.DEPLOYMENTS.keys()
    assert all(d["concurrency_options"] for d in deployed.values())
    nightly = deployed["nightly"]
    assert nightly["parameters"] == {"more": 1}
    assert [(s["schedule"]["cron"], s["active"]) for s in nightly["schedules"]] == [(deploy.NIGHTLY, False)]
    assert server.get("/concurrency_limits/tag/gpu")["concurrency_limit"] >= 1
    assert [a["name"] for a in server.post("/automations/filter")] == [crashes.NAME]


def test_a_second_deploy_keeps_what_people_changed_and_shows_new_rounds(server):
    nightly = server.deployment("campaign/nightly")
    [schedule] = nightly["schedules"]
    path = f"/deployments/{nightly['id']}/schedules/{schedule['id']}"
    server.client.patch(path, json={"schedule": {"cron": "0 5 * * *"}}).raise_for_status()
    limit = server.get("/concurrency_limits/tag/gpu")["concurrency_limit"]
    projects.rewrite(
        server.root, lambda content: content["rounds"].update(r9={"parent": "r1", "base": "r0", "seed": 9})
    )
    services._deploy(server.root, f"{server.url}/api")
    deploy.refresh(server.root)
    assert [s["schedule"]["cron"] for s in server.deployment("campaign/nightly")["schedules"]] == ["0 5 * * *"]
    assert server.get("/concurrency_limits/tag/gpu")["concurrency_limit"] == limit
    assert len(server.post("/automations/filter")) == 1
    assert "r9" in server.deployment("round/round")["parameter_openapi_schema"]["properties"]["round"]["enum"]


def test_a_schedule_without_parameters_fires_and_its_run_leaves_artifacts_and_events(server):
    edit_gate(server.root, 0.041)
    round = server.deployment("round/round")
    soon = (datetime.now(UTC) + timedelta(seconds=4)).isoformat()
    schedule = {"interval": 86400, "anchor_date": soon}
    path = f"/deployments/{round['id']}/schedules"
    [made] = server.client.post(path, json=[{"schedule": schedule, "active": True}]).raise_for_status().json()
    query = {"deployments": {"id": {"any_": [round["id"]]}}, "sort": "EXPECTED_START_TIME_ASC"}
    [run, *_] = wait(lambda: server.post("/flow_runs/filter", **query), bool)
    server.until(run["id"], "Completed")
    server.client.delete(f"{path}/{made['id']}").raise_for_status()
    assert server.get(f"/flow_runs/{run['id']}")["name"] == "r2", "the last round"
    artifacts = server.artifacts()
    assert "r2" in artifacts["rounds"]["data"]
    assert "| filter |" in artifacts["dropped-r2"]["data"]
    assert artifacts["progress"]["data"] == 100
    page = re.search(r"file://(\S+page.html)", artifacts["page"]["data"]).group(1)
    assert "</html>" in Path(page).read_text()
    [event, *_] = wait(lambda: server.events("flywheel.refused"), lambda found: len(found) >= 2)
    assert event["resource"]["flywheel.by"] == "gates"
    assert event["resource"]["flywheel.champion"] == "false"
    assert "held back" in json.dumps(event["payload"])


def test_what_is_cancelled_ends_with_its_stage_and_the_next_run_goes_on(server):
    def slow(content):
        content["bases"]["r0"]["engine"] = {"strategy": "fake", "seconds": 20}

    projects.rewrite(server.root, slow)
    run = server.start("round/round", round="r2")
    [stage, *_] = wait(stages, lambda found: any("prompts" in p.cmdline() or "evaluate" in p.cmdline() for p in found))
    server.post(f"/flow_runs/{run}/set_state", state={"type": "CANCELLING", "name": "Cancelling"})
    assert server.until(run, "Cancelled")
    assert not stage.is_running()
    assert stages() == []
    projects.rewrite(server.root, lambda content: content["bases"]["r0"].update(engine={"strategy": "fake"}))
    edit_gate(server.root, 0.042)
    server.until(server.start("round/round", round="r2"), "Completed")


def test_a_run_whose_process_is_killed_is_marked_as_crashed(server):
    projects.rewrite(
        server.root, lambda content: content["bases"]["r0"].update(engine={"strategy": "fake", "seconds": 20})
    )
    run = server.start("round/round", round="r2")
    [stage, *_] = wait(stages, bool)
    flow = next(p for p in stage.parents() if "prefect" in " ".join(p.cmdline()) and "worker" not in p.cmdline())
    address = stage.cmdline()[-1]
    flow.send_signal(signal.SIGKILL)
    server.until(run, "Crashed")
    wait(stages, lambda found: not found)

    def stale() -> list[str] | None:
        with suppress(Busy):  # DVC ends a moment after its stage
            return graph.stale(server.root, "r2")

    assert address in wait(stale, bool)


def test_a_run_without_a_sign_of_life_is_marked_as_crashed(server):
    """By the automation where the server ran, and by the next start where it did not."""
    id, other = flow_id(server), server.post("/flows/", name="somebody else's")["id"]
    silent, unseen, alive = (
        server.post("/flow_runs/", flow_id=id, name=n)["id"] for n in ("silent", "unseen", "alive")
    )
    theirs = server.post("/flow_runs/", flow_id=other, name="theirs")["id"]
    for run in (silent, unseen, alive, theirs):
        server.post(f"/flow_runs/{run}/set_state", state={"type": "RUNNING"}, force=True)
    beat(server, theirs, datetime.now(UTC) - crashes.SILENCE + timedelta(seconds=1), "somebody else's")
    beat(server, silent, datetime.now(UTC) - crashes.SILENCE + timedelta(seconds=2))
    server.until(silent, "Crashed")
    assert server.state(theirs)["name"] == "Running"
    seen = datetime.now(UTC)
    beat(server, alive, seen)
    wait(lambda: json.dumps(server.events(crashes.ALIVE)), lambda found: alive in found)
    assert crashes.mark(seen - timedelta(milliseconds=1)) == ["unseen"]
    assert server.state(unseen)["message"] == crashes.MESSAGE
    assert server.state(alive)["name"] == "Running"
    for run in (alive, theirs):
        server.post(f"/flow_runs/{run}/set_state", state={"type": "CANCELLED"}, force=True)


@pytest.mark.demand
def test_a_run_whose_worker_is_killed_with_it_is_marked_as_crashed(server):
    """Nobody is left that could tell the server: the automation does."""
    projects.rewrite(
        server.root, lambda content: content["bases"]["r0"].update(engine={"strategy": "fake", "seconds": 60})
    )
    run = server.start("round/round", round="r2")
    [stage, *_] = wait(stages, bool)
    worker = services.running(server.root)["prefect worker"].process
    for process in [*worker.children(recursive=True), worker]:
        process.kill()
    began = time.monotonic()
    try:
        server.until(run, "Crashed")
        print(f"marked as crashed after {time.monotonic() - began:.0f} s")
        assert server.state(run)["message"] == crashes.MESSAGE
        assert not stage.is_running()
    finally:
        services._start(server.root, services.worker(server.root, f"{server.url}/api"))


def flow_id(server: Server) -> str:
    return server.post("/flows/filter", flows={"name": {"any_": ["round"]}})[0]["id"]


def beat(server: Server, run: str, when: datetime, flow: str = "round") -> None:
    """Sends the sign of life of a run of a flow."""
    from uuid import uuid4

    event = {
        "id": str(uuid4()),
        "event": crashes.ALIVE,
        "occurred": when.isoformat(),
        "resource": {"prefect.resource.id": f"prefect.flow-run.{run}"},
        "related": [
            {"prefect.resource.id": "prefect.flow.1", "prefect.resource.role": "flow", "prefect.resource.name": flow}
        ],
    }
    server.client.post("/events", json=[event]).raise_for_status()


def test_a_campaign_ends_at_its_budget_and_the_next_one_goes_on(server):
    edit_gate(server.root, 0.043)
    projects.rewrite(server.root, lambda content: content["campaign"].update(budget={"hours": 1e-9}))
    run = server.start("campaign/campaign", rounds=2, concurrency=1)
    state = server.until(run, "Budget reached")
    assert state["type"] == "COMPLETED"
    assert "campaign.budget.hours" in state["message"]
    gates = {
        name: store.manifests(server.root, name)["gate"].plan.members["improves"]["alpha"] for name in ("r1", "r2")
    }
    assert gates["r1"] == 0.043 != gates["r2"]
    [event] = wait(lambda: server.events("flywheel.budget"), bool)
    assert "campaign.budget.hours" in event["payload"]["reason"]
    projects.rewrite(server.root, lambda content: content["campaign"].pop("budget"))
    server.until(server.start("campaign/campaign", rounds=2), "Completed")
    assert store.manifests(server.root, "r2")["gate"].plan.members["improves"]["alpha"] == 0.043


def test_a_person_is_asked_before_a_promotion_and_the_answer_is_kept(server):
    """The gates' decision is made up, for no round of this project is better than its parent."""
    path = server.root / "data/round=r2/manifests/gate.json"
    manifest = json.loads(path.read_text())
    manifest["metrics"]["promoted"] = 1.0
    path.write_text(store.Manifest.model_validate(manifest).text)
    with projects.dvc(server.root) as repo:
        repo.commit(force=True)
    later = {
        "type": "SCHEDULED",
        "state_details": {"scheduled_time": (datetime.now(UTC) + timedelta(seconds=3)).isoformat()},
    }
    deployment = server.deployment("campaign/campaign")
    run = server.post(
        f"/deployments/{deployment['id']}/create_flow_run", parameters={"rounds": 2, "approve": True}, state=later
    )["id"]
    kept = server.root / ".flywheel/campaigns" / f"{run}.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps({"rounds": 2, "ran": ["gate@r2"]}))
    state = server.until(run, "Suspended")
    wait(lambda: server.log(run), lambda log: "exited cleanly" in log)  # Prefect keeps the form after the state
    keyset = state["state_details"]["run_input_keyset"]
    schema = server.get(f"/flow_runs/{run}/input/{keyset['schema']}")
    assert schema["properties"]["answer"]["enum"] == ["promote", "refuse"]
    assert "| gate | passed | why |" in server.get(f"/flow_runs/{run}/input/{keyset['description']}")
    answer = server.post(f"/flow_runs/{run}/resume", run_input={"answer": "refuse"})
    assert answer["status"] == "REJECT", "somebody must sign it"
    answer = {"answer": "refuse", "by": "Ada", "note": "wordy | and <b>worse</b>"}
    assert server.post(f"/flow_runs/{run}/resume", run_input=answer)["status"] == "ACCEPT"
    server.until(run, "Completed")
    [entry] = champion.answers(server.root)
    assert (entry.round, entry.answer, entry.by, entry.note) == ("r2", "refuse", "Ada", "wordy | and <b>worse</b>")
    assert projects.git(server.root, "status", "--short", str(champion.ANSWERS)), "git would keep it"
    assert champion.next_parent(server.root, load_params(server.root)) == "r0"
    by = wait(  # the server keeps events a moment later
        lambda: [e["resource"]["flywheel.by"] for e in server.events("flywheel.refused")], lambda by: "Ada" in by
    )
    assert by.count("Ada") == 1


def test_a_round_is_started_from_the_form_and_its_artifact_opens(server, browser):
    edit_gate(server.root, 0.044)
    deployment = server.deployment("round/round")["id"]
    query = {"deployments": {"id": {"any_": [deployment]}}}
    before = {run["id"] for run in server.post("/flow_runs/filter", **query)}
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE * 1000)
    page.goto(f"{server.url}/deployments/deployment/{deployment}/run")
    page.get_by_text("A round or base of params.yaml").wait_for()
    page.locator(".p-select-button").first.click()
    page.keyboard.press("Space")  # the click gives it the focus
    page.locator(".p-select-option", has_text="r1").click()
    page.get_by_role("button", name="Submit").click()
    new = wait(lambda: [r for r in server.post("/flow_runs/filter", **query) if r["id"] not in before], bool)
    assert new[0]["parameters"]["round"] == "r1"
    server.until(new[0]["id"], "Completed")
    page.goto(f"{server.url}/runs/flow-run/{new[0]['id']}")
    page.get_by_text("Completed", exact=True).first.wait_for()
    page.goto(f"{server.url}/artifacts/artifact/{server.artifacts()['rounds']['latest_id']}")
    page.locator("table").first.wait_for()
    assert "r2" in page.locator("table").first.inner_text()
    for table in page.locator("table").all():
        overflow = table.evaluate("t => t.scrollWidth - t.parentElement.clientWidth")
        assert overflow <= 0, "nothing is cut off"
    page.close()
