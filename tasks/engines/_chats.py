"""Conversations as a model in this process sees them: rendered in its chat template, as token ids, with a cache key."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from tasks.core.cache import key
from tasks.core.chats import ChatEncoder, Rendered
from tasks.core.errors import EngineError
from tasks.engines import Completion, Embedded, Messages, Request, Scored

PROBE = "PROBE"
"""Placeholder answer, to read from a chat template which token closes an answer."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request as the model sees it."""

    key: bytes
    text: str
    ids: tuple[int, ...]
    request: Request
    limit: int
    """Most tokens to generate: the request's limit, or the room left in the context."""

    @property
    def order(self) -> tuple[int, str, bytes]:
        """A request list's own order."""
        return len(self.ids), self.text, self.key


@dataclass(frozen=True, slots=True)
class Passage:
    """A completion to be scored after its prompt, as text."""

    index: int
    key: bytes
    prompt: Rendered
    completion: Rendered


class Row(NamedTuple):
    """A passage as token ids; the completion's end with the end token where that is scored too."""

    index: int
    prompt: tuple[int, ...]
    completion: tuple[int, ...]

    @property
    def size(self) -> int:
        return len(self.prompt) + len(self.completion)


class Text(NamedTuple):
    """A text to be embedded, as token ids."""

    key: bytes
    ids: tuple[int, ...]

    @property
    def size(self) -> int:
        return len(self.ids)


class Chats:
    """A model's tokenizer and chat template, its context in tokens, and the tokens that end a completion."""

    def __init__(self, tokenizer: Any, context: int, ends: frozenset[int] = frozenset()) -> None:
        self.tokenizer, self.context, self.ends = tokenizer, context, ends
        self.encoder = ChatEncoder(tokenizer)

    def prepare(
        self, requests: Sequence[Request], source: tuple[Any, ...]
    ) -> tuple[dict[bytes, list[int]], dict[bytes, Prompt]]:
        """Where each different request stands in the list, and the model's input for it; by cache key.

        The key holds `source` (engine, versions, weights), the rendered prompt, the sampling, the seed, and, where the
        context has no room for `max_tokens`, how many it has room for: a larger context would not have cut the answer.
        Where a message spells control tokens it holds their mark, too.
        """
        texts = self.render([r.messages for r in requests])
        ids = dict(zip(texts, self.encoder.ids(list(texts.values())), strict=True))
        places: dict[bytes, list[int]] = {}
        prompts: dict[bytes, Prompt] = {}
        for index, request in enumerate(requests):
            text, mark = texts[request.messages].text, texts[request.messages].mark
            seed = request.seed if request.sampling.temperature else 0  # a greedy answer has no seed
            limit = min(request.sampling.max_tokens, self.context - len(ids[request.messages]))
            room = [] if limit == request.sampling.max_tokens else [limit]
            k = key("sample", *source, text, request.sampling.parts, seed, *room, *mark)
            places.setdefault(k, []).append(index)
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
        return Completion("", 0, size, "error", error=why, permanent=True)

    @property
    def unscorable(self) -> Scored:
        """The score of a prompt and completion that do not fit."""
        why = f"prompt and completion do not fit the model's context of {self.context} tokens"
        return Scored(error=why, permanent=True)

    def passages(
        self, prompts: Sequence[Messages], completions: Sequence[str], closed: bool, source: tuple[Any, ...]
    ) -> list[Passage]:
        """Completions to be scored, in their order, with cache keys; an error of the context is never cached."""
        texts = self.render(prompts)
        pairs = [(texts[p], self.encoder.text(c)) for p, c in zip(prompts, completions, strict=True)]
        return [
            Passage(i, key("score", *source, p.text, c.text, closed, *_marks(p, c)), p, c)
            for i, (p, c) in enumerate(pairs)
        ]

    def rows(self, passages: Sequence[Passage], closed: bool) -> list[Row]:
        """Passages as token ids, longest first; the end token belongs to a completion that is `closed`.

        Raises:
            EngineError: when the model has no end token and one is to be scored.
        """
        prompts = self.encoder.ids([p.prompt for p in passages])
        completions = self.encoder.ids([p.completion for p in passages])
        end = (self.end,) if closed and passages else ()
        rows = [Row(p.index, b, a + end) for p, b, a in zip(passages, prompts, completions, strict=True)]
        return sorted(rows, key=lambda r: (r.size, r.prompt, r.completion, r.index), reverse=True)

    def texts(self, texts: Sequence[str], source: tuple[Any, ...]) -> dict[bytes, list[int]]:
        """Where each different text stands in the list, by cache key; an error of the context is never cached."""
        places: dict[bytes, list[int]] = {}
        for index, text in enumerate(texts):
            mark = self.encoder.text(text).mark
            places.setdefault(key("embed", *source, text, *mark), []).append(index)
        return places

    def sized(self, texts: Mapping[bytes, str]) -> tuple[list[Text], list[tuple[bytes, Embedded]]]:
        """Texts that can be embedded, longest first, and the others, each with its error; by cache key."""
        ids = self.encoder.ids([self.encoder.text(text) for text in texts.values()])
        rows = [Text(*row) for row in zip(texts, ids, strict=True)]
        fitting = [row for row in rows if 0 < row.size <= self.context]
        misfits = [(row.key, self._unreadable(row.size)) for row in rows if not 0 < row.size <= self.context]
        return sorted(fitting, key=lambda row: (row.size, row.ids, row.key), reverse=True), misfits

    def _unreadable(self, size: int) -> Embedded:
        why = f"the text has {size} tokens, the model's context {self.context}" if size else "the text is empty"
        return Embedded(error=why, permanent=True)

    @cached_property
    def end(self) -> int:
        """The end token: the one with which the chat template closes an answer, where the model ends completions with it;
        else the tokenizer's own.
        """
        if not self.ends:
            raise EngineError(
                f"{self.tokenizer.name_or_path}: no end token is known, so none can be scored; write `eos_token_id` into "
                "the model's generation_config.json"
            )
        chat = [{"role": "user", "content": PROBE}, {"role": "assistant", "content": PROBE}]
        tail = str(self.tokenizer.apply_chat_template(chat, tokenize=False)).rpartition(PROBE)[2]
        usual = [*self.encoder.ids([Rendered(tail)])[0], self.tokenizer.eos_token_id]
        return next((t for t in usual if t in self.ends), min(self.ends))

    def render(self, conversations: Sequence[Messages]) -> dict[Messages, Rendered]:
        """The text of each different conversation, in the model's own chat template."""
        if not self.tokenizer.chat_template:
            raise EngineError(
                f"{self.tokenizer.name_or_path}: the tokenizer has no chat template, so a conversation cannot be put "
                "to this model; add chat_template.jinja to the model's folder, or take an instruction-tuned model"
            )
        return {messages: self._rendered(messages) for messages in dict.fromkeys(conversations)}

    def _rendered(self, messages: Messages) -> Rendered:
        chat = [{"role": role, "content": content} for role, content in messages]
        going_on = chat[-1]["role"] == "assistant"
        if going_on and not chat[-1]["content"]:
            chat, going_on = chat[:-1], False  # an empty answer continued is an answer begun
        return self.encoder.render(chat, add_generation_prompt=not going_on, continue_final_message=going_on)


def _marks(*parts: Rendered) -> list[str]:
    """What a key holds beside texts of which some spell control tokens: earlier versions read these as the tokens."""
    marks = [part.mark for part in parts]
    return marks if any(marks) else []


def end_tokens(configured: int | list[int] | None, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a completion: those of the generation config and the tokenizer's own."""
    several = configured if isinstance(configured, list) else [configured]
    return frozenset(int(t) for t in [*several, tokenizer.eos_token_id] if t is not None)
