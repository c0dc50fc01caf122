"""What must hold of Kubernetes manifests as a whole, which no schema says: whatever one names is there."""

import re
from collections.abc import Iterator
from typing import Any

Object = dict[str, Any]
KINDS = {
    ("v1", "ConfigMap"),
    ("v1", "PersistentVolumeClaim"),
    ("v1", "Service"),
    ("apps/v1", "Deployment"),
    ("apps/v1", "StatefulSet"),
    ("batch/v1", "Job"),
    ("ray.io/v1", "RayCluster"),
}
ADDRESS = re.compile(r"(?:^|://|@)([a-z][a-z0-9-]*):(\d+)(?:/|$)")
"""A host and port in a value: `http://minio:9000`, `postgresql://…@postgres:5432/…`, `flywheel-head-svc:6379`."""
SECRET_LITERAL = re.compile(r"--from-literal=([a-z0-9-]+)=")
NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


def templates(item: Object) -> list[Object]:
    """The pod templates of an object."""
    spec = item.get("spec", {})
    if item["kind"] == "RayCluster":
        return [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]
    return [spec["template"]] if "template" in spec else []


def containers(template: Object) -> list[Object]:
    """All containers of a pod, those that run first included."""
    return [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]


def problems(objects: list[Object], texts: str) -> list[str]:
    """What is wrong with manifests that are applied together; `texts` are their files, whose comments make the secret."""
    return [f"{o['kind']} {_name(o)}: {text}" for o in objects for text in _of_object(o, objects, texts)]


def _name(item: Object) -> str:
    return str(item["metadata"].get("name") or item["metadata"].get("generateName"))


def _of_object(item: Object, objects: list[Object], texts: str) -> Iterator[str]:
    if (item["apiVersion"], item["kind"]) not in KINDS:
        yield f"no such kind: {item['apiVersion']} {item['kind']}"
        return
    if not NAME.fullmatch(_name(item).rstrip("-")):
        yield "its name is none of Kubernetes'"
    same = [o for o in objects if (o["kind"], _name(o)) == (item["kind"], _name(item))]
    if len(same) > 1:
        yield "there are several of that name"
    if item["kind"] == "Service":
        yield from _of_service(item, objects)
    for template in templates(item):
        selector = item["spec"].get("selector", {}).get("matchLabels", {})
        if not selector.items() <= template["metadata"]["labels"].items():
            yield f"selects {selector}, and its pods have {template['metadata']['labels']}"
        yield from _of_pod(template, item, objects, texts)
    if item["kind"] == "StatefulSet" and item["spec"]["serviceName"] not in _names(objects, "Service"):
        yield f"there is no service {item['spec']['serviceName']}"


def _names(objects: list[Object], kind: str) -> set[str]:
    return {_name(o) for o in objects if o["kind"] == kind}


def _of_service(service: Object, objects: list[Object]) -> Iterator[str]:
    selector = service["spec"]["selector"]
    pods = [t for o in objects for t in templates(o) if selector.items() <= t["metadata"]["labels"].items()]
    if len(pods) != 1:
        yield f"selects the pods of {len(pods)} objects, and should of one"
    ports = {p["name"] for pod in pods for c in containers(pod) for p in c.get("ports", [])}
    for port in service["spec"]["ports"]:
        if port["targetPort"] not in ports:
            yield f"port {port['targetPort']!r} is none of its pods' ({sorted(ports)})"


def _of_pod(template: Object, item: Object, objects: list[Object], texts: str) -> Iterator[str]:
    spec = template["spec"]
    if not spec.get("securityContext", {}).get("runAsNonRoot"):
        yield "may run as root"
    if spec.get("enableServiceLinks") is not False:
        yield "the names of services become variables such as MLFLOW_PORT: enableServiceLinks must be false"
    claims = {claim["metadata"]["name"] for claim in item["spec"].get("volumeClaimTemplates", [])}
    volumes = {v["name"] for v in spec.get("volumes", [])} | claims
    mounts = {m["name"] for c in containers(template) for m in c.get("volumeMounts", [])}
    if mounts != volumes:
        yield f"mounts {sorted(mounts)} of the volumes {sorted(volumes)}"
    for volume in spec.get("volumes", []):
        claim = volume.get("persistentVolumeClaim", {}).get("claimName")
        if claim and claim not in _names(objects, "PersistentVolumeClaim"):
            yield f"there is no claim {claim}"
        config = volume.get("configMap", {}).get("name")
        if config and config not in _names(objects, "ConfigMap"):
            yield f"there is no ConfigMap {config}"
    for container in containers(template):
        initial = container in spec.get("initContainers", [])
        for text in _of_container(container, objects, texts, initial):
            yield f"{container['name']}: {text}"


def _of_container(container: Object, objects: list[Object], texts: str, initial: bool) -> Iterator[str]:
    tag = container["image"].rpartition(":")[2] if ":" in container["image"] else "latest"
    if tag == "latest":
        yield f"the image {container['image']} is not pinned"
    resources = container.get("resources", {})
    if not initial and not (
        {"cpu", "memory"} <= set(resources.get("requests", {})) and "memory" in resources["limits"]
    ):
        yield "asks for no CPU and memory, or has no limit of memory"
    ports = {p["name"] for p in container.get("ports", [])}
    for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
        asked = container.get(probe, {})
        port = (asked.get("httpGet") or asked.get("tcpSocket") or {}).get("port")
        if port and port not in ports:
            yield f"{probe} asks port {port!r}, which it has not"
    known: set[str] = set()
    for variable in container.get("env", []):
        yield from _of_variable(variable, known, texts)
        known.add(variable["name"])
    values = [v.get("value", "") for v in container.get("env", [])]
    for value in [*values, *map(str, container.get("args", []) + container.get("command", []))]:
        for host, port in ADDRESS.findall(value):
            if int(port) not in _ports(host, objects):
                yield f"nothing answers at {host}:{port}"


def _of_variable(variable: Object, known: set[str], texts: str) -> Iterator[str]:
    name, secret = variable["name"], variable.get("valueFrom", {}).get("secretKeyRef")
    if secret and not (
        f"create secret generic {secret['name']} " in texts and secret["key"] in SECRET_LITERAL.findall(texts)
    ):
        yield f"no comment makes the secret {secret['name']} with the key {secret['key']}"
    if re.search("PASSWORD|SECRET|ACCESS_KEY", name) and not secret:
        yield f"{name} stands in the file"
    for used in re.findall(r"\$\((\w+)\)", variable.get("value", "")):
        if used not in known:
            yield f"{name} uses {used}, which is not set before it"


def _ports(host: str, objects: list[Object]) -> set[int]:
    """The ports at which a name of the cluster answers. KubeRay makes a service for the head of a RayCluster."""
    for item in objects:
        if item["kind"] == "Service" and _name(item) == host:
            return {port["port"] for port in item["spec"]["ports"]}
        if item["kind"] == "RayCluster" and f"{_name(item)}-head-svc" == host:
            [head] = item["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
            return {port["containerPort"] for port in head["ports"]}
    return set()
