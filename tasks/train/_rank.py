"""A rank: reads the case that the stage's process wrote (`_devices`), and trains it together with the others."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from tasks.core.errors import FlywheelError
from tasks.core.plugin import load
from tasks.train import TrainCase, Training
from tasks.train._devices import CASE, CURVE, ERROR, TABLES, end_with_parent


@dataclass(frozen=True)
class Job:
    """A case as a rank reads it."""

    strategy: Training
    case: TrainCase


def read_case(folder: Path) -> Job:
    """The case that `write_case` wrote."""
    content: dict[str, Any] = json.loads((folder / CASE).read_text())
    rows = {table: pl.read_ipc(folder / f"{table}.arrow") for table in TABLES}
    reference = content["reference"] and {Path(path): share for path, share in content["reference"].items()}
    places = {key: Path(content[key]) for key in ("start", "model", "work")}
    case = TrainCase(**rows, **places, reference=reference, seed=content["seed"], devices=content["devices"])
    return Job(load("train", content["strategy"])(**content["values"]), case)


def run_rank(folder: Path) -> None:
    """What a rank does: runs the strategy, and leaves its curve, or its error. Raises what the strategy raises, so that the other
    ranks are ended; once there is an error, ranks that are started again end at once.
    """
    if (folder / ERROR).is_file():
        return
    from tasks.training import ranks

    try:
        os.chdir(json.loads((folder / CASE).read_text())["directory"])
        ranks.join()
        job = read_case(folder)
        curve = job.strategy(job.case)
    except FlywheelError as error:
        staged = folder / f"{os.getpid()}.part"
        staged.write_text(json.dumps({"kind": type(error).__name__, "text": str(error)}))
        staged.replace(folder / ERROR)
        raise
    if ranks.is_first():
        curve.write_ipc(folder / f"{CURVE}.part")
        (folder / f"{CURVE}.part").replace(folder / CURVE)
    ranks.wait()


if __name__ == "__main__":
    end_with_parent()
    run_rank(Path(sys.argv[1]))
