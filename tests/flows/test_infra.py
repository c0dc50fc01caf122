import importlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prefect import Flow
from prefect.utilities.callables import parameter_schema
from ruamel.yaml import YAML

from flows import HEARTBEAT, choices, deploy
from flows.campaign import run_campaign
from flows.deploy import DEPLOYMENTS, SERVED
from flows.round import run_exam, run_round
from flows.services import POOL
from tasks.core.errors import UnknownName
from tasks.project.edit import add_round

INFRA = Path(__file__).parents[2] / "infra"


def load(name: str) -> list:
    return list(YAML(typ="safe", pure=True).load_all((INFRA / name).read_text()))


def flow(entrypoint: str) -> Flow:
    path, name = entrypoint.split(":")
    return getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)


def test_the_file_deploys_what_the_code_deploys():
    [content] = load("prefect.yaml")
    entries = {d["name"]: d for d in content["deployments"]}
    assert entries.keys() == DEPLOYMENTS.keys()
    for name, entry in entries.items():
        code = DEPLOYMENTS[name]
        assert (entry["entrypoint"], entry["description"]) == (code.entrypoint, code.description)
        assert entry.get("parameters", {}) == code.parameters
        assert entry["concurrency_limit"] == {"limit": 1, "collision_strategy": code.collision.value}
        assert [(s["cron"], s["active"]) for s in entry.get("schedules", [])] == (
            [(code.cron, False)] if code.cron else []
        )
        assert (entry["work_pool"]["name"], entry["work_pool"]["job_variables"]["env"]) == (POOL, HEARTBEAT)
        assert entry["enforce_parameter_schema"] is False
        assert set(entry.get("parameters", {})) <= set(flow(code.entrypoint).parameters.properties)


def test_what_is_served_does_not_take_the_place_of_what_is_deployed(monkeypatch):
    served = []
    monkeypatch.setattr(deploy, "serve", lambda *deployments: served.extend(deployments))
    deploy.serve_here(INFRA.parent)
    assert [(d.flow_name, d.name) for d in served] == [
        (flow(d.entrypoint).name, f"{SERVED}-{name}") for name, d in DEPLOYMENTS.items()
    ]
    assert len({d.name for d in served} | DEPLOYMENTS.keys()) == 2 * len(served), "each has a name of its own"


@pytest.mark.parametrize("flow", [run_round, run_campaign, run_exam])
def test_every_parameter_is_explained_in_the_form_and_can_be_left_out(flow):
    """A schedule that was made without parameters runs, too."""
    assert all(p.get("description") for p in flow.parameters.properties.values())
    assert flow.parameters.required == []


def test_the_form_lists_the_rounds_and_recipes_that_are_there(project):
    root = project()
    add_round(root, "mine", "r1")
    assert parameter_schema(run_round.fn).properties["round"]["enum"] == ["latest", "mine", "r2", "r1", "r0"]
    properties = parameter_schema(run_campaign.fn).properties
    assert "small" in properties["recipe"]["enum"]
    assert properties["on_refusal"]["enum"] == ["branch", "stop"]
    (root / "params.yaml").write_text("rounds: [")
    assert "enum" not in parameter_schema(run_round.fn).properties["round"], "a broken file is the run's to report"


def test_the_latest_round_is_the_last_one_and_a_wrong_name_is_corrected(project):
    root = project()
    assert choices.resolve(root, "latest") == "r2"
    assert choices.resolve(root, "r0") == "r0"
    with pytest.raises(UnknownName, match="did you mean"):
        choices.resolve(root, "r22")
    add_round(root, "latest", "r1")
    add_round(root, "r9", "r1")
    assert choices.resolve(root, "latest") == "latest", "a round that is called so"


def test_the_command_of_the_file_says_where_the_project_is():
    """What prefect.yaml takes from the environment is empty where it is not set."""
    text = (INFRA / "prefect.yaml").read_text()
    taken = set(re.findall(r"{{ \$(\w+) }}", text))
    [command] = re.findall(r"^#   (.*prefect .*deploy.*)$", text, re.MULTILINE)
    assert taken == {"FLYWHEEL_ROOT"}
    assert command.startswith("FLYWHEEL_ROOT=$PWD ")


def test_what_git_ignores_is_not_in_the_image():
    root = INFRA.parent
    own = (root / ".gitignore").read_text().splitlines() + [
        f".dvc{line}" for line in (root / ".dvc/.gitignore").read_text().splitlines()
    ]
    ignored = {line.strip("/").removeprefix("**/") for line in own if line and not line.startswith("#")}
    left_out = (INFRA / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored - {line.removeprefix("**/") for line in left_out} == set()
    assert {".git", "**/.env*", "**/*.duckdb"} <= set(left_out)


def test_a_volume_gets_the_project_once_and_the_code_of_every_image(tmp_path):
    image, volume = tmp_path / "image", tmp_path / "volume"
    volume.mkdir()
    for name in ("tasks", "flows", "infra", "recipes", "data"):
        (image / name).mkdir(parents=True)
        (image / name / "file").write_text("1")
    for name in ("params.yaml", "dvc.yaml"):
        (image / name).write_text("1")
        (image / name).chmod(0o444)

    def start() -> dict[str, str]:
        subprocess.run(["sh", INFRA / "k8s/volume.sh", image, volume], check=True)
        return {str(p.relative_to(volume)): p.read_text() for p in volume.rglob("*") if p.is_file()}

    shutil.copy(image / "params.yaml", volume)  # all that a first start had copied when it was cut short
    assert set(start()) == {f"{n}/file" for n in ("tasks", "flows", "infra", "recipes", "data")} | {
        "params.yaml",
        "dvc.yaml",
        ".filled",
    }
    (volume / "params.yaml").chmod(0o644)
    (volume / "params.yaml").write_text("mine")
    (volume / "data/file").write_text("mine")
    (image / "tasks/file").rename(image / "tasks/other")
    (image / "dvc.yaml").chmod(0o644)
    (image / "dvc.yaml").write_text("2")
    found = start()
    assert found["params.yaml"] == found["data/file"] == "mine"
    assert found["dvc.yaml"] == "2"
    assert "tasks/other" in found and "tasks/file" not in found
