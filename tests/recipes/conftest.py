"""Rounds of the shipped recipes in small: every stage but the exam, in one process."""

from collections.abc import Callable

import projects
import pytest
from small_rounds import Rounds, project

from tasks.project import plan
from tasks.project.execute import run_stage
from tasks.project.params import load_params, stages_of


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Callable[[str], Rounds]:
    """Makes two rounds of a recipe, once."""
    known: dict[str, Rounds] = {}

    def make(recipe: str) -> Rounds:
        if recipe not in known:
            root = tmp_path_factory.mktemp(recipe)
            for name in ("tasks", "recipes", "data/base", "data/taught", "data/seeds"):
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).symlink_to(projects.HERE / name)
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(root)
                names = project(root, recipe)
                plan.write(root)
                for name, block in load_params(root).blocks.items():
                    for stage in stages_of(block):
                        if stage.name not in ("evaluate", "gate"):
                            run_stage(root, name, stage.name)
            known[recipe] = Rounds(root, recipe, names)
        return known[recipe]

    return make
