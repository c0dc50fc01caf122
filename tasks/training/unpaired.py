"""A trainer on single labels whose step is the weighted mean over all its rows, however many of them are at once."""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch  # noqa: TID253  (the file is about training; whoever trains imports it late)
from datasets import Dataset  # noqa: TID253
from trl import KTOTrainer  # noqa: TID253

from tasks.training.carrying import Carrying, recorded
from tasks.training.rows import with_columns, with_last

IDS = ("prompt_ids", "completion_ids")
"""Columns of a row that have its tokens."""


def kto_losses(margins: torch.Tensor, labels: torch.Tensor, desirable: float, undesirable: float) -> torch.Tensor:
    """KTO's loss of each row: λ_D [1 − σ(m)] of a right answer and λ_U [1 − σ(−m)] of a wrong one, m = β(r − z)."""
    signs = torch.where(labels, 1.0, -1.0)
    return torch.where(labels, desirable, undesirable) * torch.sigmoid(-signs * margins)


class LabelTrainer(Carrying, KTOTrainer):
    """TRL's KTOTrainer takes the mean of the means of what is at once, and all rows count alike. Here the loss of a step is
    Σ w_i loss_i / rows, w_i the row's weight; the rows are not weighted, so that with weights of 1 it is TRL's. The KL term
    is estimated for each piece from its own rows, as TRL does it; weights do not enter it.
    """

    loss_is_scaled_for_ga = True
    carried: ClassVar[tuple[str, ...]] = ("weight",)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The pieces of the next step; their sizes are kept."""
        pieces, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._rows = sum(len(piece["label"]) for piece in pieces)
        return pieces, items

    def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        """The piece's share of the loss of its step."""
        batch, rows = self.split(inputs)
        recording, outputs = recorded(model)
        super().compute_loss(recording, batch, *args, **kwargs)  # for its metrics: its loss knows no weights
        mismatched, matched = (output.log_probs.sum(1) for output in outputs)  # TRL asks in this order
        kl = (mismatched - batch["ref_KL_logps"]).mean().clamp(min=0)
        margins = self.beta * (matched - batch["ref_logps"] - kl)
        losses = rows["weight"] * kto_losses(margins, batch["label"], self.desirable_weight, self.undesirable_weight)
        loss = losses.sum() / self._rows
        if self.aux_loss_enabled:  # of mixtures of experts, as TRL adds it
            loss = loss + self.router_aux_loss_coef * outputs[1].aux_loss * len(losses) / self._rows
        return loss

    def _prepare_dataset(self, dataset: Dataset, processing_class: Any, args: Any, dataset_name: str) -> Dataset:
        """Pairs each row's prompt with the completion of another row of its piece, as TRL does: the one before it, and the first
        with the last. A last piece of one row has no other, and takes the row before it. The rows have their tokens.
        """
        size = args.per_device_train_batch_size

        def mismatched(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
            pieces = (rows["completion_ids"][n : n + size] for n in range(0, len(rows["completion_ids"]), size))
            return {"KL_completion_ids": [ids for piece in pieces for ids in (piece[-1], *piece[:-1])]}

        rows = with_columns(dataset, mismatched, size)
        return rows if len(rows) % size != 1 else with_last(rows, "KL_completion_ids", rows[-2]["completion_ids"])
