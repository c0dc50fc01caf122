"""The README's blocks, run in their order in a clone with small rounds; the two set-up commands are left out."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
SMALL = {
    "answers": {"greedy": 14, "sampled": 14, "samples": 2, "ks": [1, 2]},
    "judging": {"count": 7},
    "critiques": {"count": 7, "problems": 7},
}

pytestmark = pytest.mark.timeout(900)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


PORTS = {"PREFECT_SERVER_API_PORT": free_port(), "MLFLOW_PORT": free_port()}


def shrink(place):
    """The same rounds with fewer problems, samples and items."""
    yaml = YAML()
    content = yaml.load(place / "params.yaml")
    for base in content["bases"].values():
        asked = {"alignment": {"limit": 7}} if "alignment" in base["evaluate"] else {}  # by a gate
        base["evaluate"] = SMALL | asked
    yaml.dump(content, place / "params.yaml")
    recipe = yaml.load(place / "recipes/sharpen.yaml")
    recipe["stages"]["prompts"]["pool"]["count"] = 24
    recipe["stages"]["generate"]["sample"]["samples"] = 4
    yaml.dump(recipe, place / "recipes/sharpen.yaml")


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The project as a user has it, with small rounds, a model, prompts and a domain of their own."""
    place = tmp_path_factory.mktemp("readme") / "project"
    for name in ("tasks", "flows", "recipes", "data/base", "data/taught", "data/seeds", "infra", ".dvc/plots", "docs"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (
        "params.yaml",
        "dvc.yaml",
        ".dvcignore",
        ".gitignore",
        "pyproject.toml",
        ".dvc/config",
        ".dvc/.gitignore",
    ):
        (place / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, place / name)
    shrink(place)
    shutil.copytree(ROOT / "data/base", place / "path/to/model")
    shutil.copy(ROOT / "tests/readme/stories.py", place / "tasks/domains/stories.py")
    shutil.copy(ROOT / "tests/readme/mine.jsonl", place / "data/seeds/mine.jsonl")
    for command in (
        ["init", "-q"],
        ["config", "user.name", "a"],  # `dvc exp run` commits
        ["config", "user.email", "a@b"],
        ["add", "-A"],
        ["commit", "-qm", "start"],
    ):
        subprocess.run(["git", *command], cwd=place, check=True)
    yield place
    subprocess.run(["flywheel", "down"], cwd=place, env=environment(place), check=True)


def environment(place):
    """The clone's own code in the place of the installed one, and no settings of whoever runs the tests."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "DVC_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return own | {"PYTHONPATH": str(place), "PATH": path} | PORTS


@pytest.mark.parametrize(("language", "text"), BLOCKS, ids=[b[1].strip().split("\n")[0][:50] for b in BLOCKS])
def test_a_block_of_the_readme(clone, language, text):
    text = text.replace("4200", PORTS["PREFECT_SERVER_API_PORT"])  # which a server of the developer's own may have
    command = ["bash", "-euo", "pipefail", "-c", text] if language == "sh" else [sys.executable, "-c", text]
    done = subprocess.run(command, cwd=clone, env=environment(clone), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr


def test_the_set_up_commands_are_in_the_readme_and_the_makefile():
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for target in ("demo", "test"):
        assert f"```\nmake {target}\n```" in readme
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
