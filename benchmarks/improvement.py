"""Does a round really improve the model? Three rounds from the same r0, several seeds, against two controls.

    python benchmarks/improvement.py                 # every arm and seed, about an hour on 2 cores; resumes
    python benchmarks/improvement.py --arm label_free --seeds 1

Arms are recipes: `label_free` (recipes/sharpen.yaml: the model's own votes are the reward), `random` (own samples chosen
at random: the control), `verifier` (the domain's verifier is the reward), `dpo` (as label_free, with DPO after SFT).
Each round is made by the very stages of the project, in one process without DVC, and evaluated on the frozen held-out
set: 200 problems a level sampled 8 times at temperature 1, 1,000 a level greedily, levels 2 to 8.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import typer
from rich.console import Console
from rich.table import Table
from ruamel.yaml import YAML
from scipy.stats import wilcoxon

from tasks.core import store
from tasks.project import plan
from tasks.project.execute import run_stage
from tasks.project.params import load_params, plain

HERE = Path(__file__).resolve().parents[1]
LEVELS = range(2, 9)
EXAM = {
    "answers": {"splits": ["heldout"], "greedy": 7000, "sampled": 1400},
    "judging": {"count": 700},
    "critiques": {"count": 700},
}


def _random(stages: dict[str, Any]) -> None:
    """One answer of each prompt, chosen by lot; of as many prompts as the default keeps an answer of."""
    stages["prompts"]["pool"]["count"] = 480
    stages["judge"] = {"reward": "random", "random": {}}
    stages["filter"]["threshold"] |= {"min_reward": 0.0, "require": {}}
    stages["critique"] = {}


def _verifier(stages: dict[str, Any]) -> None:
    """The likeliest right answer of each prompt that has one."""
    stages["judge"]["reward"] = "verifier"
    stages["filter"]["threshold"]["require"] = {}


def _dpo(stages: dict[str, Any]) -> None:
    """The pairs are learnt from, too."""
    stages["collect"]["pairs"] = {}
    stages["train"] = {"sft_dpo": stages["train"]["sft"]}


ARMS = {"label_free": lambda stages: None, "random": _random, "verifier": _verifier, "dpo": _dpo}
Arm = StrEnum("Arm", list(ARMS))


def project(root: Path, arm: str, seed: int, rounds: int) -> None:
    """A project of one arm and seed: the repository's base with the big exam, and rounds in a row by the arm's recipe."""
    root.mkdir(parents=True, exist_ok=True)
    cache = root.parent / "cache"  # r0 answers the same evaluation in every project: once is enough
    cache.mkdir(exist_ok=True)
    for name, target in (
        {n: HERE / n for n in ("tasks", "data/base", "data/seeds")} | {"data/cache/requests": cache}
    ).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if not (root / name).is_symlink():
            (root / name).symlink_to(target)
    sharpen = (HERE / "recipes/sharpen.yaml").read_text()
    recipe = plain(YAML().load(sharpen))
    ARMS[arm](recipe["stages"])
    (root / "recipes").mkdir(exist_ok=True)
    (root / "recipes/sharpen.yaml").write_text(sharpen)  # whose judges the exam of r0 is about
    YAML().dump(recipe, root / f"recipes/{arm}.yaml")
    content = plain(YAML().load((HERE / "params.yaml").read_text()))
    content["bases"] = {"r0": content["bases"]["r0"] | {"evaluate": EXAM}}
    content["rounds"] = {
        f"r{k}": {"parent": f"r{k - 1}", "base": "r0", "seed": 1000 * seed + k, "recipe": arm}
        for k in range(1, rounds + 1)
    }
    YAML().dump(content, root / "params.yaml")


def run(root: Path) -> None:
    """Runs the first stage that was not made by today's plan, and all that come after it. The gate decides nothing here:
    each round goes on from the one before.
    """
    plan.write(root)
    stale = False
    for (name, stage), today in plan.plans(root, load_params(root)).items():
        if stage == "gate":
            continue
        manifest = store.manifests(root, name).get(stage)
        stale = stale or manifest is None or manifest.plan.digest != today.digest
        if stale:
            run_stage(root, name, stage)
            print(f"{root.name}: {stage}@{name}", flush=True)


def read(root: Path, arm: str, seed: int) -> list[dict[str, Any]]:
    """A row a round: measures over all levels, and the paired test of sampled accuracy against r0."""
    rows, base = [], None
    for name in load_params(root).blocks:
        measures = store.scan(root, name, "measures")[0].collect()
        rates = _rates(root, name)
        base = rates if base is None else base
        both = base.join(rates, on="item", suffix="_now").sort("item")
        change = (both["rate_now"] - both["rate"]).to_numpy()
        p = float(wilcoxon(change, zero_method="zsplit").pvalue) if np.any(change) else 1.0
        values = {
            f"{n}" if k is None else f"{n}/{k}": v for n, k, v in measures.select("name", "level", "value").rows()
        }
        right = store.scan(root, name, "evals")[0].filter(mode="greedy").select("item", "correct").collect()
        rows.append({"arm": arm, "seed": seed, "round": name, "p": p, "greedy_items": dict(right.rows()), **values})
    return rows


def _rates(root: Path, name: str) -> pl.DataFrame:
    sampled = store.scan(root, name, "evals")[0].filter(mode="sampled")
    return sampled.group_by("item").agg(pl.col("correct").cast(pl.Float64).mean().alias("rate")).collect()


def greedy_change(rows: list[dict[str, Any]], arm: str, last: str) -> tuple[float, float, float]:
    """Change of greedy accuracy from r0 to the last round, pooled over seeds, with its 95 % interval over problems."""
    now = {r["seed"]: r["greedy_items"] for r in rows if r["arm"] == arm and r["round"] == last}
    base = {r["seed"]: r["greedy_items"] for r in rows if r["arm"] == arm and r["round"] == "r0"}
    items = sorted(next(iter(base.values())))
    change = np.array([np.mean([int(now[s][i]) - int(base[s][i]) for s in now]) for i in items])
    half = 1.96 * change.std(ddof=1) / np.sqrt(len(change))
    return float(change.mean()), float(change.mean() - half), float(change.mean() + half)


def show(rows: list[dict[str, Any]]) -> None:
    """Prints the tables: by arm, seed and round, and by level over the seeds."""
    console = Console(width=130)
    table = Table("arm", "seed", "round", "sampled", "greedy", "majority@8", "pass@8", "self-judge", "p against r0")
    for r in rows:
        cells = [
            r.get(k, float("nan"))
            for k in ("pass_at_1", "greedy", "majority_at_8", "pass_at_8", "self_judge_balanced_accuracy")
        ]
        table.add_row(r["arm"], str(r["seed"]), r["round"], *(f"{100 * c:.1f}" for c in cells), f"{r['p']:.1e}")
    console.print(table)
    levels = Table("arm", "round", "measure", "mean", *map(str, LEVELS))
    for arm in dict.fromkeys(r["arm"] for r in rows):
        for name in dict.fromkeys(r["round"] for r in rows if r["arm"] == arm):
            for measure in ("pass_at_1", "greedy"):
                seeds = [r for r in rows if (r["arm"], r["round"]) == (arm, name)]
                cells = [np.mean([r[key] for r in seeds]) for key in [measure, *(f"{measure}/{k}" for k in LEVELS)]]
                levels.add_row(arm, name, measure, *(f"{100 * c:.1f}" for c in cells))
    console.print(levels)
    last = max(r["round"] for r in rows)
    for arm in dict.fromkeys(r["arm"] for r in rows):
        change, low, high = greedy_change(rows, arm, last)
        console.print(
            f"{arm}: greedy {100 * change:+.2f} points from r0 to {last} (95 % {100 * low:+.2f} … {100 * high:+.2f})"
        )


def main(
    arm: Annotated[list[Arm] | None, typer.Option(help="Repeatable; default all.")] = None,
    seeds: int = 3,
    rounds: int = 3,
    jobs: Annotated[int, typer.Option(help="Projects made at once, a process each.")] = 2,
    place: Path = HERE / ".flywheel" / "improvement",
    only: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Makes what is missing, then prints the tables; writes the rows to `improvement.json` in `place`."""
    if only:
        run(Path(only))
        return
    cells = [(str(a), s) for s in range(1, seeds + 1) for a in arm or Arm]
    for a, s in cells:
        project(place / f"{a}-{s}", a, s, rounds)
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda cell: _child(place / f"{cell[0]}-{cell[1]}"), cells))
    rows = [row for a, s in sorted(cells) for row in read(place / f"{a}-{s}", a, s)]
    summary = [{k: v for k, v in r.items() if k != "greedy_items"} for r in rows]
    (place / "improvement.json").write_text(json.dumps(summary, indent=1))
    show(rows)


def _child(root: Path) -> None:
    """A process of its own for each project: memory is freed, and two run at once."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, __file__, "--only", str(root)], check=True, env=environment)


if __name__ == "__main__":
    typer.run(main)
