"""Does a round really improve the model, and what of it? Rounds from the same r0, several seeds, against controls.

    python benchmarks/improvement.py                 # every arm, seed and round, hours on 2 cores; resumes
    python benchmarks/improvement.py --rounds 1      # the first round alone, in which most of the gain is
    python benchmarks/improvement.py --arm label_free --seeds 1
    python benchmarks/improvement.py --show          # what is there so far

Arms are recipes: `label_free` (recipes/sharpen.yaml: the model's own votes are the reward), `random` (own samples chosen
at random), `verifier` (the domain's verifier is the reward), `dpo` (as label_free, with DPO after SFT). The other arms
are controls as large as `label_free` of the same seed and round, each with as many steps (`MATCHED`):

- `random_refined`: answers, refinements and critiques of the same kinds and numbers, all drawn by lot;
- `lot_rows`, `lot_tokens`: answers by lot alone, to problems that `parse` accepts: as many rows, or as many tokens;
- `kept_rows`, `kept_tokens`: answers that the votes keep alone, of more problems: as many rows, or as many tokens;
- `kept_steps`: the answers that label_free keeps alone, more often.

Each round is made by the very stages of the project, in one process without DVC, and evaluated on the frozen held-out
set: 200 problems a level sampled 8 times at temperature 1, 1,000 a level greedily, levels 2 to 8 (`--items`, `--greedy`).
"""

import json
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
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


def exam(items: int, greedy: int) -> dict[str, Any]:
    """The evaluation, of so many problems a level sampled and so many answered greedily."""
    answers = {"splits": ["heldout"], "greedy": greedy * len(LEVELS), "sampled": items * len(LEVELS)}
    half = {"count": items * len(LEVELS) // 2}
    return {"answers": answers, "judging": half, "critiques": half}


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


def _random_refined(stages: dict[str, Any]) -> None:
    """Answers by lot; what differs from them is criticised and refined, and any refinement and critique is learnt from."""
    _by_lot(stages)
    stages["collect"] = {"answers": {}, "refinements": {"successful": False}, "critiques": {"kept": False}}


def _lot(stages: dict[str, Any]) -> None:
    """An answer, the first that is drawn, to each of so many problems that any of label_free's sizes can be reached."""
    _by_lot(stages)
    stages["prompts"]["pool"]["count"] = 2000
    stages["generate"]["sample"]["samples"] = 1
    stages["critique"], stages["collect"] = {}, {"answers": {}}


def _by_lot(stages: dict[str, Any]) -> None:
    stages["judge"] = {"reward": "random", "random": {}}
    stages["filter"]["threshold"] |= {"min_reward": 0.0, "require": {}}
    stages["pair"] = {}


def _kept(stages: dict[str, Any]) -> None:
    """Kept answers alone, to so many problems that any of label_free's numbers of rows can be reached."""
    stages["prompts"]["pool"]["count"] = 1900
    _kept_alone(stages)


def _kept_more(stages: dict[str, Any]) -> None:
    """As `_kept`, to so many that any of its numbers of tokens can be."""
    _kept(stages)
    stages["prompts"]["pool"]["count"] = 2600


def _kept_alone(stages: dict[str, Any]) -> None:
    stages["critique"], stages["pair"], stages["collect"] = {}, {}, {"answers": {}}


ARMS = {
    "label_free": lambda stages: None, "random_refined": _random_refined, "kept_steps": _kept_alone, "lot_rows": _lot,
    "lot_tokens": _lot, "kept_rows": _kept, "kept_tokens": _kept_more, "random": _random, "verifier": _verifier, "dpo": _dpo,
}  # fmt: skip
Arm = StrEnum("Arm", list(ARMS))
MATCHED = {
    "random_refined": "sources", "kept_rows": "rows", "lot_rows": "rows", "kept_tokens": "tokens", "lot_tokens": "tokens",
    "kept_steps": "epochs",
}  # fmt: skip
"""What of a control is as large as `label_free`, beside its steps: the rows of each source, all rows, their tokens, or nothing
but the rows times epochs."""
MEMBERS = {"responses": "answers", "refinements": "refinements", "critiques": "critiques"}
"""Members of `collect` by the source of their rows."""


def project(root: Path, arm: str, seed: int, rounds: int, evaluate: dict[str, Any]) -> None:
    """A project of one arm and seed: the repository's base with this exam, and rounds in a row by the arm's recipe."""
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
    known = plain(YAML().load((root / "params.yaml").read_text()))["rounds"] if (root / "params.yaml").exists() else {}
    (root / "recipes/sharpen.yaml").write_text(sharpen)  # whose judges the exam of r0 is about
    YAML().dump(recipe, root / f"recipes/{arm}.yaml")
    content = plain(YAML().load((HERE / "params.yaml").read_text()))
    content["bases"] = {
        "r0": content["bases"]["r0"] | {"evaluate": evaluate, "gate": {}}
    }  # each round goes on from the last
    content["rounds"] = {
        f"r{k}": {"parent": f"r{k - 1}", "base": "r0", "seed": 1000 * seed + k, "recipe": arm}
        | ({"set": known[f"r{k}"]["set"]} if "set" in known.get(f"r{k}", {}) else {})
        for k in range(1, max(rounds, len(known)) + 1)
    }
    YAML().dump(content, root / "params.yaml")


def run(root: Path, rounds: int) -> None:
    """Runs the first stage that was not made by today's plan, and all that come after it. The gate decides nothing here:
    each round goes on from the one before. A control's rows are cut to label_free's size before it is trained.
    """
    arm, _, seed = root.name.rpartition("-")
    stale = False
    for name in ["r0", *(f"r{k}" for k in range(1, rounds + 1))]:
        plan.write(root)
        for stage in [s for n, s in plan.plans(root, load_params(root)) if n == name and s != "gate"]:
            if stage == "train" and arm in MATCHED and (stale or not _made(root, name, stage)):
                match(root, name, MATCHED[arm], root.parent / f"label_free-{seed}")
            if stale or not _made(root, name, stage):
                stale = True
                run_stage(root, name, stage)
                print(f"{root.name}: {stage}@{name}", flush=True)


def _made(root: Path, name: str, stage: str) -> bool:
    today, manifest = plan.plans(root, load_params(root))[name, stage], store.manifests(root, name).get(stage)
    return manifest is not None and manifest.plan.digest == today.digest


def sizes(root: Path, name: str) -> pl.DataFrame:
    """By source, the rows that a round is trained on, and their tokens with the prompts'."""
    rows = store.scan(root, name, "training")[0].filter(pl.col("error").is_null())
    return rows.group_by("source").agg(rows=pl.len(), tokens=pl.col("tokens").sum()).sort("source").collect()


def steps(rows: int, epochs: int, batch: int) -> int:
    """Optimizer steps, as tasks.training.loop.Schedule counts them."""
    return -(-rows * epochs // batch)


def match(root: Path, name: str, by: str, like: Path) -> None:
    """Gives a control's round the size and the steps of the same round of label_free, by `set` in its params.yaml, and
    collects again.
    """
    goal = sizes(like, name)
    sft = load_params(like).blocks[name].stages["train"].members["sft"]
    content = plain(YAML().load((root / "params.yaml").read_text()))
    values: dict[str, int] = {}
    content["rounds"][name]["set"] = values
    _collect_again(root, name, content)  # without a limit of an earlier try
    own = sizes(root, name)
    wanted, epochs = goal["rows"].sum(), sft.epochs
    if by == "sources":
        values |= {f"collect.{MEMBERS[source]}.max_rows": rows for source, rows, _ in goal.iter_rows()}
    elif by == "epochs":
        epochs = round(wanted * sft.epochs / own["rows"].sum())
        values["train.sft.epochs"] = epochs
    else:
        tokens_a_row = own["tokens"].sum() / own["rows"].sum()
        values["collect.answers.max_rows"] = wanted if by == "rows" else round(goal["tokens"].sum() / tokens_a_row)
    _collect_again(root, name, content)
    rows, target = int(sizes(root, name)["rows"].sum()), steps(wanted, sft.epochs, sft.batch)
    values["train.sft.batch"] = min(range(1, rows + 1), key=lambda size: abs(steps(rows, epochs, size) - target))
    YAML().dump(content, root / "params.yaml")
    plan.write(root)


def _collect_again(root: Path, name: str, content: dict[str, Any]) -> None:
    YAML().dump(content, root / "params.yaml")
    plan.write(root)
    run_stage(root, name, "collect")


def read(root: Path, arm: str, seed: int) -> list[dict[str, Any]]:
    """A row a round: measures over all levels, and the paired test of sampled accuracy against r0."""
    rows, base = [], None
    for name in load_params(root).blocks:
        if "evaluate" not in store.manifests(root, name):
            break
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
        rows.append({
            "arm": arm, "seed": seed, "round": name, "p": p, "greedy_items": dict(right.rows()), **values, **_size(root, name)
        })  # fmt: skip
    return rows


def _size(root: Path, name: str) -> dict[str, int]:
    """Rows, tokens and steps that a round was trained by."""
    block = load_params(root).blocks[name]
    if "train" not in block.stages or "collect" not in store.manifests(root, name):
        return {}
    own, sft = sizes(root, name), next(iter(block.stages["train"].members.values()))
    by_source = {f"rows/{source}": rows for source, rows, _ in own.iter_rows()}
    total = int(own["rows"].sum())
    return by_source | {
        "rows": total, "tokens": int(own["tokens"].sum()), "steps": steps(total, sft.epochs, min(sft.batch, total))
    }  # fmt: skip


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
    table = Table(
        "arm", "seed", "round", "sampled", "greedy", "majority@8", "pass@8", "self-judge", "p against r0", "rows", "tokens",
        "steps",
    )  # fmt: skip
    for r in rows:
        cells = [
            r.get(k, float("nan"))
            for k in ("pass_at_1", "greedy", "majority_at_8", "pass_at_8", "self_judge_balanced_accuracy")
        ]
        table.add_row(
            r["arm"],
            str(r["seed"]),
            r["round"],
            *(f"{100 * c:.1f}" for c in cells),
            f"{r['p']:.1e}",
            *(str(r.get(k, "")) for k in ("rows", "tokens", "steps")),
        )
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
    items: Annotated[int, typer.Option(help="Held-out problems a level sampled 8 times.")] = 200,
    greedy: Annotated[int, typer.Option(help="Held-out problems a level answered greedily.")] = 1000,
    jobs: Annotated[int, typer.Option(help="Projects made at once, a process each.")] = 2,
    place: Path = HERE / ".flywheel" / "improvement",
    only_show: Annotated[bool, typer.Option("--show", help="Make nothing; read what is there so far.")] = False,
    only: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Makes what is missing, one seed of all arms after the other, then prints the tables; writes the rows to
    `improvement.json` in `place`.
    """
    if only:
        run(Path(only), rounds)
        return
    arms = [str(a) for a in arm or Arm]
    if MATCHED.keys() & set(arms):
        arms = ["label_free", *(a for a in arms if a != "label_free")]  # whose size the controls have
    cells = [(a, s) for s in range(1, seeds + 1) for a in arms]
    if not only_show:
        for a, s in cells:
            project(place / f"{a}-{s}", a, s, rounds, exam(items, greedy))
        make(place, cells, rounds, jobs)
    there = [(a, s) for a, s in sorted(cells) if (place / f"{a}-{s}" / "params.yaml").exists()]
    rows = [row for a, s in there for row in read(place / f"{a}-{s}", a, s)]
    summary = [{k: v for k, v in r.items() if k != "greedy_items"} for r in rows]
    (place / "improvement.json").write_text(json.dumps(summary, indent=1))
    show(rows)


def make(place: Path, cells: list[tuple[str, int]], rounds: int, jobs: int) -> None:
    """Runs what is missing of each arm and seed. A control waits for label_free of its seed, which comes before it."""
    done: dict[tuple[str, int], Future[None]] = {}

    def cell(a: str, s: int) -> None:
        if a in MATCHED:
            done["label_free", s].result()
        environment = os.environ | {"OMP_NUM_THREADS": "1"}  # a process each: memory is freed, and two run at once
        command = [sys.executable, __file__, "--only", str(place / f"{a}-{s}"), "--rounds", str(rounds)]
        subprocess.run(command, check=True, env=environment)

    with ThreadPoolExecutor(jobs) as pool:
        for a, s in cells:
            done[a, s] = pool.submit(cell, a, s)
    for future in done.values():
        future.result()


if __name__ == "__main__":
    typer.run(main)
