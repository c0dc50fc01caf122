"""How many tokens a row has, as the trainer will see it: rendered in the chat template of a model's folder.

Importing transformers' `AutoTokenizer` imports torch (4 to 10 s); the class of a tokenizer that is one whole
tokenizer.json needs less than one second. So that class is taken where `AutoTokenizer` would take it too.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from tasks.core import models
from tasks.core.chats import ChatEncoder, Rendered
from tasks.core.errors import ModelRefused

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN = frozenset({"llama"})
"""Kinds of models for which `AutoTokenizer` takes the class that tokenizer_config.json names; for others it may know better."""


def counts(folder: Path, prompts: pl.Series, completions: pl.Series) -> tuple[list[int | None], list[str | None]]:
    """Tokens of each prompt with its completion, and what the template says against those that it refuses.

    Raises:
        ModelRefused: when the folder's tokenizer has no chat template.
    """
    encoder = ChatEncoder(load_tokenizer(folder))
    texts, refusals = zip(*(_rendered(encoder, *row) for row in zip(prompts, completions, strict=True)), strict=True)
    fitting = [t for t in texts if t is not None]
    ids = iter(encoder.ids(fitting))
    return [None if t is None else len(next(ids)) for t in texts], list(refusals)


def _rendered(
    encoder: ChatEncoder, prompt: list[dict[str, str]], completion: list[dict[str, str]]
) -> tuple[Rendered | None, str | None]:
    from jinja2 import TemplateError

    try:
        return encoder.render([*prompt, *completion]), None
    except TemplateError as error:
        return None, f"template: {error}"


@lru_cache(maxsize=1)
def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model's folder, which must have a chat template.

    Raises:
        ModelRefused: when it has none.
    """
    base, words = models.layout(models.resolve(folder))
    if _field(words / "tokenizer_config.json", "tokenizer_class") == "TokenizersBackend" and (
        _field(base / "config.json", "model_type") in PLAIN and (words / "tokenizer.json").is_file()
    ):
        from transformers.tokenization_utils_tokenizers import TokenizersBackend as Tokenizer
    else:
        from transformers import AutoTokenizer as Tokenizer
    tokenizer = Tokenizer.from_pretrained(words, local_files_only=True)
    if not tokenizer.chat_template:
        raise ModelRefused(
            f"{words}: the tokenizer has no chat template, so rows cannot be put to this model; add chat_template.jinja "
            "to the model's folder, or take an instruction-tuned model"
        )
    tokenizer.model_max_length = 10**9  # longer rows are counted, not warned of
    return tokenizer


def _field(path: Path, key: str) -> str | None:
    return json.loads(path.read_text()).get(key) if path.is_file() else None
