"""Pieces of a stage in one process, in several, and on Ray: what a second worker brings, and what Ray costs.

    python benchmarks/where.py     [--pieces 24] [--prompts 160] [--repeats 1]

The stage is `generate` with the embedded model on one thread, so that each worker holds a core. What counts is the time from one
receipt to the next once every worker has done two pieces; what comes before (processes, imports, the model, Ray itself) is
start-up, which has a row of its own. Sides take turns; the best of `repeats` counts. It wants two cores that do nothing else.
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
from tasks.project.driver import Driver
from tasks.project.execute import run_stage

SIDES: dict[str, dict[str, Any]] = {
    "here": {"strategy": "here"},
    "Ray, one worker": {"strategy": "ray", "count": 1, "cpus": 1},
    "Ray, two workers": {"strategy": "ray", "count": 2, "cpus": 1},
    "one process": {"strategy": "processes", "count": 1},
    "two processes": {"strategy": "processes", "count": 2},
}
FASTER, OVERHEAD = 1.7, 1.1
"""Least throughput of two workers over one, and most time of a piece of Ray's one worker over one of this process."""


def main(count: int = typer.Option(24, "--pieces"), prompts: int = 160, repeats: int = 1) -> None:
    """Runs all sides and prints their ratios."""
    pieces.MAX_PROMPTS = pieces.MAX_ROWS = prompts
    pieces.IDS_PER_PIECE = 4
    each: dict[str, float] = {}
    start: dict[str, float] = {}
    with project({"strategy": "transformers", "threads": 1, "device": "cpu"}) as root:
        table, _ = candidates(count * prompts)
        put(root, "prompts", {"prompts": [table.sort("id")]})
        digests = set()
        for _ in range(repeats):
            for side, where in SIDES.items():
                seconds, before, digest = _run(root, where)
                print(f"{side}: {seconds:.3f} s a piece, start-up {before:.1f} s", flush=True)
                each[side] = min(seconds, each.get(side, seconds))
                start[side] = min(before, start.get(side, before))
                digests.add(digest)
        assert len(digests) == 1, "the sides made different rows"
    for one, two in (("one process", "two processes"), ("Ray, one worker", "Ray, two workers")):
        rates = f"{1 / each[two]:.2f}", f"{1 / each[one]:.2f}, {one}"
        add(f"pieces a second, {two}", *rates, each[one] / each[two], FASTER, at_least=True)
    ray, here = each["Ray, one worker"], each["here"]
    add("seconds a piece, Ray, one worker", f"{ray:.3f}", f"{here:.3f}, here", ray / here, OVERHEAD)
    for side in SIDES:
        add(f"start-up, {side}", f"{start[side]:.1f} s", "", None, None)


def _run(root: Path, where: dict[str, Any]) -> tuple[float, float, str]:
    """Seconds from one receipt to the next and of the start, without cached answers, and the digest of what was made."""
    yaml = YAML()
    content = yaml.load(root / "params.yaml")
    content["rounds"]["r1"]["where"] = where
    yaml.dump(content, root / "params.yaml")
    plan.write(root)
    shutil.rmtree(root / "data/cache/requests", ignore_errors=True)
    done: list[float] = []
    clear = Driver.clear

    def noted(driver: Driver) -> None:
        done.extend(sorted(f.stat().st_mtime for f in (root / "data/cache/work").glob("*/rows/*.json")))
        clear(driver)

    Driver.clear = noted  # type: ignore[method-assign]
    began = time.time()
    try:
        run_stage(root, "r1", "generate")
    finally:
        Driver.clear = clear  # type: ignore[method-assign]
    first = 2 * where.get("count", 1)
    each = (done[-1] - done[first]) / (len(done) - 1 - first)
    return each, done[0] - began - each * where.get("count", 1), store.find(root, "r1", "responses")[1].digest


if __name__ == "__main__":
    typer.run(main)
