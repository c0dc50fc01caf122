"""A trainer on rows that have weights, masks and tags."""

from typing import TYPE_CHECKING, Any, ClassVar

import polars as pl
import torch  # noqa: TID253  (the file is about training; whoever trains imports it late)
from datasets import Dataset  # noqa: TID253
from trl import SFTTrainer  # noqa: TID253

from tasks.training.carrying import Carrying
from tasks.training.masking import masked_labels
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


def dataset(rows: pl.DataFrame, *more: str) -> Dataset:
    """Rows of `training` as TRL takes them, with what the loss needs, and the columns `more`. The tag is in the text."""
    absent = [pl.lit(value).alias(name) for name, value in PLAIN.items() if name not in rows.columns]
    rows = rows.with_columns(*absent).with_columns(pl.col("weight").fill_null(1.0))
    return Dataset.from_list(with_tags(rows).select("prompt", "completion", *PLAIN, *more).to_dicts())


def with_masks(tokens: Dataset, tokenizer: "PreTrainedTokenizerBase") -> Dataset:
    """What TRL made of rows, without a loss where their masks say so."""
    if not any(tokens["mask"]):
        return tokens
    return tokens.map(masked_labels, fn_kwargs={"tokenizer": tokenizer})
