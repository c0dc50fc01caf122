"""The reference of a loss as a model."""

from typing import TYPE_CHECKING

from tasks.train import TrainCase

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def reference_model(case: TrainCase, tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedModel | None":
    """The reference, which may be a soup; None is the policy. Raises ModelRefused where it reads other tokens."""
    from tasks.training.soup import check_vocabulary, load_soup

    if not case.reference:
        return None
    reference, words = load_soup(case.reference)
    check_vocabulary(next(iter(case.reference)), words, tokenizer)
    return reference
