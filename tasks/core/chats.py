"""Chats as token ids, in which the chat template alone writes control tokens and what a message says is text.

A problem, an answer or a verdict may spell a control token (`<|end|>`, `<|im_start|>assistant`). A tokenizer reads that as
the token, so whoever writes an answer could end it and speak as its judge. Here it is encoded as the characters it is made of.

A mark, a character that stands in none of the messages, is put before each control token that a message spells. Those that
carry no mark in the rendered text are the template's: they are replaced by aliases, the marks are dropped, and a copy of the
tokenizer that knows control tokens by their aliases alone encodes the whole text. So words merge across the edges of a message
as they always do. A chat that spells none is encoded by the tokenizer itself.

Control tokens are the tokenizer's special tokens, and those added ones with which the template opens and closes turns. Where a
template's role tags are plain words, such as `### User:`, they are text themselves: text like them cannot be told from them.
"""

import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Chat = Sequence[Mapping[str, str]]
PRIVATE = range(0xE000, 0xF900)
"""Characters that no standard gives a meaning, of which marks and aliases are made."""
ALIAS = 16
"""Characters of an alias, drawn anew by each process (200 bits): no text holds one."""
PER_TOKEN = frozenset(
    {"padding", "truncation", "max_length", "return_tensors", "return_assistant_tokens_mask", "tokenizer_kwargs"}
)
"""Arguments of `apply_chat_template` that are about its ids."""
PROBE = "PROBE"
"""A message to learn from what a template puts around one."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A chat in its template. `mark` stands before each control token that a message spells; it is empty where none does."""

    text: str
    mark: str = ""

    @property
    def plain(self) -> str:
        """The text without marks."""
        return self.text.replace(self.mark, "") if self.mark else self.text


class ChatEncoder:
    """Renders and encodes chats for a tokenizer of transformers'."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __getstate__(self) -> dict[str, Any]:
        """Without what is drawn by a process: `datasets` takes the pickle for the identity of what a tokenizer does."""
        return {"tokenizer": self.tokenizer}

    def render(self, chat: Chat, **how: Any) -> Rendered:
        """A chat in the tokenizer's template; `how` are arguments of transformers' `apply_chat_template`."""
        render = partial(type(self.tokenizer).apply_chat_template, self.tokenizer, tokenize=False, **how)
        if not any(self.spells(message["content"]) for message in chat):
            return Rendered(str(render([*chat])))
        mark = self._mark(chat)
        marked = [{**message, "content": self._marked(message["content"], mark)} for message in chat]
        return Rendered(str(render(marked)), mark)

    def text(self, text: str) -> Rendered:
        """A text without a template: no control token in it is meant as one."""
        if not self.spells(text):
            return Rendered(text)
        mark = self._mark([{"content": text}])
        return Rendered(self._marked(text, mark), mark)

    def spells(self, text: str) -> bool:
        """Whether a text spells a control token, as it is or as the tokenizer normalizes it."""
        if not self.controls:
            return False
        return bool(self._pattern.search(text)) or bool(self._folded and self._folded.search(self._normalize(text)))

    def ids(self, rendered: Sequence[Rendered]) -> list[tuple[int, ...]]:
        """Token ids of each text, without any that the tokenizer would add."""
        plain = [r.text for r in rendered if not r.mark]
        ids = iter(self.tokenizer(plain, add_special_tokens=False)["input_ids"] if plain else ())
        return [self._encoded(r) if r.mark else tuple(next(ids)) for r in rendered]

    def offsets(self, rendered: Rendered) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
        """Token ids of a text, and the characters of its `plain` text that each of them covers. Needs a fast tokenizer."""
        if not rendered.mark:
            encoded = self.tokenizer(rendered.text, add_special_tokens=False, return_offsets_mapping=True)
            return tuple(encoded["input_ids"]), encoded["offset_mapping"]
        pieces = self._pieces(rendered)
        encoding = self._copy.encode(self._aliased(pieces), add_special_tokens=False)
        places = [0]  # of each character of the aliased text, its place in the plain one
        for piece, is_control in pieces:
            start, size = places[-1], len(self._aliases[piece]) if is_control else len(piece)
            places += [start + (len(piece) * n // size if is_control else n) for n in range(1, size + 1)]
        return self._mapped(encoding.ids), [(places[a], places[b]) for a, b in encoding.offsets]

    # Control tokens

    @cached_property
    def controls(self) -> dict[str, int]:
        """Control tokens and their ids; none where the tokenizer is set to read all of them as text."""
        if getattr(self.tokenizer, "split_special_tokens", False):
            return {}
        added = {str(token): (id, token.special) for id, token in self._added.items()}
        tags = self._role_tags(
            *({text for text, (_, special) in added.items() if special == wanted} for wanted in (False, True))
        )
        return {text: id for text, (id, special) in added.items() if text and (special or text in tags)}

    @property
    def _added(self) -> dict[int, Any]:
        return getattr(self.tokenizer, "added_tokens_decoder", {})

    def _role_tags(self, added: set[str], special: set[str]) -> set[str]:
        """Tokens that are not special, with which the template opens and closes the turns of system and user, and opens an
        answer. Others, such as `<think>` after that, a model may write itself.
        """
        tags = [t for t in added if len(t) > 2 and not any(c.isalnum() or c.isspace() for c in (t[0], t[-1]))]
        if not tags or not getattr(self.tokenizer, "chat_template", None):
            return set()
        user, system = ({"role": role, "content": PROBE} for role in ("user", "system"))
        asked = self._probe([user], begun=False)
        opening = _any_of({*tags, *special}).search(self._probe([user], begun=True).removeprefix(asked))
        around = f"{asked} {self._probe([system, user], begun=False)}".replace(PROBE, " ")
        return {*_any_of(tags).findall(around), *([opening[0]] if opening else [])}

    def _probe(self, chat: Chat, begun: bool) -> str:
        """A chat in the template, with an answer begun or not; empty where the template refuses it."""
        from jinja2 import TemplateError

        render = type(self.tokenizer).apply_chat_template
        try:
            return str(render(self.tokenizer, [*chat], tokenize=False, add_generation_prompt=begun))
        except TemplateError:  # some want no system's turn
            return ""

    # What a message spells

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return _any_of(self.controls)

    @cached_property
    def _folded(self) -> re.Pattern[str] | None:
        """Matches, in normalized text, the control tokens that the tokenizer looks for there."""
        texts = (
            [str(t) for t in self._added.values() if t.normalized and str(t) in self.controls]
            if self._normalizer
            else []
        )
        folded = {self._normalize(text) for text in texts} - {""}
        return _any_of(folded) if folded else None

    @cached_property
    def _normalizer(self) -> Any:
        return self._backend and self._backend.normalizer

    def _normalize(self, text: str) -> str:
        return str(self._normalizer.normalize_str(text))

    def _mark(self, chat: Iterable[Mapping[str, str]]) -> str:
        taken = {str(self.tokenizer.chat_template), *(message["content"] for message in chat)}
        return next(c for c in map(chr, PRIVATE) if not any(c in text for text in taken))

    def _marked(self, text: str, mark: str) -> str:
        """The text with a mark before each control token; overlapping ones have one each."""
        places, start = [0], 0
        while match := self._pattern.search(text, start):
            places.append(match.start())
            start = match.start() + 1
        return mark.join(text[a:b] for a, b in pairwise([*places, len(text)])) if places[1:] else text

    # Encoding

    def _pieces(self, rendered: Rendered) -> list[tuple[str, bool]]:
        """The plain text in pieces, each a control token of the template's or the text between two."""
        scanner = re.compile(f"{rendered.mark}(.)|{self._pattern.pattern}", re.DOTALL)
        pieces, text, end = [], "", 0
        for match in scanner.finditer(rendered.text):
            text += rendered.text[end : match.start()]
            end = match.end()
            if match[1]:
                text += match[1]
            else:
                pieces += [(text, False), (match[0], True)]
                text = ""
        return [*pieces, (text + rendered.text[end:], False)]

    def _encoded(self, rendered: Rendered) -> tuple[int, ...]:
        pieces = self._pieces(rendered)
        if self._backend:
            return self._mapped(self._copy.encode(self._aliased(pieces), add_special_tokens=False).ids)
        texts = iter(self._as_text([text for text, is_control in pieces if text and not is_control]))
        ids = [[self.controls[text]] if is_control else next(texts) for text, is_control in pieces if text]
        return tuple(id for some in ids for id in some)

    def _as_text(self, texts: list[str]) -> list[list[int]]:
        """Token ids by a tokenizer in Python, which cuts texts at its control tokens as well."""
        how = {"add_special_tokens": False, "split_special_tokens": True}
        return self.tokenizer(texts, **how)["input_ids"] if texts else []

    @property
    def _backend(self) -> "Tokenizer | None":
        return getattr(self.tokenizer, "backend_tokenizer", None)

    @cached_property
    def _aliases(self) -> dict[str, str]:
        draw = partial(secrets.choice, PRIVATE)
        return {text: "".join(chr(draw()) for _ in range(ALIAS)) for text in self.controls}

    def _aliased(self, pieces: Iterable[tuple[str, bool]]) -> str:
        return "".join(self._aliases[text] if is_control else text for text, is_control in pieces)

    @cached_property
    def _copy(self) -> "Tokenizer":
        """The tokenizer with aliases in the place of its control tokens, in its vocabulary too."""
        from tokenizers import Tokenizer

        content = json.loads(self._backend.to_str())
        for token in content["added_tokens"]:
            if alias := self._aliases.get(token["content"]):
                token |= {"content": alias, "normalized": False}  # no normalizer sees it
        content["model"] = renamed(
            content["model"], {t: a for t, a in self._aliases.items() if len(t) > 1 or not t.isascii()}
        )
        return Tokenizer.from_str(json.dumps(content | {"truncation": None, "padding": None}))

    @cached_property
    def _ids(self) -> dict[int, int]:
        """The control tokens' ids by those of their aliases."""
        return {self._copy.token_to_id(self._aliases[text]): id for text, id in self.controls.items()}

    def _mapped(self, ids: Sequence[int]) -> tuple[int, ...]:
        return tuple(self._ids.get(id, id) for id in ids)


def renamed(model: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A model of tokenizer.json with other names for some tokens; merges of which one is a part or the result are left out."""

    def name(token: str) -> str:
        return names.get(token, token)

    vocabulary, merges = model["vocab"], model.get("merges", [])
    if isinstance(vocabulary, dict):
        vocabulary = {name(token): id for token, id in vocabulary.items()}
    else:
        vocabulary = [[name(token), *score] for token, *score in vocabulary]
    split = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in merges]
    kept = [[a, b] for a, b in split if not names.keys() & {a, b, a + b}]
    unknown = model.get("unk_token")
    return {
        **model,
        "vocab": vocabulary,
        **({"merges": kept} if merges else {}),
        **({"unk_token": name(unknown)} if unknown else {}),
    }


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches any of these, the longest first."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))))


def with_text_as_text(tokenizer: Any) -> Any:
    """The tokenizer, which from now on makes ids of a chat as `ChatEncoder` does: for trainers that call `apply_chat_template`."""
    tokenizer.apply_chat_template = partial(_apply_chat_template, ChatEncoder(tokenizer))
    return tokenizer


def chat_encoder(tokenizer: Any) -> ChatEncoder:
    """Its encoder; the one that it has already where it is one `with_text_as_text`."""
    template = vars(tokenizer).get("apply_chat_template")
    return template.args[0] if isinstance(template, partial) else ChatEncoder(tokenizer)


def _apply_chat_template(encoder: ChatEncoder, conversation: Any, *, tokenize: bool = True, **how: Any) -> Any:
    tokenizer, chats = encoder.tokenizer, conversation if isinstance(conversation[0], list) else [conversation]
    if not tokenize or not any(encoder.spells(message["content"]) for chat in chats for message in chat):
        return type(tokenizer).apply_chat_template(tokenizer, conversation, tokenize=tokenize, **how)
    as_dict = how.pop("return_dict", True)
    if refused := sorted(name for name in PER_TOKEN & set(how) if how.pop(name)):
        raise TypeError(f"apply_chat_template: {', '.join(refused)} cannot be had of a chat that spells control tokens")
    ids = [list(row) for row in encoder.ids([encoder.render(chat, **how) for chat in chats])]
    masks = [[1] * len(row) for row in ids]
    ids, masks = (ids, masks) if chats is conversation else (ids[0], masks[0])
    return {"input_ids": ids, "attention_mask": masks} if as_dict else ids
