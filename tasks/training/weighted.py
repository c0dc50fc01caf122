"""A trainer on rows that have weights, masks and tags."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import polars as pl
import torch  # noqa: TID253  (the file is about training; whoever trains imports it late)
from datasets import Dataset  # noqa: TID253
from trl import SFTTrainer  # noqa: TID253

from tasks.training.carrying import Carrying
from tasks.training.masking import masked_labels
from tasks.training.rows import PIECE, on_disk
from tasks.training.tags import with_tags

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN: dict[str, Any] = {"weight": 1.0, "tag": None, "mask": None}
"""Of a row that does not say otherwise."""


class RowTrainer(Carrying, SFTTrainer):
    """TRL's SFTTrainer with another term for each token than its log-probability: the loss of a step is −Σ terms / tokens of
    the step. Here the term is w · log p, w the row's weight, and the tokens are not weighted: a row of weight 2 counts
    twice, of weight 0 not at all, and with weights of 1 the loss is TRL's.
    """

    carried: ClassVar[tuple[str, ...]] = ("weight",)

    def terms(self, logprobs: torch.Tensor, learnt: torch.Tensor, rows: dict[str, torch.Tensor]) -> torch.Tensor:
        """What is maximised, rows × tokens: 0 at tokens that are not `learnt`, as `logprobs` is."""
        return rows["weight"][:, None] * logprobs

    def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        """The piece's share of the loss of its step."""
        batch, rows = self.split(inputs)

        def with_terms(**given: Any) -> Any:
            outputs = model(**given)
            outputs.log_probs = self.terms(outputs.log_probs, outputs.label_mask, rows)  # TRL sums them up
            return outputs

        return super().compute_loss(with_terms, batch, *args, **kwargs)


def dataset(rows: pl.DataFrame, folder: Path, *more: str) -> Dataset:
    """Rows of `training` as TRL takes them, in files in `folder`, with what the loss needs, and the columns `more`. The tag is
    in the text.
    """
    absent = [pl.lit(value).alias(name) for name, value in PLAIN.items() if name not in rows.columns]
    rows = rows.with_columns(*absent).with_columns(pl.col("weight").fill_null(1.0))
    columns = ["prompt", "completion", *PLAIN, *more]
    return on_disk((with_tags(piece).select(columns) for piece in rows.iter_slices(PIECE)), folder)


def with_masks(tokens: Dataset, rows: pl.DataFrame, tokenizer: "PreTrainedTokenizerBase") -> Dataset:
    """What TRL made of rows, without a loss where their masks say so."""
    if "mask" not in rows.columns or not rows["mask"].list.len().sum():
        return tokens
    return tokens.map(masked_labels, fn_kwargs={"tokenizer": tokenizer})
