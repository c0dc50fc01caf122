"""How long the commands take that a person waits for, and what a campaign spends outside the model.

    python benchmarks/commands.py

Runs the demo in a fresh clone of what is committed, then prints the median of five runs of each command there beside its
goal, and the share of the demo's wall time in which no stage was starting up or in the model: rules, tables, DVC,
Prefect, MLflow. A stage's start-up and model time count as if they came first and in one piece.
"""

import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from statistics import median

from table import add

from tasks import store
from tasks.params import load_params

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


def seconds(command: list[str | Path], place: Path) -> float:
    """Median wall time of a command."""
    taken = []
    for _ in range(RUNS):
        clock = time.perf_counter()
        subprocess.run(command, cwd=place, check=True, capture_output=True, env=os.environ | {"PYTHONPATH": str(place)})
        taken.append(time.perf_counter() - clock)
    return median(taken)


def demo(place: Path) -> tuple[float, list[tuple[float, float]], dict[str, float]]:
    """Wall seconds of the demo in a fresh clone, when which stage's process started up or was in the model, and the sums
    over all stages of what the manifests say.
    """
    subprocess.run(["git", "clone", "--quiet", ROOT, place], check=True)
    clock = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "flows.demo"], cwd=place, check=True, env=os.environ | {"PYTHONPATH": str(place)}
    )
    wall = time.perf_counter() - clock
    busy, total = [], dict.fromkeys(("start", "model", "run", "write"), 0.0)
    for block in load_params(place).blocks.values():
        for manifest in store.manifests(place, block.name).values():
            took = manifest.seconds
            begin = datetime.fromisoformat(manifest.finished).timestamp() - sum(took.values())
            busy.append((begin, begin + took["start"] + took["model"]))
            total = {part: seconds + took[part] for part, seconds in total.items()}
    return wall, busy, total


def covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    length, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        length += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return length


def main() -> None:
    """Runs the demo in a fresh clone, then the commands in it, and prints what both took."""
    with tempfile.TemporaryDirectory(prefix="flywheel-") as folder:
        place = Path(folder) / "project"
        wall, busy, total = demo(place)
        for name, (command, goal) in COMMANDS.items():
            took = seconds(command, place)
            add(name, f"{took:.2f} s", f"{goal} s", took / goal, 1)
    outside = wall - covered(busy)
    add("demo, outside model and start-up", f"{outside:.0f} s", f"demo {wall:.0f} s", outside / wall, 0.15)
    parts = ", ".join(f"{name} {value:.0f}" for name, value in total.items() if name != "start")
    add(
        f"start-up of the demo's {len(busy)} stages",
        f"{total['start']:.0f} process-s",
        f"{parts} process-s",
        None,
        None,
    )


if __name__ == "__main__":
    main()
