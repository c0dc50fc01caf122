import importlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prefect import Flow
from ruamel.yaml import YAML

from flows import deploy
from flows.campaign import run_campaign
from flows.deploy import FLOWS, NAME
from flows.round import run_round
from flows.services import POOL

INFRA = Path(__file__).parents[2] / "infra"


def load(name: str) -> list:
    return list(YAML(typ="safe", pure=True).load_all((INFRA / name).read_text()))


def flow(entrypoint: str) -> Flow:
    path, name = entrypoint.split(":")
    return getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)


def test_the_file_deploys_what_the_code_deploys():
    [content] = load("prefect.yaml")
    entries = {d["entrypoint"]: d for d in content["deployments"]}
    assert {e: d["description"] for e, d in entries.items()} == FLOWS
    assert {d["name"] for d in entries.values()} == {NAME}
    assert {d["work_pool"]["name"] for d in entries.values()} == {POOL}
    for entrypoint, entry in entries.items():
        assert isinstance(flow(entrypoint), Flow)
        assert set(entry.get("parameters", {})) <= set(flow(entrypoint).parameters.properties)


def test_what_is_served_does_not_take_the_place_of_what_is_deployed(monkeypatch):
    served = []
    monkeypatch.setattr(deploy, "serve", lambda *deployments: served.extend(deployments))
    deploy.serve_here(INFRA.parent)
    assert [d.flow_name for d in served] == ["round", "campaign"]
    assert NAME not in {d.name for d in served}


@pytest.mark.parametrize("flow", [run_round, run_campaign])
def test_every_parameter_is_explained_in_the_form(flow):
    assert all(p.get("description") for p in flow.parameters.properties.values())


def test_a_refusal_is_chosen_from_a_list():
    assert run_campaign.parameters.properties["on_refusal"]["enum"] == ["branch", "stop"]


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
    for name in ("tasks", "flows", "recipes", "data"):
        (image / name).mkdir(parents=True)
        (image / name / "file").write_text("1")
    for name in ("params.yaml", "dvc.yaml"):
        (image / name).write_text("1")
        (image / name).chmod(0o444)

    def start() -> dict[str, str]:
        subprocess.run(["sh", INFRA / "k8s/volume.sh", image, volume], check=True)
        return {str(p.relative_to(volume)): p.read_text() for p in volume.rglob("*") if p.is_file()}

    shutil.copy(image / "params.yaml", volume)  # all that a first start had copied when it was cut short
    assert set(start()) == {f"{n}/file" for n in ("tasks", "flows", "recipes", "data")} | {
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


def test_the_image_is_a_git_repository_which_dvc_wants():
    text = (INFRA / "Dockerfile").read_text()
    assert text.index("COPY --chown=flywheel . .") < text.index("git init") < text.index("commit --quiet")


@pytest.mark.parametrize("name", sorted(p.name for p in (INFRA / "k8s").glob("*.yaml")))
def test_kubernetes_manifests_have_what_every_object_has(name):
    for item in load(f"k8s/{name}"):
        assert {"apiVersion", "kind", "metadata", "spec"} <= set(item)
        assert {"name", "generateName"} & set(item["metadata"])
        pod = item["spec"].get("template", {}).get("spec")
        mounts = {m["name"] for c in pod["containers"] for m in c.get("volumeMounts", [])} if pod else set()
        assert not pod or mounts == {v["name"] for v in pod["volumes"]}


def test_compose_services_are_whole():
    [content] = load("compose.yaml")
    services = content["services"]
    assert set(services) == {"postgres", "prefect", "worker", "mlflow", "minio", "bucket"}
    for name, service in services.items():
        assert "image" in service or "build" in service
        assert set(service.get("depends_on", [])) <= set(services), name
        named = {v.split(":")[0] for v in service.get("volumes", []) if not v.startswith(".")}
        assert named <= set(content["volumes"])
        assert all(p.startswith("127.0.0.1:") for p in service.get("ports", [])), "on loopback only"


def test_no_password_is_written_down():
    text = (INFRA / "compose.yaml").read_text()
    assert "PASSWORD" not in "".join(str(s.get("command")) for s in load("compose.yaml")[0]["services"].values())
    assert all(m.startswith("${") for m in re.findall(r"PASSWORD: \"?(\S+)", text))
