"""A round with many prompts, whose stages are cut into small pieces, and a driver that writes down what it hands out.

    python driving.py PROJECT STAGE

runs a stage of the round r1; each number of a piece that is handed to a worker is a line of PROJECT/handed.txt.
"""

import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import projects
from ruamel.yaml.scalarstring import DoubleQuotedScalarString  # HOST:PORT in braces has to be quoted

from tasks.core import frames, store, tables
from tasks.project import execute, pieces, plan
from tasks.where import _crew, here

LOG = "handed.txt"
SOME = 3_000
"""Prompts of an ordinary try."""


def drive(root: Path, stage: str) -> subprocess.Popen:
    """Starts a driver in a process of its own."""
    code = [sys.executable, __file__, str(root), stage]
    path = os.pathsep.join([str(projects.HERE), str(projects.HERE / "tests")])
    return subprocess.Popen(code, cwd=root, env=os.environ | {"PYTHONPATH": path}, stderr=subprocess.PIPE, text=True)


def handed(root: Path) -> list[int]:
    """Numbers of the pieces that were handed out."""
    return [int(line) for line in (root / LOG).read_text().split()]


def small_pieces(root: Path) -> None:
    """Cuts the tables into a dozen pieces. They go to workers as they are, so only the driver has to be told."""
    most = (store.manifests(root, "r1")["prompts"].outputs["prompts"].rows or 0) // 12
    pieces.MAX_PROMPTS, pieces.MAX_REQUESTS, pieces.MAX_ROWS, pieces.IDS_PER_PIECE = (most, 4 * most, 5 * most, 16)


def fill(root: Path, count: int) -> None:
    """Puts so many prompts in the place of those of r1."""
    row = store.read(root, "r1", "prompts").filter(pl.col("error").is_null()).head(1)
    rows = pl.concat([row] * count).with_row_index("n")
    rows = rows.with_columns(
        problem=pl.format("{} Once more: {}.", "problem", "n"),
        prompt=pl.concat_list(pl.struct(role=pl.lit("user"), content=pl.format("{} {}", "problem", "n"))),
        level=1 + pl.col("n").cast(pl.Int32) % 3,
    )
    rows = rows.with_columns(frames.ids("problem")).drop("n").sort("id")
    manifest = store.manifests(root, "r1")["prompts"]
    with store.writing(root, "r1", "prompts") as draft:
        draft.table(tables.prompts, rows)
        draft.commit(manifest.model_copy(update={"outputs": draft.outputs}))


def place(root: Path, where: dict[str, object] | None) -> None:
    """Says where the pieces of r1 run."""
    import projects

    values = {
        k: DoubleQuotedScalarString(v) if isinstance(v, str) else v for k, v in (where or {"strategy": "here"}).items()
    }
    projects.rewrite(root, lambda content: content["rounds"]["r1"].update({"where": values}))
    plan.write(root)


def made(root: Path, stage: str) -> tuple[str, list[str]]:
    """The digest of what a stage wrote, and the ids of its rows in their order."""
    (name, output), *_ = store.manifests(root, "r1")[stage].outputs.items()
    return output.digest, store.scan(root, "r1", name)[0].select("id").collect()["id"].to_list()


def forget(root: Path) -> None:
    """Forgets what was handed out."""
    (root / LOG).unlink(missing_ok=True)


def receipts(root: Path) -> list[Path]:
    """The receipts of pieces that are done, while a stage runs."""
    return sorted((root / "data/cache/work").glob("r1-*/rows/*.json"))


def main(root: Path, stage: str) -> None:
    """Runs a stage in this process."""
    log = os.open(root / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    crews, alone = _crew.Crew.next, here.Here.run

    def written(numbers: list[int]) -> list[int]:
        os.write(log, "".join(f"{n}\n" for n in numbers).encode())
        return numbers

    def one_by_one(self, job, numbers):
        for n in numbers:
            written([n])
            yield from alone(self, job, [n])

    _crew.Crew.next = lambda self, worker: written(crews(self, worker))
    here.Here.run = one_by_one
    small_pieces(root)
    execute.run_stage(root, "r1", stage)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
