"""Conversations as a model in this process sees them: rendered in its chat template, as token ids, with a cache key.

Code shared by engines: an edit of this file does not make stages stale.
"""

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from tasks.cache import key
from tasks.engines import Completion, Messages, Request
from tasks.errors import EngineError


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request as the model sees it."""

    key: bytes
    text: str
    ids: tuple[int, ...]
    request: Request
    limit: int
    """Most tokens to generate: what was asked for, or what the context has room for."""

    @property
    def order(self) -> tuple[int, str, bytes]:
        """A request list's own order."""
        return len(self.ids), self.text, self.key


class Chats:
    """A model's tokenizer and chat template, and its context in tokens."""

    def __init__(self, tokenizer: Any, context: int) -> None:
        self.tokenizer, self.context = tokenizer, context

    def prepare(
        self, requests: Sequence[Request], named: tuple[Any, ...]
    ) -> tuple[dict[bytes, list[int]], dict[bytes, Prompt]]:
        """Where each different request stands in the list, and what the model is given for it; by cache key, to which
        `named` belongs: engine, versions, weights.
        """
        texts = self.render([r.messages for r in requests])
        ids = dict(zip(texts, self.ids(list(texts.values())), strict=True))
        places: dict[bytes, list[int]] = {}
        prompts: dict[bytes, Prompt] = {}
        for index, request in enumerate(requests):
            text = texts[request.messages]
            seed = request.seed if request.sampling.temperature else 0  # a greedy answer has no seed
            k = key("sample", *named, text, astuple(request.sampling), seed)
            places.setdefault(k, []).append(index)
            limit = min(request.sampling.max_tokens, self.context - len(ids[request.messages]))
            prompts[k] = Prompt(k, text, ids[request.messages], request, limit)
        return places, prompts

    def sorted_out(self, prompts: Iterable[Prompt]) -> tuple[list[Prompt], list[tuple[Prompt, Completion]]]:
        """Prompts that leave room for an answer, and the others, each with its error."""
        fitting: list[Prompt] = []
        misfits: list[tuple[Prompt, Completion]] = []
        for prompt in prompts:
            if prompt.limit > 0 and prompt.ids:
                fitting.append(prompt)
            else:
                misfits.append((prompt, self._misfit(len(prompt.ids))))
        return fitting, misfits

    def _misfit(self, size: int) -> Completion:
        why = f"the prompt has {size} tokens, the model's context {self.context}" if size else "the prompt is empty"
        return Completion("", 0, size, "error", error=why)

    def render(self, conversations: Sequence[Messages]) -> dict[Messages, str]:
        """The text of each different conversation, in the model's own chat template."""
        if not self.tokenizer.chat_template:
            raise EngineError(
                f"{self.tokenizer.name_or_path}: the tokenizer has no chat template, so a conversation cannot be put "
                "to this model; add chat_template.jinja to the model's folder, or take an instruction-tuned model"
            )
        return {messages: self._rendered(messages) for messages in dict.fromkeys(conversations)}

    def _rendered(self, messages: Messages) -> str:
        chat = [{"role": role, "content": content} for role, content in messages]
        going_on = chat[-1]["role"] == "assistant"
        if going_on and not chat[-1]["content"]:
            chat, going_on = chat[:-1], False  # an empty answer continued is an answer begun
        text = self.tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=not going_on, continue_final_message=going_on
        )
        return str(text)

    def ids(self, texts: list[str]) -> list[tuple[int, ...]]:
        """Token ids of each text, without any that the tokenizer would add."""
        if not texts:
            return []
        return [tuple(ids) for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]
