"""Load, generate (echo), judge by a rule, filter, write: this project's stages against distilabel, side by side.

    python benchmarks/chain.py     [--peer .venv-distilabel/bin/python] [--rows 100000] [--repeats 5]

Both get the same JSON lines and keep the same rows. distilabel has its best batch size, 10,000. The rule here is the vote
share of a prompt's only answer. Seconds are from the first line read to the last row written, without imports, and so is
processor time, that of all of a side's processes and threads; memory is the most that they had together (proportional set
size), looked at ten times a second. The sides take turns; medians.
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import polars as pl
import psutil
import pyarrow.compute  # noqa: F401 - polars imports it when it first makes a table of Arrow, and imports are not timed
import typer
from table import add

from data import project, put
from tasks.commands.rounds import ALLOCATOR, GARBAGE
from tasks.core import store
from tasks.project.execute import run_stage

HERE = Path(__file__).resolve().parent
GOALS = {"seconds": 15.0, "memory": 0.5}


def ours(prompts: Path) -> None:
    """Runs the chain in a project of its own, and prints rows kept, seconds and processor seconds."""
    gc.set_threshold(*GARBAGE)  # as `flywheel stage` does
    with project(
        {"strategy": "fake", "reply": "echo"}, {"strategy": "chat", "path": "data/seeds/unread.jsonl"}
    ) as root:
        clock, processor = time.perf_counter(), time.process_time()
        put(root, "prompts", {"prompts": [questions(pl.scan_ndjson(prompts))]})
        for stage in ("generate", "judge", "filter"):
            run_stage(root, "r1", stage)
        seconds, processor = time.perf_counter() - clock, time.process_time() - processor
        kept = store.scan(root, "r1", "filtered")[0].filter("kept").select(pl.len()).collect().item()
        print(f"\n{kept} {seconds:.3f} {processor:.3f}")


def questions(lines: pl.LazyFrame) -> pl.LazyFrame:
    """Prompts, numbered in their order."""
    return lines.with_row_index("n").select(
        id=pl.col("n").cast(pl.String).str.zfill(16),
        problem="prompt",
        prompt=pl.concat_list(pl.struct(role=pl.lit("user"), content="prompt")),
    )


def measure(command: list[str]) -> tuple[int, float, float, float]:
    """Rows kept, seconds, processor seconds, and GiB of all processes of a command together."""
    with tempfile.TemporaryFile("w+") as output:
        process = psutil.Popen(command, stdout=output, stderr=subprocess.DEVNULL)
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, sum(map(memory_of, [process, *process.children(recursive=True)])))
            time.sleep(0.1)
        output.seek(0)
        rows, seconds, processor = output.read().strip().split("\n")[-1].split()
    return int(rows), float(seconds), float(processor), peak / 2**30


def memory_of(process: psutil.Process) -> int:
    """Its memory, that which it shares divided among those who do."""
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:  # it has ended
        return 0


def main(
    peer: Path = Path(".venv-distilabel/bin/python"), rows: int = 100_000, repeats: int = 5, only: Path | None = None
) -> None:
    """Measures both sides and prints the ratios; with `only`, runs this project's side once over a file."""
    if only:
        ours(only)
        return
    os.environ |= {**ALLOCATOR, **os.environ}  # as `flywheel stage` does, before polars is imported
    with tempfile.TemporaryDirectory(prefix="flywheel-") as place:
        prompts = Path(place) / "prompts.jsonl"
        prompts.write_text(
            "".join(json.dumps({"prompt": f"Tell me about number {i}. " * 8}) + "\n" for i in range(rows))
        )
        sides = {
            "this project": [sys.executable, __file__, "--only", str(prompts)],
            "distilabel": [str(peer), str(HERE / "distilabel_chain.py"), str(prompts), f"{place}/peer"],
        }
        runs = {name: [] for name in sides}
        for _ in range(repeats):
            for name, command in sides.items():
                runs[name].append(measure(command))
    kept = {name: side[0][0] for name, side in runs.items()}
    assert len(set(kept.values())) == 1, f"the sides keep different rows: {kept}"
    own, other = ([median(run[i] for run in side) for i in (1, 2, 3)] for side in runs.values())
    what = f"load, generate, judge, filter, write {rows:,} rows"
    texts = [(f"{own[i]:.2f} {unit}", f"distilabel {other[i]:.2f} {unit}") for i, unit in enumerate(("s", "s", "GiB"))]
    add(what, *texts[0], other[0] / own[0], GOALS["seconds"], at_least=True)
    add("processor time of that", *texts[1], other[1] / own[1], None)
    add("most memory of that", *texts[2], own[2] / other[2], GOALS["memory"])


if __name__ == "__main__":
    typer.run(main)
