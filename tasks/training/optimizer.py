"""Muon on the hidden matrices, AdamW on the rest."""

from collections.abc import Callable
from typing import Any

import torch  # noqa: TID253  (the file is about training; whoever trains imports it late)
from torch import nn  # noqa: TID253


class MuonAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024; `torch.optim.Muon`) on the hidden matrices and AdamW on the rest, as one optimizer:
    schedulers and trainers see the groups of both. On the embedded model it is far ahead of AdamW alone.
    """

    def __init__(self, model: nn.Module, muon_lr: float | None, adamw_lr: float, decay: float = 0.0) -> None:
        """`muon_lr` and `adamw_lr` are the two learning rates, `decay` the weight decay of Muon's matrices. Without a `muon_lr`
        AdamW has all.
        """
        trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        hidden, rest = list[nn.Parameter](), list[nn.Parameter]()
        for name, weights in trained:
            is_hidden = weights.ndim == 2 and "embed" not in name and "lm_head" not in name and muon_lr is not None
            (hidden if is_hidden else rest).append(weights)
        super().__init__([p for _, p in trained], {"lr": adamw_lr})
        self.parts: list[torch.optim.Optimizer] = []
        if hidden and muon_lr is not None:
            self.parts.append(torch.optim.Muon(hidden, lr=muon_lr, weight_decay=decay))
        if rest:  # none where Muon trains an adapter
            self.parts.append(torch.optim.AdamW(rest, lr=adamw_lr, betas=(0.9, 0.98), weight_decay=0.0))
        self._share_groups()

    def _share_groups(self) -> None:
        # the very dicts of the parts, so that a scheduler's edit reaches them
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of both parts. A closure is not called: neither part needs a second look at the loss."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The state of both parts."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()
