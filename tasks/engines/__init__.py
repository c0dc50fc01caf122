"""Engines run models. One protocol with three calls, `sample`, `score` and `embed`; one file per engine, loaded by its name.

    with engine.open(model_folder) as policy:
        for index, completion in policy.sample(requests): ...

Results stream as (index, result) in any order; who reads them orders them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from pydantic import Field, PositiveInt

from tasks.core.plugin import Plugin

if TYPE_CHECKING:
    import polars as pl

T = TypeVar("T")
Messages = tuple[tuple[str, str], ...]
"""A chat: (role, content) pairs."""
BATCH = 4096
"""Completions that are made columns at a time: as objects they are several times as large."""
ABILITIES = {
    "samples": "samples",
    "scores": "scores",
    "traces": "token log-probabilities",
    "entropies": "token entropies",
    "embeds": "embeddings",
}
"""What a strategy may need of an engine, in words, by the class variable that says whether an engine has it."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a completion is drawn. Temperature 0 is greedy."""

    temperature: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.0
    max_tokens: int = 128
    stop: tuple[str, ...] = ()
    regex: str | None = None
    """A regular expression that the whole text must match; an engine that cannot hold it to one leaves it free."""
    schema: str | None = None
    """A JSON schema, as JSON, that the text must follow; an engine that cannot hold it to one leaves it free."""
    trace: bool = False
    """Asks for `token_logprobs` and `token_entropies`; what is drawn does not depend on it."""

    @property
    def parts(self) -> tuple[Any, ...]:
        """Its values for a cache key. Without a trace as if there were no such field: what was cached before it stays valid."""
        return astuple(self) if self.trace else astuple(self)[:-1]


@dataclass(frozen=True, slots=True)
class Request:
    """A request for one completion: `messages` is the chat so far; `seed` alone decides the draw, never the position."""

    messages: Messages
    """A last pair of role `assistant` is continued, not closed."""
    sampling: Sampling
    seed: int


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests as columns. Each chat is asked for equally many completions, one after the other."""

    chats: "pl.Series"
    """Lists of (role, content), as a table has them."""
    sampling: Sampling
    seeds: "pl.Series"

    def rows(self) -> list[Request]:
        """The requests one by one."""
        from tasks.core import frames

        times = range(len(self.seeds) // max(1, len(self.chats)))
        chats = [chat for chat in frames.chats(self.chats) for _ in times]
        return [Request(chat, self.sampling, seed) for chat, seed in zip(chats, self.seeds.to_list(), strict=True)]


@dataclass(slots=True)  # not frozen: that would be most of the time of making one, and there are millions
class Completion:
    """The answer to a request. Log-probabilities are natural logs under temperature 1, before any truncation."""

    text: str
    tokens: int = 0
    """Completion tokens, the end token included."""
    prompt_tokens: int = 0
    finish_reason: str = "stop"
    """`stop`, `length` or `error`."""
    logprob: float | None = None
    """Sum over the completion's tokens of log p(token)."""
    entropy: float | None = None
    """Mean over the tokens of the entropy of the whole next-token distribution, in nats."""
    self_certainty: float | None = None
    """Mean over the tokens of −1/V Σ_v log(V·p(v)) (Kang et al. 2025, arXiv:2502.18581): higher is surer."""
    error: str | None = None
    """Why there is no answer; then `text` is empty."""
    permanent: bool = False
    """The error is the request's own, such as a prompt longer than the context: another try repeats it."""
    token_logprobs: tuple[float, ...] | None = None
    """log p of each of the `tokens`, which sum to `logprob`; where a `trace` was asked for and the engine has them."""
    token_entropies: tuple[float, ...] | None = None
    """Entropy of the distribution of each of the `tokens`, in nats, whose mean is `entropy`; as of `token_logprobs`."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Log-probabilities of a completion: natural logs, one per token of the completion."""

    logprobs: tuple[float, ...] = ()
    error: str | None = None
    permanent: bool = False
    """As of a completion."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """A text as a vector: the mean over its tokens of the model's last hidden state, after the final norm."""

    vector: tuple[float, ...] = ()
    error: str | None = None
    permanent: bool = False
    """As of a completion: the text is empty, or longer than the context."""
    tokens: int = 0
    """Tokens that were read."""


class Policy(Protocol):
    """An opened model."""

    digest: str
    """sha256 of the weights (base and adapter): what the request cache is keyed by."""

    # One that answers by columns has `sample_columns`, too: a row of `completion_columns` for each of some `Requests`, in
    # their order, or None where these want an answer one by one.

    def sample(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """A completion for each request. A request that fails gives a `Completion` with `error`."""
        ...

    def score(
        self, prompts: Sequence[Messages], completions: Sequence[str], closed: bool = False
    ) -> Iterator[tuple[int, Scored]]:
        """Log-probabilities of completions after their prompts (implicit rewards, P(True), perplexity).

        With `closed`, that of the end token is appended, as `sample` counts it: the sum over a completion that ended by
        itself is then its `logprob`.
        """
        ...

    def embed(self, texts: Sequence[str]) -> Iterator[tuple[int, Embedded]]:
        """A vector for each text, which is read as it is: without a chat template, a beginning or an end token."""
        ...


class Engine(Plugin):
    """Runs models. Opening it loads one, closing frees it."""

    samples: ClassVar[bool] = True
    """Can complete chats."""
    scores: ClassVar[bool] = True
    """Can score completions that it was not the one to draw."""
    traces: ClassVar[bool] = False
    """Gives the log-probability of each token that it draws, where a request asks for a `trace`."""
    entropies: ClassVar[bool] = False
    """Gives the entropy of the distribution of each token that it draws, where a request asks for a `trace`."""
    embeds: ClassVar[bool] = False
    """Gives the hidden states of a text."""
    loads: ClassVar[bool] = True
    """Needs the weights here; false for one that a server, a record or a function stands behind."""
    statistics: ClassVar[bool] = True
    """Gives entropy and self-certainty, which want the whole vocabulary's probabilities."""
    transport: ClassVar[frozenset[str]] = frozenset()
    """Fields that say how a model is reached, or how fast, and decide no answer: an edit of these makes no stage stale."""

    max_error_share: float = Field(0.05, ge=0, le=1)
    """Largest share of a stage's requests that may come back with an error; above it the stage fails, with an exit code
    that asks for another try, and what was answered stays in the cache. Prompts that do not fit the context do not count.
    """

    token_budget: PositiveInt | None = None
    """Most tokens that the stages of a round may generate together, by whatever models; null has no limit. It is looked at
    between batches, so one batch may go beyond it; requests after that are not sent and are rows with an error. The exam
    has no budget."""

    def open(self, model: Path, cache: Path | None = None) -> AbstractContextManager[Policy]:
        """Loads `model`: a folder with safetensors or with a pointer to one, or `roster.SERVED` where a server alone has it.
        With `cache`, answers are cached in that folder, keyed by weights digest, rendered prompt, everything that
        changes the answer (the context limit included), seed, engine and version.
        """
        raise NotImplementedError

    @classmethod
    def lacks(cls, abilities: Iterable[str]) -> list[str]:
        """Which of these abilities it does not have, in words."""
        return [words for name, words in ABILITIES.items() if name in abilities and not getattr(cls, name)]

    def unsent(self) -> Completion:
        """What stands for an answer that was not asked for because the budget was spent."""
        return Completion("", 0, 0, "error", error="not sent: the round's engine.token_budget is spent", permanent=True)

    def problems(self) -> list[str]:
        """What keeps this engine from working on this machine, each with its fix; empty when it can work."""
        return []


def turns(chat: Iterable[Mapping[str, str]]) -> Messages:
    """A chat of a table or a domain, as engines take it."""
    return tuple([(message["role"], message["content"]) for message in chat])


def stored(completion: Completion) -> tuple[Any, ...]:
    """What the request cache keeps of a completion: its fields in their order, without traces where it has none."""
    fields = astuple(completion)
    return fields if completion.token_logprobs or completion.token_entropies else fields[:-2]


def restored(fields: Sequence[Any]) -> Completion:
    """The completion of which `stored` made these, whose tuples JSON made lists."""
    return Completion(*[tuple(f) if isinstance(f, list) else f for f in fields])


def ask(
    policy: Policy, chats: Sequence[Iterable[Mapping[str, str]]], sampling: Sampling, seeds: Iterable[int]
) -> list[Completion]:
    """A completion for each chat, in their order."""
    requests = [Request(turns(chat), sampling, seed) for chat, seed in zip(chats, seeds, strict=True)]
    completions = dict(policy.sample(requests)) if requests else {}
    return [completions[n] for n in range(len(requests))]


def sample_columns(policy: Policy, requests: Requests) -> "pl.DataFrame":
    """A row of `completion_columns` for each request, in their order: of the engine's own columns where it has any."""
    import polars as pl

    own = getattr(policy, "sample_columns", None)
    if own is not None and (answers := own(requests)) is not None:
        return answers
    batches = batched(policy.sample(requests.rows()), BATCH)
    answers = pl.concat([completion_columns([]), *map(completion_columns, batches)])
    return (answers if answers["n"].is_sorted() else answers.sort("n")).drop("n")  # most engines answer in order


def completion_columns(completions: Sequence[tuple[int, Completion]]) -> "pl.DataFrame":
    """Completions as columns, traces aside, each with the place `n` of its request."""
    import polars as pl

    values = [completion for _, completion in completions]
    columns: dict[str, tuple[list[Any], pl.DataType]] = {
        "n": ([n for n, _ in completions], pl.Int64()),
        "text": ([c.text for c in values], pl.String()),
        "tokens": ([c.tokens for c in values], pl.Int64()),
        "prompt_tokens": ([c.prompt_tokens for c in values], pl.Int64()),
        "finish_reason": ([c.finish_reason for c in values], pl.String()),
        "logprob": ([c.logprob for c in values], pl.Float64()),
        "entropy": ([c.entropy for c in values], pl.Float64()),
        "self_certainty": ([c.self_certainty for c in values], pl.Float64()),
        "error": ([c.error for c in values], pl.String()),
        "permanent": ([c.permanent for c in values], pl.Boolean()),
    }
    return pl.DataFrame({name: pl.Series(data, dtype=kind) for name, (data, kind) in columns.items()})


def batched(stream: Iterable[T], size: int) -> Iterator[list[T]]:
    """The stream in lists of `size`; the last is shorter."""
    rest = iter(stream)
    while batch := list(islice(rest, size)):
        yield batch
