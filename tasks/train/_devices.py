"""Training on several devices: one process for each, a *rank*, all of which run the strategy on the same case.

The stage's process writes the case into a folder beside the checkpoints, starts the ranks, by `accelerate launch` on this machine
or by Ray's TorchTrainer on a cluster, and reads the curve that the first of them leaves. Rows are Arrow files that every rank maps.
A rank that dies ends the others, and all are started again from the last whole checkpoint. Ranks end with the process that
started them.
"""

import ctypes
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import polars as pl

from tasks.core import errors
from tasks.core.devices import devices
from tasks.core.errors import FlywheelError, ParamsError
from tasks.where import Placement

if TYPE_CHECKING:
    from tasks.train import TrainCase, Training

FOLDER = "ranks"
"""In the scratch folder of the training."""
TABLES = ("training", "preferences")
CASE, CURVE, ERROR, LOG = "case.json", "curve.arrow", "error.json", "log.txt"
RESTARTS = 3
"""How often ranks are started again after one died, before the stage fails; the next run of it goes on."""
TOLD = 8
"""Lines of the log that an error tells."""
DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of Linux: what a process gets when its parent ends."""

log = logging.getLogger(__name__)


def check_devices(count: int, where: Placement) -> None:
    """Raises ParamsError for more devices than this machine has. How many a cluster has is asked when it is joined."""
    there, kind = available()
    if 1 < count > there and not where.over_machines:
        raise ParamsError(
            f"train: devices is {count}, but this machine has {there} {kind}{'s' * (there != 1)}; set devices to {there} or "
            "less, or give the block a cluster: where: {strategy: ray}"
        )


def available() -> tuple[int, str]:
    """How many devices this process may use, and what they are: GPUs, or CPUs where there are none."""
    gpus = len(devices())
    return (gpus, "GPU") if gpus else (len(os.sched_getaffinity(0)), "CPU")


def on_devices(strategy: "Training", case: "TrainCase", gpus: Sequence[str], where: Placement) -> pl.DataFrame:
    """Has a strategy train on `case.devices` devices, of which `gpus` are the names of this machine's, or on the machines of `where`; its curve.

    Raises:
        FlywheelError: of the kind that a rank raised; or when ranks died more often than `RESTARTS`.
    """
    folder = write_case(strategy, case)
    if not where.over_machines:
        launch(folder, case.devices, gpus)
    else:
        from tasks.train._ray import train_on_ray

        train_on_ray(folder, case.devices, where)
    return read_curve(folder)


def write_case(strategy: "Training", case: "TrainCase") -> Path:
    """Writes what ranks need into a folder, which it returns."""
    folder = case.work / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for table in TABLES:
        getattr(case, table).write_ipc(folder / f"{table}.arrow", compression="uncompressed")
    content = {
        "strategy": strategy.strategy_name(),
        "values": strategy.model_dump(mode="json"),
        "directory": str(Path.cwd()),
        "start": str(case.start),
        "reference": case.reference and {str(path): share for path, share in case.reference.items()},
        "model": str(case.model),
        "work": str(case.work),
        "seed": case.seed,
        "devices": case.devices,
    }
    (folder / CASE).write_text(json.dumps(content))
    return folder.absolute()


def read_curve(folder: Path) -> pl.DataFrame:
    """The curve that the first rank left, or the error of whichever raised one."""
    if (folder / ERROR).is_file():
        told = json.loads((folder / ERROR).read_text())
        kind = getattr(errors, told["kind"], FlywheelError)
        raise kind.__new__(kind, told["text"])  # as it was raised: some make their text of other arguments
    if not (folder / CURVE).is_file():
        raise FlywheelError(f"train: a rank died, and no try again helped: {_end_of_log(folder)}")
    return pl.read_ipc(folder / CURVE)


def _end_of_log(folder: Path) -> str:
    kept = folder.parent / LOG
    lines = kept.read_text(errors="replace").strip().splitlines() if kept.is_file() else []
    return (
        "; ".join([*map(str.strip, lines[-TOLD:])])
        + f" (all of it is in {kept}). Run the stage again: it goes on from its last checkpoint"
    )


def launch(folder: Path, count: int, gpus: Sequence[str]) -> None:
    """Runs so many ranks on this machine to their end; where one dies, all of them again."""
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(count), "--num_machines", "1",
        "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no", "--module", "tasks.train._rank", str(folder),
    ]  # fmt: skip
    where = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {"ACCELERATE_USE_CPU": "true"}
    quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    with (folder.parent / LOG).open("wb") as output:
        for attempt in range(RESTARTS + 1):
            if attempt:
                log.warning("train: a rank died; all of them go on from the last checkpoint (%s)", folder.parent / LOG)
            if _run(command, os.environ | where | quiet, output) == 0 or (folder / ERROR).is_file():
                return


def _run(command: list[str], environment: Mapping[str, str], output: IO[bytes]) -> int:
    """Runs a command, which ends with this process; its exit code."""
    process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, preexec_fn=end_with_parent)
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise


def end_with_parent() -> None:
    """Ends this process when its parent ends, however that does."""
    ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL)
