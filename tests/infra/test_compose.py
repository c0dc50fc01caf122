"""infra/compose.yaml and the image that its services share."""

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "infra/compose.yaml").read_text()
CONTENT = YAML(typ="safe", pure=True).load(TEXT)
SERVICES: dict[str, Any] = CONTENT["services"]
SCHEMA = "COMPOSE_SCHEMA"
"""The variable that names the file compose-spec.json."""


def test_services_are_whole():
    assert set(SERVICES) == {
        "postgres", "prefect", "worker", "mlflow", "minio", "buckets", "ray-head", "ray-worker",
    }  # fmt: skip
    for name, service in SERVICES.items():
        assert "image" in service or "build" in service
        assert set(service.get("depends_on", [])) <= set(SERVICES), name
        named = {v.split(":")[0] for v in service.get("volumes", []) if not v.startswith(".")}
        assert named <= set(CONTENT["volumes"])
        assert {c["source"] for c in service.get("configs", [])} <= set(CONTENT["configs"])
        assert all(p.startswith("127.0.0.1:") for p in service.get("ports", [])), "on loopback only"


def test_every_address_is_a_services():
    for name, service in SERVICES.items():
        values = [str(v) for v in (service.get("environment") or {}).values()] + [str(service.get("command", ""))]
        hosts = {h for v in values for h in re.findall(r"(?:://|@|--address |^)([a-z][a-z-]*):\d+", v)}
        assert hosts <= set(SERVICES), name


def test_images_are_pinned():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for service in SERVICES.values():
        image, _, tag = service["image"].partition(":")
        assert tag and tag != "latest", service["image"]
        assert image != "flywheel" or tag == version


def test_no_password_is_written_down():
    assert "PASSWORD" not in "".join(str(s.get("command")) for s in SERVICES.values())
    assert all(m.startswith("${") for m in re.findall(r"(?:PASSWORD|SECRET_ACCESS_KEY): \"?(\S+)", TEXT))


def test_it_is_as_its_schema_says():
    if not (path := os.environ.get(SCHEMA)):
        pytest.skip(f"{SCHEMA} names no compose-spec.json")
    own = {key: value for key, value in CONTENT.items() if not key.startswith("x-")}
    assert [e.message for e in Draft202012Validator(json.loads(Path(path).read_text())).iter_errors(own)] == []


def test_the_image_is_a_git_repository_which_dvc_wants():
    text = (ROOT / "infra/Dockerfile").read_text()
    assert text.index("COPY --chown=flywheel . .") < text.index("git init") < text.index("commit --quiet")


def test_the_image_has_all_that_its_services_run():
    copied = re.search(
        r"^COPY --chown=flywheel (infra/\S+ infra/\S+) infra/$", (ROOT / "infra/Dockerfile").read_text(), re.M
    )
    assert copied
    assert copied[1].split() == ["infra/requirements.lock", "infra/ray.lock"]


@pytest.mark.parametrize("head", ["", "ray-head:6379"])
def test_the_workers_script_joins_ray_where_it_is_told_and_starts_the_worker(tmp_path, head):
    """With programs in place of the real ones that write down how they were called."""
    for name in ("ray", "python", "prefect", "sleep"):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/calls\n' + "exec /bin/sleep 0.3\n")
        program.chmod(0o755)
    (tmp_path / "calls").touch()
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "RAY_HEAD": head}
    with subprocess.Popen(["sh", ROOT / "infra/worker.sh"], env=environment, start_new_session=True) as script:
        assert script.wait(20) == 0
        os.killpg(script.pid, 9) if head else None
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls.index("python -m flows.deploy") < calls.index("prefect worker start --pool flywheel --type process")
    joined = [call for call in calls if call.startswith("ray start")]
    assert bool(joined) == bool(head)
    assert all(f"--address {head} --num-cpus 0" in call and call.endswith("--block") for call in joined)
