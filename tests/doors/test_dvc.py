"""DVC gives commands to a shell: no name in a params.yaml that somebody sent is a command."""

import os
import shutil
import subprocess
from pathlib import Path

import projects
import pytest
from ruamel.yaml import YAML

from tasks.core.errors import ParamsError
from tasks.project.addresses import block_name

EXECUTED = "canary"
NAME = f"x;touch {EXECUTED};"


@pytest.fixture
def sent(made) -> Path:
    """A project whose params.yaml has a base with a command for a name, and a plan of it that was never made here."""

    def add(content):
        content["bases"][NAME] = dict(content["bases"]["r0"])
        content["rounds"][f"$(touch {EXECUTED})"] = {"parent": "r0", "base": "r0", "seed": 1}

    projects.rewrite(made, add)
    for name in (NAME, f"$(touch {EXECUTED})"):
        shutil.copytree(made / "data/plan/r0", made / "data/plan" / name)
        shutil.copytree(made / "data/plan/r1", made / "data/plan" / name, dirs_exist_ok=True)
    return made


def repro(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["dvc", "repro", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, env=projects.own_code(root))


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        (f"base@{NAME}",),
        ("-s", f"base@{NAME}"),
        ("-f", "-s", f"base@{NAME}"),
        ("-f", "-s", f"evaluate-base@{NAME}"),
        ("-f", "-s", f"filter@$(touch {EXECUTED})"),
    ],
    ids=["all", "one", "alone", "forced", "exam", "round"],
)
def test_a_name_is_no_command(sent, arguments):
    done = repro(sent, *arguments)
    assert done.returncode != 0
    assert not list(sent.rglob(EXECUTED))
    assert "a name is a lower-case letter" in done.stderr or "No such file" in done.stderr


def test_no_command_of_dvc_yaml_holds_a_name():
    content = YAML(typ="safe").load(projects.HERE / "dvc.yaml")
    commands = [stage.get("do", stage)["cmd"] for stage in content["stages"].values()]
    assert len(commands) > 10
    assert all(c == "flywheel plan" or c.endswith(' "$DVC_STAGE"') for c in commands)
    assert not [c for c in commands if "${" in c]


def test_dvc_says_which_stage_it_runs_from_any_folder(made):
    """The name that a stage gets is the one of its address, wherever DVC is started."""
    (made / "elsewhere").mkdir()
    done = subprocess.run(
        ["dvc", "repro", "-f", "-s", "../dvc.yaml:gate@r2"],
        cwd=made / "elsewhere", capture_output=True, text=True, check=False, env=projects.own_code(made),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gate@r2: decisions" in done.stdout


@pytest.mark.parametrize("address", ["r2", "judge@r2", "dvc.yaml:judge@r2", "../../a b/dvc.yaml:judge@r2"])
def test_the_name_of_an_address(address):
    assert block_name(address, "judge") == "r2"
    assert block_name("evaluate-base@r0", "evaluate") == "r0"


@pytest.mark.parametrize(
    "address",
    ["", "r2\n", "gate@r2", "judge@x@r2", "judge@x/dvc.yaml:judge@r2", "../r2", "judge@", "judge@R2", "judge@r2;x"],
)
def test_what_is_no_address_of_the_stage_is_refused(address):
    with pytest.raises(ParamsError, match="names no base or round"):
        block_name(address, "judge")


def test_the_shell_that_dvc_takes_from_the_environment_is_no_other_door(sent, monkeypatch):
    for shell in filter(None, map(shutil.which, ("sh", "bash", "dash", "zsh", "fish"))):
        monkeypatch.setenv("SHELL", shell)
        assert repro(sent, "-f", "-s", f"base@{NAME}").returncode != 0
        assert not list(sent.rglob(EXECUTED)), os.path.basename(shell)
