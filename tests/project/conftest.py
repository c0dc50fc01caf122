"""Small projects of which nothing runs: for what is read from params.yaml and recipes."""

import shutil

import projects
import pytest


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """A project of two rounds. Not to be changed: `root` is a copy."""
    return projects.make(tmp_path_factory.mktemp("written"), git=False)


@pytest.fixture
def root(written, tmp_path, monkeypatch):
    """A copy of its params.yaml and recipes, as the working directory."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(written / name, tmp_path / name)
    shutil.copytree(written / "recipes", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    return tmp_path
