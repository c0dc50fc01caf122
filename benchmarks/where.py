"""Pieces of a stage in one process, in several, and on Ray: what a second worker brings, and what Ray costs.

    python benchmarks/where.py     [--pieces 8] [--prompts 256] [--repeats 1]

The stage is `generate` with the embedded model on one thread, so that each worker holds a core. Each side runs with some pieces and
with three times as many: the difference is the time of pieces alone, and what is left over is start-up (processes, imports, the
model, Ray itself), which has a row of its own. Sides take turns; the smallest of `repeats` counts. It wants two cores that do
nothing else.
"""

import shutil
import time
from pathlib import Path
from typing import Any

import typer
from ruamel.yaml import YAML
from table import add

from data import candidates, project, put
from tasks.core import store
from tasks.project import pieces, plan
from tasks.project.execute import run_stage

SIDES: dict[str, dict[str, Any]] = {
    "here": {"strategy": "here"},
    "one process": {"strategy": "processes", "count": 1},
    "two processes": {"strategy": "processes", "count": 2},
    "Ray, one worker": {"strategy": "ray", "count": 1, "cpus": 1},
    "Ray, two workers": {"strategy": "ray", "count": 2, "cpus": 1},
}
FASTER, OVERHEAD = 1.7, 1.1
"""Least throughput of two workers over one, and most time of Ray's worker over that of this process."""


def main(count: int = typer.Option(8, "--pieces"), prompts: int = 256, repeats: int = 1) -> None:
    """Runs all sides and prints their ratios."""
    pieces.MAX_PROMPTS = pieces.MAX_ROWS = prompts
    pieces.IDS_PER_PIECE = 4
    with project({"strategy": "transformers", "threads": 1, "device": "cpu"}) as root:
        seconds: dict[tuple[str, int], list[float]] = {}
        digests: dict[int, set[str]] = {}
        for _ in range(repeats):
            for many in (count, 3 * count):
                table, _ = candidates(many * prompts)
                put(root, "prompts", {"prompts": [table.sort("id")]})
                for side, where in SIDES.items():
                    took, digest = _run(root, where)
                    seconds.setdefault((side, many), []).append(took)
                    digests.setdefault(many, set()).add(digest)
        assert all(len(found) == 1 for found in digests.values()), "the sides made different rows"
    few, all_ = ({s: min(seconds[s, many]) for s in SIDES} for many in (count, 3 * count))
    each = {side: (all_[side] - few[side]) / (2 * count) for side in SIDES}
    start = {side: few[side] - count * each[side] for side in SIDES}
    for one, two in (("one process", "two processes"), ("Ray, one worker", "Ray, two workers")):
        ratio = each[one] / each[two]
        add(
            f"pieces a second, {two}",
            f"{1 / each[two]:.2f}",
            f"{1 / each[one]:.2f}, {one}",
            ratio,
            FASTER,
            at_least=True,
        )
    ray = each["Ray, one worker"]
    add("seconds a piece, Ray, one worker", f"{ray:.2f}", f"{each['here']:.2f}, here", ray / each["here"], OVERHEAD)
    for side in SIDES:
        add(f"start-up, {side}", f"{start[side]:.1f} s", "", None, None)


def _run(root: Path, where: dict[str, Any]) -> tuple[float, str]:
    """Seconds of the stage without cached answers, and the digest of what it made."""
    yaml = YAML()
    content = yaml.load(root / "params.yaml")
    content["rounds"]["r1"]["where"] = where
    yaml.dump(content, root / "params.yaml")
    plan.write(root)
    shutil.rmtree(root / "data/cache/requests", ignore_errors=True)
    clock = time.perf_counter()
    run_stage(root, "r1", "generate")
    return time.perf_counter() - clock, store.find(root, "r1", "responses")[1].digest


if __name__ == "__main__":
    typer.run(main)
