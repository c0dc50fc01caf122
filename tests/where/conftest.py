"""A round that is large enough to be cut."""

import shutil
from contextlib import chdir
from pathlib import Path

import driving
import projects
import pytest

from tasks.project import plan
from tasks.project.execute import run_stage

RECIPE = projects.SMALL | {
    "judge": {"reward": "self_consistency", "self_consistency": {}, "logprob": {}, "self_judge": {"likeliest": 2}},
    "filter": {"threshold": {"min_reward": 0.4, "per_level": 3 * driving.SOME // 10}},
}
"""With a judge that asks a model, and a filter that compares prompts."""


@pytest.fixture(scope="session")
def many(tmp_path_factory, apart) -> Path:
    """A project with thousands of prompts that nobody has answered. Not to be changed: `round_one` is a copy."""
    root = tmp_path_factory.mktemp("many")
    projects.make(root, rounds=1, git=False)
    projects.write_recipe(root, "small", RECIPE)
    with chdir(root):
        plan.write(root)
        for name, stage in (("r0", "base"), ("r1", "prompts")):
            run_stage(root, name, stage)
    driving.fill(root, driving.SOME)
    return root


@pytest.fixture
def round_one(many, tmp_path, monkeypatch) -> Path:
    """A copy, as the working directory, whose stages are cut into small pieces."""
    for name in ("MAX_PROMPTS", "MAX_REQUESTS", "MAX_ROWS", "IDS_PER_PIECE"):
        monkeypatch.setattr(f"tasks.project.pieces.{name}", getattr(driving.pieces, name))
    driving.small_pieces(many)
    root = tmp_path / "project"
    shutil.copytree(many, root, symlinks=True)
    monkeypatch.chdir(root)
    return root
