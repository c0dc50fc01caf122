"""Labels that leave out what a row's mask covers."""

from typing import TYPE_CHECKING, Any

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
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    if start < 0 or tokens["input_ids"] != row["input_ids"]:
        raise ModelRefused(
            f"{tokenizer.name_or_path}: the chat template rewrites the completion {row['completion'][0]['content'][:60]!r}, so "
            "the characters of its mask cannot be found; take masks out of collect, or a template that keeps the text"
        )
    start += tag_length(row["tag"])
    spans = [(start + span["start"], start + span["end"]) for span in row["mask"]]
    touched = [any(begin < stop and first < end for first, stop in spans) for begin, end in _ranges(tokens)]
    return {"labels": [IGNORED if hit else label for hit, label in zip(touched, row["labels"], strict=True)]}


def _rendered(row: dict[str, Any], tokenizer: "PreTrainedTokenizerBase") -> tuple[str, int]:
    """The row in the chat template, and where the completion's text begins in it; -1 where it is not in there."""
    from trl.data_utils import common_prefix_length

    text = str(tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False))
    prompt = str(tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True))
    content = row["completion"][0]["content"]
    place = text.find(content.strip(), common_prefix_length(prompt, text))  # templates may strip
    return text, -1 if place < 0 else place - (len(content) - len(content.lstrip()))


def _ranges(tokens: Any) -> list[tuple[int, int]]:
    """Characters of each token. Some tokenizers leave the blank before a word out of it: a token begins where the one
    before it ends.
    """
    ends = [end for _, end in tokens["offset_mapping"]]
    return [(min(b, last), e) for (b, e), last in zip(tokens["offset_mapping"], [0, *ends], strict=False)]
