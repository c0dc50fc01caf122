"""A recipe with a phase before it as DVC runs it, each stage in a process of its own."""

import shutil
import subprocess

import projects
import pytest
from small_rounds import Rounds, project

pytestmark = pytest.mark.timeout(900)


def test_dvc_makes_two_rounds_of_a_recipe(tmp_path, apart, monkeypatch):
    root = projects.make(tmp_path / "project", rounds=1, git=False)
    shutil.rmtree(root / "data/base")
    for name in ("data/base", "data/taught"):
        shutil.copytree(projects.HERE / name, root / name)
    monkeypatch.chdir(root)
    names = project(root, "cream")
    command = ["dvc", "repro", "--quiet", *(f"train@{name}" for name in names)]
    done = subprocess.run(command, env=projects.own_code(root), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    rounds = Rounds(root, "cream", names)
    assert len({rounds.digest(name) for name in ("r0t", *names)}) == 1 + len(names)
    assert all(rounds.metrics(name, "train")["trained"] for name in names)
    again = subprocess.run([*command[:2], *command[3:]], env=projects.own_code(root), capture_output=True, text=True)
    assert "up to date" in again.stdout
