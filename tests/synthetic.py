"""A project whose rounds were never run: manifests, tables and models as the stages write them, made up."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl

from tasks import store
from tasks.params import Block, Campaign, Pipeline, stages_of
from tasks.stage import Stage
from tasks.tables import TABLES, frame

ACCURACY = {"r0": 0.40, "r1": 0.57, "r2": 0.61, "r3": 0.60}
LEVELS = (2, 3, 4)


def pipeline(*rounds: str) -> Pipeline:
    """r0 and rounds in a row from it."""
    blocks = {"r0": block("r0", None)}
    for parent, name in zip(["r0", *rounds], rounds, strict=False):
        blocks[name] = block(name, parent)
    return Pipeline(Campaign(name="toy"), blocks)


def block(name: str, parent: str | None, **values: Any) -> Block:
    """A block whose stages have one parameter each."""
    raw: dict[str, Any] = {"seed": 1, "domain": {"strategy": "arithmetic"}, "engine": {"strategy": "fake"}}
    raw |= {} if parent is None else {"parent": parent, "base": "r0"}
    found = Block(name, parent, "r0", 1, None, None, {}, raw)
    raw |= {s.name: {"strategy": "some", "strength": 1} for s in stages_of(found)} | values
    return found


def make(
    root: Path, blocks: Pipeline, name: str, only: set[str] | None = None, promoted: bool = True, salt: str = ""
) -> None:
    """Writes what the stages of a block would write; `salt` makes it another result."""
    for stage in stages_of(blocks.block(name)):
        if only is None or stage.name in only:
            write(root, blocks.block(name), stage, promoted, salt)


def write(root: Path, block: Block, stage: Stage, promoted: bool = True, salt: str = "", minute: int = 0) -> None:
    """Writes what one stage would write."""
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
        for plot in stage.plots:
            draft.file(f"plots/{plot}.csv", curve() if plot == "train" else "")
        draft.commit(
            store.Manifest(
                round=block.name,
                stage=stage.name,
                outputs=draft.outputs,
                inputs=inputs(root, block, stage),
                params={stage.name: block.raw[stage.name]}
                | {k: block.raw[k] for k in stage.context & {"seed", "engine", "domain"}},
                code={},
                seed=1,
                versions={"torch": "2.13.0"},
                metrics=metrics,
                tokens={"prompt_tokens": 1000, "completion_tokens": 20000, "requests": 10, "cached": 0},
                seconds={"start": 2.0, "run": 10.5, "write": 0.1},
                started=f"2026-01-01T10:{minute:02}:00+00:00",
                finished=f"2026-01-01T10:{minute:02}:20+00:00",
            )
        )


def inputs(root: Path, block: Block, stage: Stage) -> dict[str, str]:
    """Digests of what a stage would read, as far as it is there."""
    found = {}
    for need in stage.inputs:
        owner = str(block.raw.get(need.ancestor, "")) if need.ancestor else block.name
        with suppress(store.StoreError):
            found[need.argument] = store.find(root, owner, need.name)[1].digest
    return found


def rows(name: str, table: str, promoted: bool, salt: str) -> pl.LazyFrame:
    """A few rows of the tables that reports look at; the other tables are empty."""
    if table == "measures":
        return measures(name, salt).lazy()
    if table == "filtered":
        kept = [
            {"id": f"{salt}{i}", "prompt_id": "p", "kept": i < 6, "reason": None if i < 6 else "score"}
            for i in range(10)
        ]
        return frame(TABLES[table], kept)
    if table == "critiques":
        told = [{"id": str(i), "kept": i < 2, "refinements": 4, "successes": i} for i in range(5)]
        return frame(TABLES[table], told)
    if table == "decisions":
        reason = "every gate passed" if promoted else "refused by improves"
        told = [{"gate": g, "passed": promoted, "reason": reason} for g in ("all", "improves")]
        return frame(TABLES[table], told)
    return frame(TABLES[table])


def measures(name: str, salt: str = "") -> pl.DataFrame:
    """What an evaluation measures, by level and over all."""
    middle = ACCURACY.get(name, 0.5) + len(salt) / 1000
    found = []
    for measure, plus in {"pass_at_1": 0.0, "greedy": 0.1, "pass_at_8": 0.3, "majority_at_8": 0.12}.items():
        for level in (None, *LEVELS):
            value = middle + plus - (0 if level is None else (level - 3) / 10)
            found.append(
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
        found.append(
            {
                "name": measure,
                "level": None,
                "value": middle + 0.2,
                "low": middle + 0.1,
                "high": middle + 0.3,
                "count": 50,
            }
        )
    return frame(TABLES["measures"], found).collect()


def curve() -> str:
    """A training curve as the stage `train` writes it."""
    told = [{"phase": "sft", "step": s, "loss": 1 / (s + 1), "token_accuracy": 1 / (s + 1)} for s in range(50)]
    return pl.DataFrame(told).write_csv()
