"""A trainer on rows that have weights, masks and tags."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import polars as pl
import torch  # noqa: TID253  (the file is about training; whoever trains imports it late)
from datasets import Dataset  # noqa: TID253
from trl import SFTTrainer  # noqa: TID253

from tasks.training.carrying import Carrying
from tasks.training.masking import IGNORED
from tasks.training.rows import PIECE, on_disk
from tasks.training.tokens import row_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN: dict[str, Any] = {"weight": 1.0, "tag": None, "mask": None}
"""Of a row that does not say otherwise."""
Tokens = Callable[[pl.DataFrame, "PreTrainedTokenizerBase"], pl.DataFrame]


class RowTrainer(Carrying, SFTTrainer):
    """TRL's SFTTrainer with another term for each token than its log-probability: the loss of a step is −Σ terms / tokens of
    the step. Here the term is w · log p, w the row's weight, and the tokens are not weighted: a row of weight 2 counts
    twice, of weight 0 not at all, and with weights of 1 the loss is TRL's.
    """

    carried: ClassVar[tuple[str, ...]] = ("weight",)

    def terms(self, logprobs: torch.Tensor, learnt: torch.Tensor, rows: dict[str, torch.Tensor]) -> torch.Tensor:
        """What is maximised, rows × tokens: 0 at tokens that are not `learnt`, as `logprobs` is."""
        return rows["weight"][:, None] * logprobs

    @staticmethod
    def blank(row: dict[str, Any]) -> dict[str, Any]:
        """What makes a row one that has no tokens to learn."""
        return {"labels": [IGNORED] * len(row["labels"])}

    def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        """The piece's share of the loss of its step."""
        batch, rows = self.split(inputs)

        def with_terms(**given: Any) -> Any:
            outputs = model(**given)
            outputs.log_probs = self.terms(outputs.log_probs, outputs.label_mask, rows)  # TRL sums them up
            return outputs

        return super().compute_loss(with_terms, batch, *args, **kwargs)


def dataset(
    rows: pl.DataFrame,
    folder: Path,
    tokenizer: "PreTrainedTokenizerBase",
    *more: str,
    tokens: "Tokens" = row_tokens,
    ids: tuple[str, ...] = ("input_ids", "labels"),
) -> Dataset:
    """Rows of `training` as TRL takes them, in files in `folder`: the ids that `tokens` makes of them, `weight`, and the columns
    `more`.
    """
    absent = [pl.lit(value).alias(name) for name, value in PLAIN.items() if name not in rows.columns]
    rows = rows.with_columns(*absent).with_columns(pl.col("weight").fill_null(1.0))
    columns = [*ids, "weight", *more]
    return on_disk((tokens(piece, tokenizer).select(columns) for piece in rows.iter_slices(PIECE)), folder)
