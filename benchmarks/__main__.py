"""Runs the benchmarks one after the other and prints one table of them.

    make bench      or, with distilabel's environment at hand,      python benchmarks --peer .venv-distilabel/bin/python

Those of vLLM run where it is installed; those of a GPU, of improvement and the full ten million responses have commands
of their own.
"""

import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import psutil
import table
import typer

HERE = Path(__file__).resolve().parent
VERSIONS = ("torch", "transformers", "trl", "prefect", "dvc", "duckdb", "polars", "pyarrow", "mlflow")
COMMANDS = (
    "engine.py",
    "data.py votes",
    "data.py write",
    "data.py memory",
    "data.py duplicates --repeats 1",
    "cache.py",
    "commands.py demo",
    "rounds.py --rounds 10 --rounds 50",
    "diff.py",
)


def main(peer: Path = Path(".venv-distilabel/bin/python")) -> None:
    """Runs them all; fails at the end when one could not be run. A missed goal is shown in the table and is no failure."""
    commands = [*COMMANDS, f"chain.py --peer {peer}"]
    if find_spec("vllm"):
        commands.append("vllm_engine.py --prompts 24")
    start, failed = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as place:
        os.environ[table.FILE] = f"{place}/rows"
        for command in commands:
            print(f"\npython benchmarks/{command}", flush=True)
            name, *more = command.split()
            if subprocess.run([sys.executable, HERE / name, *more], check=False).returncode:
                failed.append(command)
        rows = table.all_rows()
    print(f"\n{datetime.now(UTC):%Y-%m-%d}, {len(os.sched_getaffinity(0))} cores, ", end="")
    print(f"{psutil.virtual_memory().total / 2**30:.0f} GiB, Python {platform.python_version()}, ", end="")
    print(", ".join(f"{name} {version(name)}" for name in VERSIONS))
    table.show(rows)
    missed = sum(not table.meets_goal(row) for row in rows)
    print(f"{len(rows)} rows, {missed} goals missed; {(time.perf_counter() - start) / 60:.0f} minutes")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    typer.run(main)
