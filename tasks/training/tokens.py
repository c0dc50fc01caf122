"""Rows and pairs as token ids, many at once, as TRL makes them one by one: it takes rows that have them as they are."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from tasks.training.masking import IGNORED, masked_labels
from tasks.training.tags import with_tags

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IDS = pl.List(pl.Int32)
Chat = list[dict[str, str]]
Ids = list[int]


def row_tokens(rows: pl.DataFrame, tokenizer: "PreTrainedTokenizerBase") -> pl.DataFrame:
    """Rows of `training` with `input_ids`, tag included, and `labels`: `IGNORED` before the completion, and where the row's
    mask says so. Raises ModelRefused as `masked_labels`.
    """
    rows = with_tags(rows)
    made = _split(tokenizer, rows["prompt"].to_list(), rows["completion"].to_list())
    ids = [prompt + completion for prompt, completion in made]
    labels = [[IGNORED] * len(prompt) + completion for prompt, completion in made]
    for n in _masked(rows["mask"]):
        row = rows.row(n, named=True) | {"input_ids": ids[n], "labels": labels[n]}
        labels[n] = masked_labels(row, tokenizer)["labels"]
    return rows.with_columns(_ids("input_ids", ids), _ids("labels", labels))


def _masked(masks: pl.Series) -> list[int]:
    """Rows that have a mask."""
    return [] if masks.dtype == pl.Null else (masks.list.len().fill_null(0) > 0).arg_true().to_list()


def label_tokens(rows: pl.DataFrame, tokenizer: "PreTrainedTokenizerBase") -> pl.DataFrame:
    """Rows of `training` with `prompt_ids` and `completion_ids`, tag included."""
    rows = with_tags(rows)
    prompts, completions = zip(*_split(tokenizer, rows["prompt"].to_list(), rows["completion"].to_list()), strict=True)
    return rows.with_columns(_ids("prompt_ids", prompts), _ids("completion_ids", completions))


def pair_tokens(pairs: pl.DataFrame, tokenizer: "PreTrainedTokenizerBase") -> pl.DataFrame:
    """Rows of `preferences` with `prompt_ids`, `chosen_ids` and `rejected_ids`."""
    prompts = pairs["prompt"].to_list()
    asked = _ids_of(tokenizer, prompts, add_generation_prompt=True)
    chosen, rejected = (_ids_of(tokenizer, _joined(prompts, pairs[side].to_list())) for side in ("chosen", "rejected"))
    sizes = [min(_common(p, c), _common(p, r)) for p, c, r in zip(asked, chosen, rejected, strict=True)]
    return pairs.with_columns(
        _ids("prompt_ids", [ids[:n] for ids, n in zip(asked, sizes, strict=True)]),
        _ids("chosen_ids", [ids[n:] for ids, n in zip(chosen, sizes, strict=True)]),
        _ids("rejected_ids", [ids[n:] for ids, n in zip(rejected, sizes, strict=True)]),
    )


def _split(
    tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[Chat], completions: Sequence[Chat]
) -> list[tuple[Ids, Ids]]:
    """Ids of each chat before and from the place where it leaves its prompt: some templates render a prompt that is
    followed by an answer otherwise.
    """
    asked = _ids_of(tokenizer, prompts, add_generation_prompt=True)
    whole = _ids_of(tokenizer, _joined(prompts, completions))
    sizes = [_common(prompt, ids) for prompt, ids in zip(asked, whole, strict=True)]
    return [(ids[:n], ids[n:]) for ids, n in zip(whole, sizes, strict=True)]


def _joined(prompts: Iterable[Chat], completions: Iterable[Chat]) -> list[Chat]:
    return [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]


def _ids_of(tokenizer: "PreTrainedTokenizerBase", chats: Sequence[Chat], **how: Any) -> list[Ids]:
    return tokenizer.apply_chat_template(list(chats), tokenize=True, return_dict=True, **how)["input_ids"]


def _common(ids: Ids, others: Ids) -> int:
    """Tokens that both begin with."""
    if others[: len(ids)] == ids:
        return len(ids)
    return next(n for n, (one, other) in enumerate(zip(ids, [*others, None], strict=False)) if one != other)


def _ids(name: str, rows: Iterable[Ids]) -> pl.Series:
    return pl.Series(name, rows, dtype=IDS)
