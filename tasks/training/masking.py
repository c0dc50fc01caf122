"""Labels that leave out what a row's mask covers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tasks.core.chats import Rendered, chat_encoder
from tasks.core.errors import ModelRefused
from tasks.training.tags import tag_length

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of a token that the loss leaves out."""


def masked_labels(row: dict[str, Any], tokenizer: "PreTrainedTokenizerBase") -> dict[str, list[int]]:
    """The row's `labels`, ignored at every token that a span of its `mask` touches, also in part. Spans are characters of
    the completion's first turn, without its tag. `row` has what TRL made of it, and the tag is in its completion.

    Raises ModelRefused where the chat template rewrites the completion, so that its characters cannot be found.
    """
    if not row["mask"]:
        return {"labels": row["labels"]}
    text, start = _rendered(row, tokenizer)
    ids, offsets = chat_encoder(tokenizer).offsets(text)
    if start < 0 or list(ids) != row["input_ids"]:
        raise ModelRefused(
            f"{tokenizer.name_or_path}: the chat template rewrites the completion {row['completion'][0]['content'][:60]!r}, so "
            "the characters of its mask cannot be found; take masks out of collect, or a template that keeps the text"
        )
    start += tag_length(row["tag"])
    spans = [(start + span["start"], start + span["end"]) for span in row["mask"]]
    touched = [any(begin < stop and first < end for first, stop in spans) for begin, end in _ranges(offsets)]
    return {"labels": [IGNORED if hit else label for hit, label in zip(touched, row["labels"], strict=True)]}


def _rendered(row: dict[str, Any], tokenizer: "PreTrainedTokenizerBase") -> tuple[Rendered, int]:
    """The row in the chat template, and where the completion's text begins in it; -1 where it is not in there."""
    from trl.data_utils import common_prefix_length

    encoder = chat_encoder(tokenizer)
    rendered = encoder.render(row["prompt"] + row["completion"])
    text, prompt = rendered.plain, encoder.render(row["prompt"], add_generation_prompt=True).plain
    content = row["completion"][0]["content"]
    place = text.find(content.strip(), common_prefix_length(prompt, text))  # templates may strip
    return rendered, -1 if place < 0 else place - (len(content) - len(content.lstrip()))


def _ranges(offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Characters of each token. Some tokenizers leave the blank before a word out of it: a token begins where the one
    before it ends.
    """
    ends = [end for _, end in offsets]
    return [(min(b, last), e) for (b, e), last in zip(offsets, [0, *ends], strict=False)]
