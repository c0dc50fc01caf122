"""A real project with all that a lineage has: critiques, refinements, pairs, preferences, rows replayed twice."""

import shutil
from pathlib import Path
from typing import Any

import projects
import pytest
from ruamel.yaml import YAML

from tasks.project import pipeline, plan
from tasks.project.execute import run_stage
from tasks.project.params import load_params, stages_of

MIXED: dict[str, Any] = {
    "prompts": {"pool": {"count": 14, "levels": {2: 1, 4: 1, 6: 1}, "seeds": 20, "evaluation": projects.SCREEN}},
    "generate": {"sample": {"samples": 4, "max_tokens": 64}},
    "judge": {"reward": "self_consistency", "self_consistency": {}, "verifier": {}},
    "filter": {"threshold": {"min_reward": 0.5}},
    "critique": {"auto_math": {"limit": 8, "refinements": 4}},
    "pair": {"best_worst": {}, "refined": {}},
    "collect": {"answers": {}, "refinements": {}, "critiques": {}, "pairs": {}, "replay": {"share": 0.5}},
    "train": {"sft_dpo": {}},
}
EXAM = {"answers": {"splits": ["validation"], "greedy": 14, "sampled": 7, "samples": 2, "ks": [1, 2]}}


@pytest.fixture(scope="session")
def mixed(tmp_path_factory, apart) -> Path:
    """The base r0 and three rounds in a row, of which r3 has not been trained. Not to be changed: `copied` is a copy."""
    root = tmp_path_factory.mktemp("mixed")
    (root / "data").mkdir()
    for name in ("tasks", "data/base"):
        (root / name).symlink_to(projects.HERE / name)
    shutil.copytree(projects.HERE / "data/seeds", root / "data/seeds")
    projects.write_recipe(root, "mixed", MIXED)
    engine = {"strategy": "transformers", "threads": 1}
    base = {"seed": 0, "domain": {"strategy": "arithmetic"}, "engine": engine, "evaluate": EXAM, "gate": {}}
    rounds = {f"r{n}": {"parent": f"r{n - 1}", "base": "r0", "seed": n} for n in (1, 2, 3)}
    bases = {"r0": base | {"base": {"strategy": "local", "path": "data/base"}}}
    content = {"campaign": {"name": "mixed"}, "defaults": {"recipe": "mixed"}, "bases": bases, "rounds": rounds}
    YAML().dump(content, root / "params.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        pipeline.write(root, load_params(root))
        plan.write(root)
        for name, block in load_params(root).blocks.items():
            for stage in stages_of(block):
                if stage.name not in ("evaluate", "gate") and (name, stage.name) != ("r3", "train"):
                    run_stage(root, name, stage.name)
    return root


@pytest.fixture
def copied(mixed, tmp_path, monkeypatch) -> Path:
    """A copy of the mixed project, as the working directory."""
    root = tmp_path / "mixed"
    shutil.copytree(mixed, root, symlinks=True)
    monkeypatch.chdir(root)
    return root
