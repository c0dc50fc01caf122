"""A trainer on pairs whose step has the loss of all its pairs, however many of them are at once."""

from collections.abc import Iterator
from typing import Any

import torch  # noqa: TID253  (the file is about training; whoever trains imports it late)
from trl import DPOTrainer  # noqa: TID253


class PairTrainer(DPOTrainer):
    """TRL's DPOTrainer takes the mean of the means of what is at once: with pieces of several sizes, or of completions of
    several lengths, that is another loss than the step's. Here every piece counts by its pairs, and in the SFT term by its
    tokens.
    """

    loss_is_scaled_for_ga = True

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The pieces of the next step; their sizes are kept."""
        pieces, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._totals = [sum(sizes) for sizes in zip(*map(_sizes, pieces), strict=True)]
        return pieces, items

    def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        """The piece's share of the loss of its step."""
        pairs, tokens = (size / total for size, total in zip(_sizes(inputs), self._totals, strict=True))
        terms = zip(self.loss_types, self.args.loss_weights, strict=True)
        self.loss_weights = [weight * (tokens if kind == "sft" else pairs) for kind, weight in terms]
        return super().compute_loss(model, inputs, *args, **kwargs)


def _sizes(piece: dict[str, torch.Tensor]) -> tuple[int, int]:
    """Pairs of a piece, and tokens of its chosen completions: the first half of its rows are the chosen ones."""
    chosen, _ = piece["completion_mask"].chunk(2)
    return len(chosen), int(chosen[:, 1:].sum())
