"""A trainer on pairs whose step has the loss of all its pairs, each with its weight, however many of them are at once."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch  # noqa: TID253  (the file is about training; whoever trains imports it late)
from datasets import Dataset  # noqa: TID253
from torch.nn.functional import logsigmoid  # noqa: TID253
from trl import DPOTrainer  # noqa: TID253

from tasks.training import ranks
from tasks.training.carrying import Carrying, recorded


def conservative(margins: torch.Tensor, smoothing: torch.Tensor) -> torch.Tensor:
    """The loss of each pair, −(1−ε) log σ(m) − ε log σ(−m), m = βΔ: conservative DPO (Mitchell 2023; section 3 of Chowdhury
    et al. 2024, arXiv:2403.00409) with an ε for each pair.
    """
    return -(1 - smoothing) * logsigmoid(margins) - smoothing * logsigmoid(-margins)


def either_turned(one: torch.Tensor, other: float) -> torch.Tensor:
    """The probability that exactly one of two independent things, of these probabilities, turned a pair round."""
    return one * (1 - other) + (1 - one) * other


@dataclass(frozen=True)
class Piece:
    """The pairs that are at once: the first half of `logprobs` are the chosen completions."""

    model: Any
    batch: dict[str, torch.Tensor]
    """As TRL's collator made it."""
    rows: dict[str, torch.Tensor]
    """The carried columns."""
    logprobs: torch.Tensor
    """log π of each token, 2 · pairs × tokens; 0 outside the completions."""

    @property
    def chosen_ratios(self) -> torch.Tensor:
        """log π/π_ref of the chosen completions."""
        return self.logprobs.chunk(2)[0].sum(1) - self.batch["ref_chosen_logps"]

    @property
    def rejected_ratios(self) -> torch.Tensor:
        """log π/π_ref of the rejected completions."""
        return self.logprobs.chunk(2)[1].sum(1) - self.batch["ref_rejected_logps"]


class PairTrainer(Carrying, DPOTrainer):
    """TRL's DPOTrainer takes the mean of the means of what is at once: with pieces of several sizes, or of completions of
    several lengths, that is another loss than the step's, and all pairs count alike. Here the loss of a step is
    Σ w_i loss_i / pairs + `chosen` · Σ w_i (−log π(chosen_i)) / tokens of the chosen completions, w_i the pair's weight;
    neither the pairs nor the tokens are weighted. The reference's log-probabilities are computed once, before the first step.
    """

    loss_is_scaled_for_ga = True
    carried: ClassVar[tuple[str, ...]] = ("weight", "smoothing")

    def __init__(self, *args: Any, smoothing: float, chosen: float, **kwargs: Any) -> None:
        """`smoothing` is the probability that any pair is the wrong way round, beside the pair's own; `chosen` the weight of
        the SFT term (Pang et al. 2024, arXiv:2404.19733).
        """
        super().__init__(*args, **kwargs)
        self.smoothing, self.chosen = smoothing, chosen

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        """The rows as they are: they have their tokens."""
        return dataset

    def pair_losses(self, piece: Piece) -> torch.Tensor:
        """The loss of each pair, without weight and SFT term."""
        margins = self.beta * (piece.chosen_ratios - piece.rejected_ratios)
        return conservative(margins, either_turned(piece.rows["smoothing"], self.smoothing))

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The pieces of the next step; their sizes are kept."""
        pieces, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        own = [sum(sizes) for sizes in zip(*map(_sizes, pieces), strict=True)] or [0, 0]
        self._totals = ranks.totals(own, device)
        return pieces, items

    @staticmethod
    def blank(row: dict[str, Any]) -> dict[str, Any]:
        """What makes a row one without completions, which is no pair."""
        absent: dict[str, Any] = {"weight": 0.0, "ref_chosen_logps": 0.0, "ref_rejected_logps": 0.0}
        absent |= {"chosen_ids": [], "rejected_ids": [], "chosen_rewards": [], "rejected_rewards": []}
        return {name: value for name, value in absent.items() if name in row}

    def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        """The piece's share of the loss of its step."""
        batch, rows = self.split(inputs)
        recording, outputs = recorded(model)
        super().compute_loss(recording, batch, *args, **kwargs)  # for its metrics: its loss knows no weights
        piece = Piece(model, batch, rows, outputs[0].log_probs)
        pairs, tokens = self._totals
        losses = rows["weight"] * self.pair_losses(piece)
        surprises = -rows["weight"] * piece.logprobs.chunk(2)[0].sum(1)
        loss = losses.sum() / pairs + self.chosen * surprises.sum() / tokens
        if self.aux_loss_enabled:  # of mixtures of experts, as TRL adds it
            loss = loss + self.router_aux_loss_coef * outputs[0].aux_loss * len(losses) / pairs
        return loss * ranks.count()  # gradients of ranks are averaged


def _sizes(piece: dict[str, torch.Tensor]) -> tuple[int, int]:
    """Pairs of a piece, and tokens of its chosen completions: the first half of its rows are the chosen ones."""
    chosen, rejected = piece["completion_mask"].chunk(2)
    return int((chosen | rejected).any(1).sum()), int(chosen[:, 1:].sum())
