"""The saved checkpoints of a run as one model: a linear combination, found by search on rows that were held out."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch  # noqa: TID253  (the file is about training; whoever trains imports it late)

from tasks.core.models import shards
from tasks.training.loop import WHOLE
from tasks.training.masking import IGNORED
from tasks.training.scoring import scoring

if TYPE_CHECKING:
    from tasks.training.weighted import RowTrainer

Weights = dict[str, torch.Tensor]
POPULATION = 15
"""Candidates in a generation, about."""


def search(loss: Callable[[np.ndarray], float], count: int, bound: float, generations: int, seed: int) -> np.ndarray:
    """Coefficients of `count` checkpoints, the last of which gets 1 less the sum of the others, each of these within ±bound.
    Differential evolution (Storn and Price 1997), by scipy, begins with the last checkpoint alone among its population and
    keeps what is better, so that the result is never worse than that.
    """
    from scipy.optimize import differential_evolution

    others = count - 1
    if not others:
        return np.ones(1)
    found = differential_evolution(
        lambda x: loss(coefficients(x)), [(-bound, bound)] * others, x0=np.zeros(others), maxiter=generations,
        popsize=max(1, -(-POPULATION // others)), rng=seed, polish=False, tol=0,
    )  # fmt: skip
    return coefficients(found.x)


def coefficients(others: np.ndarray) -> np.ndarray:
    """Those of all checkpoints, which sum to 1."""
    return np.append(others, 1 - others.sum())


def combined(checkpoints: Sequence[Weights], parts: np.ndarray) -> Weights:
    """Σ part · weights."""
    sums: Weights = {}
    for name in checkpoints[0]:
        sums[name] = sum(float(part) * weights[name] for part, weights in zip(parts, checkpoints, strict=True))
    return sums


def saved(work: Path) -> list[Weights]:
    """The weights of the whole checkpoints in a folder, in the order of their steps."""
    from safetensors.torch import load_file

    folders = sorted(
        (p.parent for p in work.glob(f"checkpoint-*/{WHOLE}")), key=lambda p: int(p.name.rpartition("-")[2])
    )
    return [{n: w for shard in shards(folder) for n, w in load_file(folder / shard).items()} for folder in folders]


def set_weights(policy: Any, weights: Weights) -> None:
    """Gives a policy these weights; of tied ones, the checkpoint has one."""
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            weight.copy_(weights[name])


def held_out_loss(trainer: "RowTrainer") -> float:
    """The trainer's loss of its held-out rows under its policy as it is, in nats a token; 0 where masks cover all of them."""
    rows, size, total, tokens = trainer.eval_dataset, trainer.args.per_device_train_batch_size, 0.0, 0
    with scoring(trainer, trainer.model):
        for start in range(0, len(rows), size):
            piece = [rows[n] for n in range(start, min(start + size, len(rows)))]
            batch = {n: v.to(trainer.accelerator.device) for n, v in trainer.data_collator(piece).items()}
            count = int(batch["labels"][:, 1:].ne(IGNORED).sum())
            total += float(trainer.compute_loss(trainer.model, batch, num_items_in_batch=count)) * count
            tokens += count
    return total / max(1, tokens)


def combine(trainer: "RowTrainer", bound: float, generations: int, seed: int) -> list[float]:
    """Gives the trainer's policy the best combination of its checkpoints, by their loss on its held-out rows; the
    coefficients.
    """
    checkpoints = saved(Path(trainer.args.output_dir))

    def loss(parts: np.ndarray) -> float:
        set_weights(trainer.model, combined(checkpoints, parts))
        return held_out_loss(trainer)

    best = search(loss, len(checkpoints), bound, generations, seed)
    set_weights(trainer.model, combined(checkpoints, best))
    return best.tolist()
