"""How long the commands take that a person waits for, and what a campaign spends outside the model.

    python benchmarks/commands.py demo

It works in a fresh clone of what is committed: runs the demo there, prints the median of five runs of each command beside its
goal, and the share of the demo's wall time in which no stage was starting up or in the model: rules, tables, DVC, Prefect,
MLflow. A stage's start-up and model time count as if they came first and in one piece. Many rounds are measured by rounds.py.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from statistics import median

import typer
from table import add

from tasks.core import store
from tasks.project.params import load_params

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
MODULES = "('torch', 'transformers', 'trl', 'mlflow', 'prefect')"
IMPORT = f"import sys, tasks.project.params; assert not [m for m in {MODULES} if m in sys.modules]"
RUN, REPRO = [BIN / "flywheel", "run"], [BIN / "dvc", "repro", "-q"]
COMMANDS = {
    "flywheel --help": ([BIN / "flywheel", "--help"], 0.5),
    "import tasks.project.params": ([sys.executable, "-c", IMPORT], 1.5),
    "flywheel run r2, nothing to do": ([*RUN, "r2"], 1.5),
    "dvc repro, nothing to do": (REPRO, 1.5),
}
"""Each with the most seconds that it may take."""
RUNS = 5
app = typer.Typer(add_completion=False, help=__doc__, no_args_is_help=True)


@contextmanager
def clone() -> Iterator[Path]:
    """A fresh clone of what is committed."""
    with tempfile.TemporaryDirectory(prefix="flywheel-") as folder:
        subprocess.run(["git", "clone", "--quiet", ROOT, f"{folder}/project"], check=True)
        yield Path(folder) / "project"


def environment(place: Path) -> dict[str, str]:
    """An environment in which a project's own code is imported, and this Python's commands are found."""
    return os.environ | {"PYTHONPATH": str(place), "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}


def seconds(command: list[str | Path], place: Path) -> float:
    """Median wall time of a command."""
    times = []
    for _ in range(RUNS):
        clock = time.perf_counter()
        subprocess.run(command, cwd=place, check=True, capture_output=True, env=environment(place))
        times.append(time.perf_counter() - clock)
    return median(times)


def compare(name: str, command: list[str | Path], goal: float, place: Path) -> None:
    """A row of a command's time and its goal."""
    time = seconds(command, place)
    add(name, f"{time:.2f} s", f"{goal} s", time / goal, 1)


# The demo


def run_demo(place: Path) -> tuple[float, list[tuple[float, float]], dict[str, float]]:
    """Wall seconds of the demo, when which stage's process started up or was in the model, and the manifests' seconds summed
    over all stages.
    """
    clock = time.perf_counter()
    subprocess.run([sys.executable, "-m", "flows.demo"], cwd=place, check=True, env=environment(place))
    wall = time.perf_counter() - clock
    busy, total = [], dict.fromkeys(("start", "model", "run", "write"), 0.0)
    for block in load_params(place).blocks.values():
        for manifest in store.manifests(place, block.name).values():
            spent = manifest.seconds
            begin = datetime.fromisoformat(manifest.finished).timestamp() - sum(spent.values())
            busy.append((begin, begin + spent["start"] + spent["model"]))
            total = {part: seconds + spent[part] for part, seconds in total.items()}
    return wall, busy, total


def union_length(spans: list[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    length, end_so_far = 0.0, float("-inf")
    for begin, end in sorted(spans):
        length += max(0.0, end - max(begin, end_so_far))
        end_so_far = max(end_so_far, end)
    return length


@app.callback()
def main() -> None:
    """Has subcommands, of which there is one."""


@app.command()
def demo() -> None:
    """Runs the demo, then the commands in it, and prints the times of both."""
    with clone() as place:
        wall, busy, total = run_demo(place)
        for name, (command, goal) in COMMANDS.items():
            compare(name, command, goal, place)
    outside = wall - union_length(busy)
    add("demo, outside model and start-up", f"{outside:.0f} s", f"demo {wall:.0f} s", outside / wall, 0.15)
    parts = ", ".join(f"{name} {value:.0f}" for name, value in total.items() if name != "start")
    what = f"start-up of the demo's {len(busy)} stages"
    add(what, f"{total['start']:.0f} process-s", f"{parts} process-s", None, None)


if __name__ == "__main__":
    app()
