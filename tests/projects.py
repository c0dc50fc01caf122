"""A whole project in miniature: a copy of the real one whose rounds take a tenth of a second a stage."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tasks.project import pipeline, plan
from tasks.project.edit import add_round
from tasks.project.execute import run_stage
from tasks.project.params import load_params, stages_of
from tasks.project.recipes import plain

HERE = Path(__file__).parents[1]
SCREEN = {"validation": 20, "heldout": 20, "gold": 20}
SMALL: dict[str, Any] = {
    "prompts": {"seeds": {"count": 12, "evaluation": SCREEN}},
    "generate": {"sample": {"samples": 3}},
    "judge": {
        "reward": "self_consistency",
        **{n: {} for n in ("self_consistency", "self_certainty", "logprob", "verifier")},
        "self_judge": {"likeliest": 2},
    },
    "filter": {"threshold": {"min_reward": 0.4}},
    "critique": {"auto_math": {"limit": 4, "refinements": 2}},
    "pair": {"best_worst": {}},
    "collect": {},
    "train": {"sft": {}},
}
"""A recipe that collects nothing to train on, so that a round's model is its parent's: no trainer is needed."""
EXAM: dict[str, dict[str, Any]] = {
    "answers": {"greedy": 14, "sampled": 7, "samples": 2, "ks": [1, 2]},
    "judging": {"count": 7},
    "critiques": {"count": 7, "problems": 7},
}


def make(root: Path, rounds: int = 2, git: bool = True) -> Path:
    """Fills an empty folder with a project of the base r0 and some rounds in a row, none of which has run."""
    for folder in ("tasks", "flows", "recipes"):
        shutil.copytree(HERE / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(HERE / "data/seeds", root / "data/seeds")
    (root / ".dvc").mkdir()
    for name in (".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore", "params.yaml"):
        shutil.copy(HERE / name, root / name)
    stub_model(root / "data/base")
    write_recipe(root, "small", SMALL)
    rewrite(root, _small)
    for n in range(2, rounds + 1):
        add_round(root, f"r{n}", f"r{n - 1}")
    pipeline.write(root, load_params(root))
    if git:
        commit(root, "start")
    else:
        with (root / ".dvc/config").open("a") as config:
            config.write("    no_scm = true\n")
    return root


def write_recipe(root: Path, name: str, stages: dict[str, Any]) -> None:
    """Writes a recipe of the project."""
    (root / "recipes").mkdir(exist_ok=True)
    YAML().dump({"title": f"The recipe {name} of a test", "stages": stages}, root / f"recipes/{name}.yaml")


def _small(content: Any) -> None:
    content["defaults"]["recipe"] = "small"
    content["bases"] = {"r0": content["bases"]["r0"]}
    content["rounds"] = {"r1": content["rounds"]["r1"]}
    content["bases"]["r0"]["engine"] = {"strategy": "fake"}
    content["bases"]["r0"]["evaluate"] = {n: dict(v) for n, v in EXAM.items()}


def rewrite(root: Path, change: Any) -> None:
    """Applies `change(content)` to params.yaml, whether that is valid then or not."""
    yaml = YAML()
    content = yaml.load(root / "params.yaml")
    change(content)
    yaml.dump(content, root / "params.yaml")


def set_values(root: Path, name: str, settings: list[str]) -> None:
    """Changes values of a round by hand: `generate.sample.samples=6`."""

    def change(content: Any) -> None:
        for path, _, value in (setting.partition("=") for setting in settings):
            content["rounds"][name].setdefault("set", {})[path] = YAML(typ="safe").load(value)

    rewrite(root, change)


def set_exam(root: Path, stage: str, member: str, **values: Any) -> None:
    """Changes the parameters of a member of the base's `evaluate` or `gate`."""
    rewrite(root, lambda content: content["bases"]["r0"][stage][member].update(values))


def values(root: Path) -> dict[str, Any]:
    """params.yaml as plain values."""
    return plain(YAML().load(root / "params.yaml"))


def stub_model(folder: Path, scale: float = 1.0) -> None:
    """A folder that passes as a model as long as nobody loads it."""
    import numpy as np
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8}))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE"}}))
    save_file({"w": scale * np.arange(4, dtype=np.float32)}, folder / "model.safetensors")


def git(root: Path, *arguments: str) -> str:
    """Runs git in a project."""
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *who, *arguments], cwd=root, check=True, capture_output=True, text=True).stdout


def commit(root: Path, message: str) -> None:
    """Commits all of a project that git does not ignore."""
    if not (root / ".git").exists():
        git(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", message)


def own_code(root: Path) -> dict[str, str]:
    """An environment in which a project's own code is imported, and not the installed one."""
    return os.environ | {"PYTHONPATH": str(root)}


def run_all() -> None:
    """Runs every stage of every round of the project that is the working directory, in this process."""
    plan.write(Path())
    for name, block in load_params(Path()).blocks.items():
        for stage in stages_of(block):
            run_stage(Path(), name, stage.name)


def digests(root: Path) -> dict[str, str]:
    """The sha256 of every file that was made, by its path."""
    from tasks.core.store import sha256

    made = sorted(p for p in (root / "data").glob("round=*/**/*") if p.is_file() and ".staging" not in p.parts)
    return {str(p.relative_to(root)): sha256(p) for p in made}


@contextmanager
def dvc(root: Path) -> Iterator[Any]:
    """The project's DVC repository, opened in this process."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        yield repo
