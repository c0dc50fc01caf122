import importlib
import re
from pathlib import Path

import pytest
from prefect import Flow
from ruamel.yaml import YAML

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


@pytest.mark.parametrize("flow", [run_round, run_campaign])
def test_every_parameter_is_explained_in_the_form(flow):
    assert all(p.get("description") for p in flow.parameters.properties.values())


def test_a_refusal_is_chosen_from_a_list():
    assert run_campaign.parameters.properties["on_refusal"]["enum"] == ["branch", "stop"]


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
    assert all(m.startswith("${") for m in re.findall(r"PASSWORD: \"?(\S+)", text))
