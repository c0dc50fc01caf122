"""Ranks on the machines of a Ray cluster, by Ray's TorchTrainer. The project's folder must be at the same place on all of them."""

from pathlib import Path
from typing import Any

from tasks.core.errors import ParamsError
from tasks.train._devices import LOG, RESTARTS
from tasks.where import Placement

SCRATCH = "ray"
"""Folder of what Ray keeps of a run, beside the case."""


def train_on_ray(folder: Path, count: int, where: Placement) -> None:
    """Runs so many ranks to their end, each with a GPU where the cluster has any, else with a CPU.

    Raises:
        ParamsError: when the cluster does not have so many.
        FlywheelError: when the cluster cannot be joined.
    """
    with where.joined() as ray:
        from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.torch import TorchConfig, TorchTrainer

        there = ray.cluster_resources()
        kind = "GPU" if there.get("GPU") else "CPU"
        if count > there.get(kind, 0):
            raise ParamsError(
                f"train: devices is {count}, but the cluster has {there.get(kind, 0):g} {kind}s; set devices to "
                "that, or add a machine"
            )
        trainer = TorchTrainer(
            _rank,
            train_loop_config={"folder": str(folder)},
            torch_config=TorchConfig(backend="nccl" if kind == "GPU" else "gloo"),
            scaling_config=ScalingConfig(num_workers=count, use_gpu=kind == "GPU"),
            run_config=RunConfig(
                name=SCRATCH,
                storage_path=str(folder),
                failure_config=FailureConfig(max_failures=RESTARTS),
                worker_runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parents[2])}},
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            (folder.parent / LOG).write_text(str(error))


def _rank(settings: dict[str, Any]) -> None:
    from tasks.train._rank import run_rank

    run_rank(Path(settings["folder"]))
