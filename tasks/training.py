"""What stages that train share: the optimizer, TRL's set-up for one small machine, checkpoints, the stop at NaN.

An edit of this file does not make stages stale. It imports torch when it is imported, and TRL (about 10 s) only when a
trainer is made: strategies import it inside their functions.
"""

import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tasks.errors import Diverged


class MuonAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024; `torch.optim.Muon`) on the hidden matrices and AdamW on the rest, as one optimizer:
    schedulers and trainers see the groups of both. On the embedded model it is far ahead of AdamW alone.
    """

    def __init__(self, model: nn.Module, matrices: float, rest: float, decay: float = 0.0) -> None:
        """`matrices` and `rest` are the two learning rates, `decay` the weight decay of the matrices."""
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        hidden = [p for n, p in named if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
        others = [p for n, p in named if not any(p is h for h in hidden)]
        super().__init__([p for _, p in named], {"lr": rest})
        self.parts = [
            torch.optim.Muon(hidden, lr=matrices, weight_decay=decay),
            torch.optim.AdamW(others, lr=rest, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self._share_groups()

    def _share_groups(self) -> None:
        # the very dicts of the parts, so that a scheduler's edit reaches them
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()


def check_finite(loss: float, step: int) -> None:
    """Raises Diverged when a loss has left the finite numbers."""
    if not math.isfinite(loss):
        raise Diverged(f"the loss is {loss} at step {step}: lower the learning rate")


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
