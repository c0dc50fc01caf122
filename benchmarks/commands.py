"""How long the commands take that a person waits for, and what a campaign spends outside the model.

    make demo && python benchmarks/commands.py

Prints the median of five runs of each command beside its goal, and from the manifests of the rounds that are there the
share of the work that is neither the model nor process start-up. The share counts process-seconds: what stages that
ask no model take, what writing tables takes, and what DVC and Prefect take around a stage, over everything.
"""

import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from tasks import store
from tasks.params import load_params, stages_of
from tasks.stage import Stage

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
MODULES = "('torch', 'transformers', 'trl', 'mlflow', 'prefect')"
COMMANDS = {
    "flywheel --help": ([BIN / "flywheel", "--help"], 0.5),
    "import tasks": (
        [sys.executable, "-c", f"import sys, tasks.params; assert not [m for m in {MODULES} if m in sys.modules]"],
        1.5,
    ),
    "flywheel run r2, nothing to do": ([BIN / "flywheel", "run", "r2"], 3.0),
    "dvc repro, nothing to do": ([BIN / "dvc", "repro", "-q"], 2.5),
}
RUNS = 5


def seconds(command: list[str | Path]) -> float:
    """Median wall time of a command."""
    taken = []
    for _ in range(RUNS):
        clock = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        taken.append(time.perf_counter() - clock)
    return median(taken)


def asks_model(stage: Stage) -> bool:
    """Whether a stage generates, scores or trains."""
    return "engine" in stage.context or "work" in stage.context


def spent() -> dict[str, float]:
    """Seconds of all stages of all rounds: start-up, model, rules and writing; and how many stages there were."""
    total = {"start-up": 0.0, "model": 0.0, "rules and writing": 0.0, "stages": 0.0}
    for block in load_params(ROOT).blocks.values():
        done = store.manifests(ROOT, block.name)
        for stage in stages_of(block):
            took = done[stage.name].seconds
            total["start-up"] += took["start"]
            total["model" if asks_model(stage) else "rules and writing"] += took["run"]
            total["rules and writing"] += took["write"]
            total["stages"] += 1
    return total


def orchestration(stages: float) -> float:
    """Seconds that DVC takes around that many stages, by one that is up to date."""
    return stages * seconds([BIN / "dvc", "repro", "-q", "--single-item", "base@r0"])


def main() -> None:
    """Prints both tables."""
    console = Console(width=100)
    table = Table("command", "median, s", "goal, s")
    for name, (command, goal) in COMMANDS.items():
        table.add_row(name, f"{seconds(command):.2f}", f"≤ {goal}")
    console.print(table)
    parts = spent()
    stages = parts.pop("stages")
    parts[f"DVC around {stages:.0f} stages"] = orchestration(stages)
    whole = sum(parts.values())
    shares = Table("part of the campaign", "process-seconds", "share")
    for name, value in parts.items():
        shares.add_row(name, f"{value:.1f}", f"{value / whole:.1%}")
    console.print(shares)
    outside = whole - parts["start-up"] - parts["model"]
    console.print(f"outside the model and process start-up: {outside / whole:.1%} (goal: at most 15 %)")


if __name__ == "__main__":
    main()
