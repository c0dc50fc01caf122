"""Scratch projects below `.flywheel`, where stages run without DVC: those of the bake-off, of replays and of previews.

What a scratch project does not make itself, it has as links into the project, which stays as it is.
"""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tasks.core.errors import FlywheelError
from tasks.core.plan import FOLDER, Plan
from tasks.core.plugin import TASKS


def link(root: Path, place: Path, names: Iterable[str]) -> None:
    """Links files and folders of the project at `root`, those that exist, into a scratch project."""
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        if (root / name).exists() and not (place / name).is_symlink():
            (place / name).symlink_to((root / name).resolve())


def mirror(root: Path, place: Path, name: str) -> None:
    """Links all of the project into a scratch project, but plans, the caches, and what was made of one base or round."""
    own = {"data", "data/plan", "data/cache", f"data/round={name}"}
    paths = (p.relative_to(root).as_posix() for folder in (root, root / "data") for p in folder.glob("[!.]*"))
    link(root, place, (path for path in paths if path not in own))


def write_plan(place: Path, plan: Plan) -> None:
    """Writes the plan of a stage, by which it then runs."""
    path = place / FOLDER / plan.round / f"{plan.stage}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(plan.text, encoding="utf-8")


def run_apart(cwd: Path, log: Path, module: str, *arguments: str, **environment: str) -> str | None:
    """Runs a module of this code in a process of its own, whose output goes to `log`; the last line of one that failed."""
    log.parent.mkdir(parents=True, exist_ok=True)
    variables = os.environ | {"PYTHONPATH": str(TASKS.parent)} | environment
    with log.open("w") as output:
        command = [sys.executable, "-m", module, *arguments]
        done = subprocess.run(command, cwd=cwd, env=variables, stdout=output, stderr=output, check=False)
    lines = log.read_text(errors="replace").strip().splitlines()
    return (lines[-1] if lines else f"exit code {done.returncode}") if done.returncode else None


def run_stages(root: Path, items: Iterable[tuple[str, str]]) -> None:
    """Runs stages, each given as (round, stage), in this process, which ends in one line where one fails."""
    from tasks.project.execute import run_stage

    try:
        for name, stage in items:
            run_stage(root, name, stage)
            print(f"{stage}@{name}", flush=True)
    except FlywheelError as error:
        sys.exit(f"{type(error).__name__}: {error}".replace("\n", "; "))


if __name__ == "__main__":
    run_stages(Path(), [(sys.argv[1], sys.argv[2])])
