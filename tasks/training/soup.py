"""Models whose weights are averages of other models' weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch  # noqa: TID253  (the file is about training; whoever trains imports it late)

from tasks.core.errors import ModelRefused
from tasks.training.weights import load

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_soup(shares: Mapping[Path, float]) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """The model whose weights are Σ share · weights of these folders' models (a model soup, Wortsman et al. 2022,
    arXiv:2203.05482), in float32, and the tokenizer of the first. Of a single folder it is that model.

    Raises ModelRefused where they do not have the same weights and vocabulary.
    """
    (first, share), *others = sorted(shares.items(), key=lambda item: -item[1])
    soup, tokenizer = load(first)
    _scale(soup, share)
    for folder, part in others:
        model, words = load(folder)
        check_vocabulary(folder, words, tokenizer)
        if shapes(model) != shapes(soup):
            raise ModelRefused(
                f"{folder}: has other weights than {first}, so they cannot be averaged; leave one of them out"
            )
        _add(soup, model, part)
    return soup, tokenizer


def check_vocabulary(folder: Path, words: "PreTrainedTokenizerBase", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raises ModelRefused where a model reads other tokens than the one that is trained."""
    if words.get_vocab() != tokenizer.get_vocab():
        raise ModelRefused(
            f"{folder}: the reference has another vocabulary than the start, so their log-probabilities cannot be "
            "compared; set train.reference to a model of the same line"
        )


def shapes(model: "PreTrainedModel") -> dict[str, torch.Size]:
    """Names and shapes of the weights, tied ones once."""
    return {name: weight.shape for name, weight in model.named_parameters()}


@torch.no_grad()
def _scale(soup: "PreTrainedModel", share: float) -> None:
    if share != 1:
        for weight in soup.parameters():
            weight.mul_(share)


@torch.no_grad()
def _add(soup: "PreTrainedModel", model: "PreTrainedModel", share: float) -> None:
    weights = dict(model.named_parameters())
    for name, weight in soup.named_parameters():
        weight.add_(weights[name], alpha=share)
