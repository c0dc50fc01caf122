"""Whether `flywheel bisect` finds a fault that was planted in one stage of one round, and how long that takes.

    python benchmarks/faults.py PROJECT          [--fault hot]

PROJECT is a project with the rounds r0 to r2 of the embedded default, as `make demo` leaves it; a copy of it is worked in.
Each fault is in a round of its own beside the good one, with another seed, and the last with another parent, too. The command
runs as a user starts it. Seconds are those of a person who waits; seconds of the processor, with its children, are the
same on a busy machine.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from table import add

from tasks.project import plan
from tasks.project.edit import add_round
from tasks.project.params import load_params, stages_of
from tasks.project.scratch import run_apart

SECONDS = 600.0
"""A person's patience: ten minutes a fault."""
METRIC = "pass_at_1"
app = typer.Typer(add_completion=False, help=__doc__)


@dataclass(frozen=True)
class Fault:
    """A fault in a stage, in a round from `parent`, which is compared with the round `good`."""

    stage: str
    parent: str
    good: str
    settings: tuple[str, ...]


FAULTS = {
    "hot": Fault("generate", "r0", "r1", ("generate.sample.temperature=3",)),
    "strict": Fault("filter", "r0", "r1", ("filter.threshold.min_reward=1.5",)),
    "fast": Fault("train", "r2", "r2", ("train.sft.muon_lr=0.12", "train.sft.adamw_lr=0.015")),
}
"""Answers drawn far too hot; a threshold that no share of votes reaches; a learning rate thirty times too high. (A judge that
tosses a coin is no fault here: in a round from r1 it still gains as much, for `filter` also asks for the parent's verdict.)
"""


def plant(root: Path, name: str, fault: Fault) -> None:
    """Adds a round with a fault, and runs it without DVC."""
    if name not in load_params(root).blocks:
        add_round(root, name, fault.parent, list(fault.settings))
    plan.write(root)
    for stage in stages_of(load_params(root).block(name)):
        if failure := run_apart(root, root / "planted.log", "tasks.project.scratch", name, stage.name):
            sys.exit(f"{name}: {stage.name}: {failure}")


def bisect(root: Path, name: str, fault: Fault) -> tuple[dict, float, float]:
    """What the command finds, with its seconds, and those of the processor."""
    command = [
        sys.executable,
        "-m",
        "tasks",
        "bisect",
        "--good",
        fault.good,
        "--bad",
        name,
        "--metric",
        METRIC,
        "--json",
    ]
    before, clock = _processor(), time.perf_counter()
    done = subprocess.run(
        command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, check=True, stdout=subprocess.PIPE
    )
    return json.loads(done.stdout), time.perf_counter() - clock, _processor() - before


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@app.command()
def main(
    project: Annotated[Path, typer.Argument(help="A project in which r0, r1 and r2 have run.")],
    fault: Annotated[list[str] | None, typer.Option(help="A fault; repeatable. Default: all.")] = None,
) -> None:
    """Plants each fault, and looks for it."""
    missed = []
    with tempfile.TemporaryDirectory(prefix="flywheel-") as folder:
        root = Path(folder) / "project"
        shutil.copytree(project, root, symlinks=True)
        shutil.rmtree(root / ".flywheel/bisect", ignore_errors=True)
        for name in fault or FAULTS:
            plant(root, name, FAULTS[name])
            found, seconds, processor = bisect(root, name, FAULTS[name])
            causes = [c for c in found["causes"] if c not in ("parent", "seed", "rerun")]
            told = f"{', '.join(causes) or 'no stage'}, {len(found['runs'])} runs, {processor:.0f} s of the processor"
            add(
                f"bisect: {name} in {FAULTS[name].stage}",
                f"{seconds:.0f} s: {told}",
                f"{SECONDS:.0f} s",
                seconds / SECONDS,
                1.0,
            )
            if causes != [FAULTS[name].stage]:
                missed.append(f"{name}: {causes}, and the fault is in {FAULTS[name].stage}")
    if missed:
        sys.exit("; ".join(missed))


if __name__ == "__main__":
    app()
