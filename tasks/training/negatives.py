"""NFT's loss: right answers are made likelier, and wrong ones less likely through the policy that they imply."""

from typing import Any, ClassVar, Literal

import torch  # noqa: TID253  (the file is about training; whoever trains imports it late)

from tasks.training.masking import IGNORED
from tasks.training.rows import with_columns
from tasks.training.scoring import token_logprobs
from tasks.training.weighted import RowTrainer

Emphasis = Literal["failures", "root"]
MAX_LOG_RATIO = 10.0


def nft_terms(ratios: torch.Tensor, label: torch.Tensor, rate: torch.Tensor, emphasis: Emphasis) -> torch.Tensor:
    """What NFT maximises for each token, rows × tokens: ω · [r log R + (1 − r) log max_v((1 − r̂R) / (1 − r̂), 1)].

    `ratios` is log π/π_old of each token, capped at 10 here; R its exponential. `label` is r, `rate` r̂, both of each row.
    ω is 1 − r̂ (`failures`) or √((1 − r̂) / r̂) (`root`). max_v is the straight-through maximum: its value is the maximum, its
    gradient that of its argument (NVlabs/NFT).
    """
    ratios, rate = ratios.clamp(max=MAX_LOG_RATIO), rate[:, None]
    implied = (1 - rate * ratios.exp()) / (1 - rate)
    negative = torch.log(implied + (implied.clamp(min=1.0) - implied).detach())
    emphasised = 1 - rate if emphasis == "failures" else ((1 - rate) / rate).sqrt()
    return emphasised * torch.where(label[:, None], ratios, negative)


class NegativeTrainer(RowTrainer):
    """Rows have a `label`, the `rate` of right answers of their group, and, from `remember` on, `old`: log π_old of each
    token. The loss of a step is −Σ w · `nft_terms` / tokens, w the row's weight.
    """

    carried: ClassVar[tuple[str, ...]] = ("weight", "label", "rate", "old")
    emphasis: Emphasis = "failures"

    def remember(self) -> None:
        """Takes the policy as it is for π_old."""

        def old(tokens: dict[str, list[Any]]) -> dict[str, list[Any]]:
            rows = list(zip(tokens["input_ids"], map(_first, tokens["labels"]), strict=True))
            found = token_logprobs(self, self.model, [ids[:n] for ids, n in rows], [ids[n:] for ids, n in rows])
            return {"old": [[0.0] * (n - 1) + logprobs for (_, n), logprobs in zip(rows, found, strict=True)]}

        self.train_dataset = with_columns(self.train_dataset, old, self.args.per_device_train_batch_size)

    def terms(self, logprobs: torch.Tensor, learnt: torch.Tensor, rows: dict[str, torch.Tensor]) -> torch.Tensor:
        """`nft_terms` with the rows' weights; 0 at tokens that have no loss."""
        ratios = (logprobs - rows["old"]) * learnt
        return super().terms(nft_terms(ratios, rows["label"], rows["rate"], self.emphasis), learnt, rows)


def _first(labels: list[int]) -> int:
    """The first token that has a loss; the last one where none has."""
    return next((n for n, label in enumerate(labels) if label != IGNORED), len(labels) - 1)
