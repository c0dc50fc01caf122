"""The training loop: order of the rows, TRL's set-up, checkpoints, the stop at NaN.

It imports torch when it is imported, and TRL (about 10 s) only when a trainer is made: strategies import it inside their
functions.
"""

import logging
import math
import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch  # noqa: TID253  (the file is about training; whoever trains imports it late)
from torch.optim.lr_scheduler import LambdaLR  # noqa: TID253

from tasks.core.errors import Diverged
from tasks.training import ranks
from tasks.training.optimizer import MuonAdamW

if TYPE_CHECKING:
    from torch import nn
    from transformers import Trainer, TrainerCallback, TrainingArguments

    Config = TypeVar("Config", bound=TrainingArguments)

CHECKPOINTS = 5
"""Checkpoints in a run."""
WHOLE = "whole"
"""A file in a checkpoint that was written to its end."""
FINAL = 0.1
"""What is left of the peak learning rates where the decay of `wsd` ends."""
EXPLODED = 5.0
"""A loss this many times the first one (and above 1 nat) is a divergence."""
PLOTTED = frozenset({"loss", "grad_norm", "mean_token_accuracy", "entropy", "rewards/margins", "rewards/accuracies"})
"""What of a trainer's log is a curve: what does not depend on the clock, nor on where a killed run went on."""

log = logging.getLogger(__name__)


def check_finite(value: float, step: int, first: float = math.inf, name: str = "loss") -> None:
    """Raises Diverged when a value of the log has left the finite numbers, or is far above the `first` one."""
    if not math.isfinite(value) or value > max(1.0, EXPLODED * first):
        raise Diverged(
            f"the {name} is {value} at step {step}: lower the learning rate. The weights saved before it stay."
        )


def save_atomic(state: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint so that a kill at any instant leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_suffix(".part")
    with staged.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)


def buckets(lengths: Iterable[int], tokens: int) -> list[list[int]]:
    """Indices of documents in batches of like length that hold at most `tokens` tokens, padding included."""
    lengths = list(lengths)
    batches: list[list[int]] = [[]]
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batches[-1] and (len(batches[-1]) + 1) * lengths[i] > tokens:
            batches.append([])
        batches[-1].append(i)
    return [batch for batch in batches if batch]


@dataclass(frozen=True)
class Schedule:
    """How rows become steps."""

    rows: int
    epochs: int
    batch: int
    """Rows a step, where there are so many: with fewer an epoch is one step."""
    micro_batch: int | None
    """Most rows at once; None takes the batch."""
    warmup: float
    seed: int
    shape: Literal["linear", "wsd"] = "linear"
    """How the learning rates go on after the warm-up."""
    decay: float = 0.1
    """Share of the steps, at the end, in which they fall with `wsd`."""
    devices: int = 1
    """Among which the rows of a step are divided."""

    @property
    def step(self) -> int:
        """Rows a step."""
        return min(self.batch, self.rows)

    @property
    def share(self) -> int:
        """Rows a step on each device; where they do not come out even, blank rows fill it up."""
        return -(-self.step // self.devices)

    @property
    def at_once(self) -> int:
        """Rows at once on a device: the largest divisor of its share that is no more than `micro_batch`."""
        return max(n for n in range(1, min(self.micro_batch or self.share, self.share) + 1) if self.share % n == 0)

    @property
    def steps(self) -> int:
        """Steps in all; the last one may have fewer rows."""
        return -(-self.rows * self.epochs // self.step)

    @property
    def warmup_steps(self) -> int:
        """Steps in which the learning rates rise."""
        return round(self.warmup * self.steps)

    @property
    def trunk_steps(self) -> int:
        """Steps before the decay of `wsd`, which has one at least."""
        return self.steps - max(1, round(self.decay * self.steps))

    def factor(self, step: int) -> float:
        """What `wsd` multiplies the peak learning rates with in a step, from 0: it rises linearly, stays at 1, and falls
        exponentially as `FINAL` ** (part of the decay that is over).
        """
        if step >= self.trunk_steps:
            return FINAL ** ((step - self.trunk_steps) / (self.steps - self.trunk_steps))
        return step / self.warmup_steps if step < self.warmup_steps else 1.0


def optimizers(
    policy: "nn.Module", muon_lr: float | None, adamw_lr: float, schedule: Schedule
) -> tuple[MuonAdamW, LambdaLR | None]:
    """What trainers take as `optimizers`; without a scheduler, they make the linear one that `arguments` names."""
    optimizer = MuonAdamW(policy, muon_lr, adamw_lr)
    return optimizer, None if schedule.shape == "linear" else LambdaLR(optimizer, schedule.factor)


def in_order(lengths: Sequence[int], batch: int, epochs: int, seed: int) -> list[int]:
    """Indices of the rows, each `epochs` times, such that every `batch` of them is a step.

    Of each epoch, `len(lengths) % batch` rows are left over, others each time, drawn by the seed; the rest makes batches of
    like length, shuffled. What the epochs leave over makes batches of its own, at places drawn by the seed, without a row
    twice in one. The few rows that do not fill a batch come last, in a shorter step.
    """
    count = len(lengths)
    batch, rng = min(batch, count), random.Random(f"{seed} order")
    rest = count % batch
    permutation = rng.sample(range(count), count)
    remainder = [permutation[i % count] for i in range(epochs * rest)]
    batches: list[list[int]] = []
    for epoch in range(epochs):
        rows = set(range(count)).difference(remainder[epoch * rest : (epoch + 1) * rest])
        alike = _cut(sorted(rows, key=lambda i: (lengths[i], i)), batch)
        rng.shuffle(alike)
        batches += alike
    mixed = _cut(remainder, batch)
    last = mixed.pop() if mixed and len(mixed[-1]) < batch else []
    for rows_of_step in mixed:
        batches.insert(rng.randint(0, len(batches)), rows_of_step)
    return [i for rows_of_step in [*batches, last] for i in rows_of_step]


def at_intervals(lengths: Sequence[int], old: Sequence[bool], schedule: Schedule, interval: int) -> list[int]:
    """Indices of the rows as `in_order` gives them, but with the old rows in steps of their own, one after every `interval`
    steps of the others. What is left of either, and what does not fill a step, comes at the end. Where there is less than a
    step of either, they are mixed.
    """
    parts = [[n for n, is_old in enumerate(old) if is_old == which] for which in (False, True)]
    if min(map(len, parts)) < schedule.step:
        return in_order(lengths, schedule.batch, schedule.epochs, schedule.seed)
    fresh, replayed = (
        _cut([part[n] for n in in_order([lengths[i] for i in part], schedule.step, schedule.epochs, schedule.seed)], schedule.step)
        for part in parts
    )  # fmt: skip
    short = [steps.pop() if len(steps[-1]) < schedule.step else [] for steps in (fresh, replayed)]
    spaced: list[list[int]] = []
    for n, rows in enumerate(fresh, 1):
        spaced.append(rows)
        if n % interval == 0 and replayed:
            spaced.append(replayed.pop(0))
    return [n for rows in [*spaced, *replayed, *short] for n in rows]


def _cut(rows: list[int], size: int) -> list[list[int]]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def arguments(work: Path, schedule: Schedule) -> dict[str, Any]:
    """Settings of every TRL config here: one pass in the rows' order, a hundred points of curve, a few checkpoints."""
    every = max(1, schedule.steps // 100)
    return {
        "output_dir": str(work),
        "per_device_train_batch_size": schedule.at_once,
        "gradient_accumulation_steps": schedule.share // schedule.at_once,
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",  # the rows lie in their order: a resumed run skips what it has seen
        "lr_scheduler_type": "linear",
        "warmup_steps": schedule.warmup_steps,
        "max_grad_norm": 1.0,
        "max_length": None,  # `collect` left out what is too long; cutting would be silent
        "logging_steps": every,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": every * max(1, round(schedule.steps / every / CHECKPOINTS)),
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "dataloader_pin_memory": False,
        "ddp_find_unused_parameters": False,
        "ddp_broadcast_buffers": False,
        "seed": schedule.seed % 2**32,
    }


def sharded(adamw_lr: float, gradient_checkpointing: bool) -> dict[str, Any]:
    """Settings that share weights, gradients and the optimizer's state out among the devices (FSDP2), with AdamW on all weights:
    torch's Muon cannot step on shares of a matrix.
    """
    layers = {"version": 2, "state_dict_type": "FULL_STATE_DICT", "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}
    return {
        "fsdp": True,
        "fsdp_config": layers | {"activation_checkpointing": gradient_checkpointing},
        "gradient_checkpointing": False,
        "optim": "adamw_torch",
        "learning_rate": adamw_lr,
        "adam_beta2": 0.98,
        "weight_decay": 0.0,
    }


def on_one_device(config: "Config") -> "Config":
    """Trains on the first device: with several visible ones, TRL's trainers refuse to start without a launcher."""
    if config.n_gpu > 1:
        log.info("%d devices are visible, and one is used", config.n_gpu)
        config._n_gpu = 1
    return config


def fit_in_order(trainer: "Trainer", lengths: Sequence[int], schedule: Schedule, phase: str) -> list[dict[str, Any]]:
    """`fit` on the trainer's rows, which have these lengths, in the order of the schedule."""
    put_in_order(trainer, in_order(lengths, schedule.batch, schedule.epochs, schedule.seed), schedule)
    return fit(trainer, phase)


def put_in_order(trainer: "Trainer", order: Sequence[int], schedule: Schedule) -> None:
    """Gives a trainer its rows in this order. On several devices each step is filled up with blank rows, of which the trainer's
    loss knows nothing, so that all devices have as many rows at once.
    """
    from tasks.training.rows import with_blank

    if schedule.devices > 1:
        trainer.train_dataset, blank = with_blank(trainer.train_dataset, trainer.blank)
        size = schedule.at_once * schedule.devices
        order = [n for step in _cut([*order], schedule.step) for n in (*step, *[blank] * (-len(step) % size))]
    trainer.train_dataset = trainer.train_dataset.select(order)


def fit(trainer: "Trainer", phase: str) -> list[dict[str, Any]]:
    """Runs a trainer, from its last whole checkpoint if there is one, and gives its curve in rows of `train.CURVE`.

    Raises Diverged at the first value of the curve that is not finite, or loss that exploded; what was saved before it
    stays.
    """
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(watch())
    trainer.train(resume_from_checkpoint=_last_whole(Path(trainer.args.output_dir)))
    # accelerate wraps a model for mixed precision once, and the next trainer's own forward would replace the wrapped one
    if original := vars(trainer.model).pop("_original_forward", None):
        trainer.model.forward = original
    vars(trainer.model).pop("_is_accelerate_prepared", None)
    return [
        {"step": entry["step"], "phase": phase, "name": name, "value": round(float(value), 6)}
        for entry in trainer.state.log_history
        for name, value in sorted(entry.items())  # as a checkpoint has them: a resumed run gives the same rows
        if name in PLOTTED
    ]


def _last_whole(folder: Path) -> str | None:
    checkpoints = sorted(folder.glob(f"checkpoint-*/{WHOLE}"), key=lambda p: int(p.parent.name.rpartition("-")[2]))
    return str(checkpoints[-1].parent) if checkpoints else None


def watch() -> "TrainerCallback":
    """Stops a trainer where the curve leaves the finite numbers; marks checkpoints that were written to their end."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
            for name in sorted(PLOTTED & logs.keys()):
                first = losses[0] if name == "loss" else math.inf
                check_finite(logs[name], state.global_step, first, name)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            ranks.wait()  # each writes a part of it
            if ranks.is_first():
                (Path(args.output_dir) / f"checkpoint-{state.global_step}" / WHOLE).touch()

    return Watch()
