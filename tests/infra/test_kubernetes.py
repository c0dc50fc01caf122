"""The manifests of infra/k8s: each by itself by its schema, where the schemas are there, and all together by rules."""

import copy
import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from kubernetes_rules import containers, problems, templates
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
K8S = ROOT / "infra/k8s"
FILES = sorted(K8S.glob("*.yaml"))
SCHEMAS = "KUBERNETES_SCHEMAS"
"""The variable that names a folder with `swagger.json` of Kubernetes and KubeRay's `ray.io_rayclusters.yaml`."""
TEXTS = "\n".join(file.read_text() for file in FILES)


def load(path: Path) -> list[dict[str, Any]]:
    return list(YAML(typ="safe", pure=True).load_all(path.read_text()))


OBJECTS = [item for file in FILES for item in load(file)]


def find(kind: str, name: str, objects: list) -> dict[str, Any]:
    return next(o for o in objects if o["kind"] == kind and o["metadata"].get("name") == name)


def test_whatever_a_manifest_names_is_there():
    assert {o["kind"] for o in OBJECTS} >= {"Deployment", "StatefulSet", "Service", "RayCluster", "Job"}
    assert problems(OBJECTS, TEXTS) == []


def test_a_worker_that_joins_ray_finds_the_head():
    objects = copy.deepcopy(OBJECTS)
    [worker] = find("Deployment", "flywheel-worker", objects)["spec"]["template"]["spec"]["containers"]
    [comment] = re.findall(r"name: RAY_HEAD, value: \"\"}\s+# with ray.yaml: (\S+)", (K8S / "worker.yaml").read_text())
    next(v for v in worker["env"] if v["name"] == "RAY_HEAD")["value"] = comment
    assert problems(objects, TEXTS) == []
    find("RayCluster", "flywheel", objects)["metadata"]["name"] = "other"
    assert any(comment in problem for problem in problems(objects, TEXTS))


def pod(kind: str, name: str, objects: list) -> dict[str, Any]:
    return templates(find(kind, name, objects))[0]


BREAKS = {
    "nothing answers at minio:9001x": lambda o: find("Service", "minio", o)["spec"]["ports"].pop(0),
    "selects the pods of 0": lambda o: find("Service", "mlflow", o)["spec"]["selector"].update(part="ml"),
    "and its pods have": lambda o: pod("Deployment", "mlflow", o)["metadata"]["labels"].update(part="ml"),
    "there is no claim": lambda o: o.remove(find("PersistentVolumeClaim", "flywheel-project", o)),
    "there is no ConfigMap": lambda o: o.remove(find("ConfigMap", "postgres-databases", o)),
    "is not pinned": lambda o: containers(pod("StatefulSet", "minio", o))[0].update(image="minio/minio"),
    "may run as root": lambda o: pod("RayCluster", "flywheel", o)["spec"].pop("securityContext"),
    "enableServiceLinks": lambda o: pod("Deployment", "flywheel-worker", o)["spec"].pop("enableServiceLinks"),
    "mounts": lambda o: pod("Deployment", "flywheel-worker", o)["spec"]["volumes"].append({"name": "more"}),
    "which is not set before it": lambda o: containers(pod("Deployment", "mlflow", o))[0]["env"].reverse(),
    "no such kind": lambda o: find("RayCluster", "flywheel", o).update(apiVersion="ray.io/v1alpha1"),
    "asks port": lambda o: containers(pod("Deployment", "mlflow", o))[0]["ports"].clear(),
    "there is no service": lambda o: find("StatefulSet", "minio", o)["spec"].update(serviceName="store"),
    "several of that name": lambda o: o.append(find("Job", "minio-buckets", o)),
    "no comment makes the secret": lambda o: containers(pod("StatefulSet", "minio", o))[0]["env"][0]["valueFrom"][
        "secretKeyRef"
    ].update(key="no-such-key"),
    "stands in the file": lambda o: containers(pod("StatefulSet", "minio", o))[0]["env"].append(
        {"name": "MINIO_PASSWORD", "value": "1"}
    ),
}


@pytest.mark.parametrize("problem", BREAKS)
def test_what_is_broken_is_found(problem):
    objects = copy.deepcopy(OBJECTS)
    BREAKS[problem](objects)
    assert any(problem.removesuffix("9001x") in found for found in problems(objects, TEXTS))


def test_images_have_the_version_of_the_project():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    images = {c["image"] for o in OBJECTS for t in templates(o) for c in containers(t)}
    own = {image for image in images if image.startswith("flywheel")}
    assert own == {f"flywheel:{version}", f"flywheel-gpu:{version}"}


def test_rays_version_is_that_of_its_lock():
    lock = ROOT / "infra/ray.lock"
    if not lock.is_file():
        pytest.skip("there is no infra/ray.lock")
    [version] = re.findall(r"^ray(?:\[.*\])?==(\S+)", lock.read_text(), re.MULTILINE)
    assert find("RayCluster", "flywheel", OBJECTS)["spec"]["rayVersion"] == version


def strict(schema: Any) -> Any:
    """The schema, with fields that it does not name forbidden, as an API server has it that is asked to be strict."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string") or schema.get("format") == "int-or-string":
        return {"type": ["integer", "string"]}
    if "properties" not in schema:
        return {key: strict(value) for key, value in schema.items()}
    closed = {"additionalProperties": bool(schema.get("x-kubernetes-preserve-unknown-fields"))}
    fields = {name: strict(field) for name, field in schema["properties"].items()}
    return closed | schema | {"properties": fields}


@pytest.fixture(scope="module")
def schemas() -> Any:
    """The schema of each kind, by its apiVersion and kind."""
    place = os.environ.get(SCHEMAS)
    if not place:
        pytest.skip(f"{SCHEMAS} names no folder with the schemas of Kubernetes and KubeRay")
    named = json.loads((Path(place) / "swagger.json").read_text())["definitions"]
    definitions = {name: strict(definition) for name, definition in named.items()}
    found = {}
    for name, definition in definitions.items():
        for kind in definition.get("x-kubernetes-group-version-kind", []):
            version = f"{kind['group']}/{kind['version']}".lstrip("/")
            found[version, kind["kind"]] = {"$ref": f"#/definitions/{name}", "definitions": definitions}
    crd = YAML(typ="safe").load(Path(place) / "ray.io_rayclusters.yaml")
    for version in crd["spec"]["versions"]:
        schema = strict(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        found[f"ray.io/{version['name']}", "RayCluster"] = schema
    return found


def errors(item: dict[str, Any], schemas: Any) -> list[str]:
    validator = Draft202012Validator(schemas[item["apiVersion"], item["kind"]])
    return [f"{item['kind']} {e.json_path}: {e.message[:200]}" for e in validator.iter_errors(item)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_manifests_are_as_their_schemas_say(file, schemas):
    assert [text for item in load(file) for text in errors(item, schemas)] == []


def test_a_field_that_no_schema_knows_is_refused(schemas):
    for kind, name in (("Deployment", "mlflow"), ("RayCluster", "flywheel")):
        item = copy.deepcopy(find(kind, name, OBJECTS))
        templates(item)[0]["spec"]["containers"][0]["imagePulPolicy"] = "Always"
        assert any("imagePulPolicy" in text for text in errors(item, schemas))
    item = copy.deepcopy(find("Service", "mlflow", OBJECTS))
    item["spec"]["ports"][0]["port"] = "5000"
    assert errors(item, schemas)


def test_kubeconform_accepts_them():
    if not shutil.which("kubeconform") or not os.environ.get(SCHEMAS):
        pytest.skip(f"kubeconform is not on this machine, or {SCHEMAS} names no schemas for it")
    subprocess.run(["kubeconform", "-strict", "-ignore-missing-schemas", *FILES], check=True)
