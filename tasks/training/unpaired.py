"""A trainer on single labels whose step is the mean over all its rows, however many of them are at once."""

from collections.abc import Iterator
from typing import Any

import torch  # noqa: TID253  (the file is about training; whoever trains imports it late)
from trl import KTOTrainer  # noqa: TID253


class LabelTrainer(KTOTrainer):
    """TRL's KTOTrainer, which takes the mean of the means of what is at once. Here every piece counts by its rows. The KL term
    is estimated for each piece from its own rows, as TRL does it.
    """

    loss_is_scaled_for_ga = True

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The pieces of the next step; their sizes are kept."""
        pieces, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._rows = sum(len(piece["label"]) for piece in pieces)
        return pieces, items

    def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        """The piece's share of the loss of its step."""
        return super().compute_loss(model, inputs, *args, **kwargs) * (len(inputs["label"]) / self._rows)
