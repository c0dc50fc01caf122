"""A project whose rounds were never run: manifests, tables and models as the stages write them, made up."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl

from tasks.core import store
from tasks.core.frames import frame
from tasks.core.plan import Plan
from tasks.core.plugin import load
from tasks.core.stage import Stage
from tasks.core.tables import TABLES
from tasks.project.params import Block, Campaign, Pipeline, Settings, stages_of

ACCURACY = {"r0": 0.40, "r1": 0.57, "r2": 0.61, "r3": 0.60}
SOLVED = {"r0": 0.40, "r1": 0.57, "r2": 0.80}
"""Share of the validation items that a round answers rightly; a round that is not here answers as r1."""
ITEMS = 200
LEVELS = (2, 3, 4)


def pipeline(*rounds: str) -> Pipeline:
    """r0 and rounds in a row from it."""
    blocks = {"r0": block("r0", None)}
    for parent, name in zip(["r0", *rounds], rounds, strict=False):
        blocks[name] = block(name, parent)
    return Pipeline(Campaign(name="toy"), blocks)


def block(name: str, parent: str | None, base: str = "r0") -> Block:
    """A block whose stages have one member, with one parameter."""
    domain, engine = load("domains", "arithmetic")(), load("engines", "fake")()
    recipe = None if parent is None else "toy"
    made = Block(name, parent, base if parent else name, 1, domain, engine, {}, recipe=recipe, exam_engine=engine)
    made.stages["gate"] = Settings({})  # which a base has for its rounds
    for stage in stages_of(made):
        made.stages[stage.name] = Settings({})
        made.values[stage.name] = {"some": {"strategy": "some", "strength": 1}}
    return made


def plan(block: Block, stage: Stage) -> Plan:
    """The plan of a stage."""
    kinds = sorted({i.ancestor for i in stage.inputs if i.ancestor})
    return Plan(
        round=block.name,
        stage=stage.name,
        seed=block.seed if "seed" in stage.context else None,
        ancestors={k: name for k in kinds if (name := block.ancestor(k))},
        domain={"strategy": "arithmetic"} if "domain" in stage.context else None,
        engine={"strategy": "fake"} if "models" in stage.context else None,
        members=block.values[stage.name],
    )


def plans(root: Path, pipeline: Pipeline) -> dict[tuple[str, str], Plan]:
    """All plans; stands in for those that are made from recipes and code."""
    return {(b.name, s.name): plan(b, s) for b in pipeline.blocks.values() for s in stages_of(b)}


def make(
    root: Path,
    blocks: Pipeline,
    name: str,
    only: set[str] | None = None,
    promoted: bool = True,
    salt: str = "",
    **more: Any,
) -> None:
    """Writes what the stages of a block would write; `salt` makes it another result."""
    for stage in stages_of(blocks.block(name)):
        if only is None or stage.name in only:
            write(root, blocks.block(name), stage, promoted, salt, **more)


def write(
    root: Path, block: Block, stage: Stage, promoted: bool = True, salt: str = "", minute: int = 0, **more: Any
) -> None:
    """Writes what one stage would write; `more` are further metrics of `train`, and warnings."""
    with store.writing(root, block.name, stage.name) as draft:
        metrics: dict[str, float] = {}
        for table in stage.tables:
            metrics |= draft.table(table, rows(block.name, table.name, promoted, salt))
        for folder in stage.folders:
            place = draft.folder(folder)
            (place / "config.json").write_text(json.dumps({"round": block.name, "salt": salt}))
            draft.describe_folder(folder)
        if stage.name == "evaluate":
            metrics |= {n if lv is None else f"{n}/level_{lv}": v for n, lv, v, *_ in measures(block.name, salt).rows()}
        if stage.name == "train":
            metrics["trained"] = more.get("trained", 1.0)
        for plot in stage.plots:
            draft.file(f"plots/{plot}.csv", curve() if plot == "train" else "")
        draft.commit(
            store.Manifest(
                round=block.name,
                stage=stage.name,
                plan=plan(block, stage),
                outputs=draft.outputs,
                inputs=inputs(root, block, stage),
                versions={"torch": "2.13.0"},
                metrics=metrics,
                warnings=more.get("warnings", {}).get(stage.name, []),
                tokens={"prompt_tokens": 1000, "completion_tokens": 20000, "requests": 10, "cached": 0},
                seconds={"start": 2.0, "run": 10.5, "write": 0.1},
                started=f"2026-01-01T10:{minute:02}:00+00:00",
                finished=f"2026-01-01T10:{minute:02}:20+00:00",
            )
        )


def inputs(root: Path, block: Block, stage: Stage) -> dict[str, str]:
    """Digests of what a stage would read, as far as it is there; its strategies read no optional tables."""
    digests = {}
    for need in (i for i in stage.inputs if not i.optional):
        owner = block.ancestor(need.ancestor) if need.ancestor else block.name
        with suppress(store.StoreError):
            digests[need.argument] = store.find(root, str(owner), need.name)[1].digest
    return digests


def rows(name: str, table: str, promoted: bool, salt: str) -> pl.LazyFrame:
    """A few rows of the tables that reports look at; the other tables are empty."""
    if table == "measures":
        return measures(name, salt).lazy()
    if table == "filtered":
        kept = [
            {
                "id": f"{salt}{i}",
                "prompt_id": "p",
                "kept": i < 6,
                "rank": i + 1 if i < 6 else None,
                "reason": None if i < 6 else "score",
            }
            for i in range(10)
        ]
        return frame(TABLES[table], kept)
    if table == "critiques":
        critiques = [{"id": str(i), "kept": i < 2, "refinements": 4, "successes": i} for i in range(5)]
        return frame(TABLES[table], critiques)
    if table == "evals":
        return frame(TABLES[table], evals(name))
    if table == "decisions":
        reason = "every gate passed" if promoted else "refused by improves"
        decisions = [{"gate": g, "passed": promoted, "reason": reason} for g in ("all", "improves")]
        return frame(TABLES[table], decisions)
    return frame(TABLES[table])


def evals(name: str) -> list[dict[str, Any]]:
    """Two sampled answers to every validation item; who solves more solves what the others do, and more."""
    solved = SOLVED.get(name, SOLVED["r1"]) * ITEMS
    common = {"member": "answers", "split": "validation", "mode": "sampled", "response": "2"}
    return [
        {"id": f"{i}/{n}", "item": f"i{i}", "sample": n, "correct": i < solved, **common}
        for i in range(ITEMS)
        for n in range(2)
    ]


def measures(name: str, salt: str = "") -> pl.DataFrame:
    """What an evaluation measures, by level and over all."""
    middle = ACCURACY.get(name, 0.5) + len(salt) / 1000
    rows = []
    for measure, plus in {"pass_at_1": 0.0, "greedy": 0.1, "pass_at_8": 0.3, "majority_at_8": 0.12}.items():
        for level in (None, *LEVELS):
            value = middle + plus - (0 if level is None else (level - 3) / 10)
            rows.append(
                {
                    "name": measure,
                    "level": level,
                    "value": value,
                    "low": value - 0.02,
                    "high": value + 0.02,
                    "count": 100,
                }
            )
    for measure in ("judge_balanced_accuracy", "mean_logprob_auroc", "critique_location"):
        rows.append(
            {
                "name": measure,
                "level": None,
                "value": middle + 0.2,
                "low": middle + 0.1,
                "high": middle + 0.3,
                "count": 50,
            }
        )
    return frame(TABLES["measures"], rows).collect()


def curve() -> str:
    """A training curve as the stage `train` writes it."""
    steps = [{"phase": "sft", "step": s, "loss": 1 / (s + 1), "token_accuracy": 1 / (s + 1)} for s in range(50)]
    return pl.DataFrame(steps).write_csv()
