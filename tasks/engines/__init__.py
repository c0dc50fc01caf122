"""Engines: who answers. One protocol with two calls, `sample` and `score`; one file an engine, found by its name.

    with engine.open(model_folder) as policy:
        for index, completion in policy.sample(requests): ...

Results stream as (index, result) in any order; who reads them orders them. Code here is shared by all engines: an edit
of this file does not make stages stale, an edit of an engine's own file does: those of the blocks that name it, and
`judge`, whose jurors bring engines of their own.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from tasks import models
from tasks.errors import EngineError
from tasks.stage import Params

T = TypeVar("T")
Messages = tuple[tuple[str, str], ...]
"""A chat: (role, content) pairs."""

GIB = 2**30
FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes of the numbers that are converted when a model is loaded, by their names in safetensors."""
MANY = 8
"""Requests of a stage of which at least one must be answered."""


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


@dataclass(frozen=True, slots=True)
class Request:
    """One completion wanted: `messages` is the chat so far; `seed` alone decides the draw, never the position."""

    messages: Messages
    """A last pair of role `assistant` is continued, not closed."""
    sampling: Sampling
    seed: int


@dataclass(slots=True)  # not frozen: that would be most of the time of making one, and there are millions
class Completion:
    """What came back. Log-probabilities are natural logs under temperature 1, before any truncation."""

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


@dataclass(frozen=True, slots=True)
class Scored:
    """Log-probabilities of a given completion: natural logs, one per token of the completion."""

    logprobs: tuple[float, ...] = ()
    error: str | None = None


class Policy(Protocol):
    """An opened model."""

    digest: str
    """sha256 of the weights (base and adapter): what the request cache is keyed by."""

    def sample(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """A completion for each request. A request that fails gives a `Completion` with `error`."""
        ...

    def score(self, prompts: Sequence[Messages], completions: Sequence[str]) -> Iterator[tuple[int, Scored]]:
        """Log-probabilities of given completions after given chats (implicit rewards, P(True), perplexity)."""
        ...


class Engine(Params):
    """Who answers; a strategy of the whole round. Opening it loads the model, closing frees it."""

    samples: ClassVar[bool] = True
    scores: ClassVar[bool] = True
    loads: ClassVar[bool] = True
    """Loads the model itself, and does not only tell another who has it."""
    statistics: ClassVar[bool] = True
    """Entropy and self-certainty, which want the whole vocabulary's probabilities."""

    def open(self, model: Path, cache: Path | None = None) -> AbstractContextManager[Policy]:
        """Loads `model` (a folder with safetensors, or with a pointer to one). With `cache`, answers are kept in that
        folder and found again by weights digest, rendered prompt, sampling, seed, engine and version.
        """
        raise NotImplementedError

    def instead(self, other: "Engine") -> "Engine":
        """Another engine in the place of this one, for one model of several that a stage asks."""
        return other

    def problems(self) -> list[str]:
        """What keeps this engine from working on this machine, each with its mend; empty when it can work."""
        return []


def check_room(folder: Path, dtype: str, device: str, free: int) -> None:
    """Raises EngineError when a model's weights alone, loaded as `dtype`, take more than the `free` bytes of a device. They
    may need more than that, so what passes can still fail; `auto` counts as 16 bits, to which it may narrow 32.
    """
    base, _ = models.layout(folder)
    need = sum(_weights(base / name, 4 if dtype == "float32" else 2) for name in models.shards(base))
    if need > free:
        raise EngineError(
            f"{base}: the weights take {need / GIB:.1f} GiB, and {free / GIB:.1f} GiB of {device} memory are free (see "
            "`flywheel doctor`); end what else holds some, take a smaller model, or have a server answer (engine openai)"
        )


def _weights(path: Path, width: int) -> int:
    """Bytes of a safetensors file's tensors with floats `width` bytes wide; quantized ones stay as they are."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    kinds = [(t["dtype"], t["data_offsets"]) for name, t in header.items() if name != "__metadata__"]
    return sum((end - start) * width // FLOATS.get(kind, width) for kind, (start, end) in kinds)


def turns(chat: Iterable[Mapping[str, str]]) -> Messages:
    """A chat of a table or a domain, as engines take it."""
    return tuple([(message["role"], message["content"]) for message in chat])


def ask(
    policy: Policy, chats: Sequence[Iterable[Mapping[str, str]]], sampling: Sampling, seeds: Iterable[int]
) -> list[Completion]:
    """A completion for each chat, in their order."""
    requests = [Request(turns(chat), sampling, seed) for chat, seed in zip(chats, seeds, strict=True)]
    found = dict(policy.sample(requests)) if requests else {}
    return [found[n] for n in range(len(requests))]


def each_once(answers: Iterable[tuple[int, T]], count: int) -> Iterator[tuple[int, T]]:
    """The answers to requests 0 … `count` - 1 as they come. Raises EngineError at one that is answered twice or was never
    asked, and in the end when some were left out.
    """
    wanted = set(range(count))
    for index, answer in answers:
        if index not in wanted:
            why = "twice" if 0 <= index < count else f"though only {count} were asked"
            raise EngineError(f"the engine answered request {index} {why}; mend its `sample` or `score`")
        wanted.remove(index)
        yield index, answer
    if wanted:
        raise EngineError(
            f"the engine left {len(wanted)} of {count} requests without an answer, the first of them {min(wanted)}; mend "
            "its `sample` or `score`: what fails is an answer with an error"
        )


def bulks(stream: Iterable[T], size: int) -> Iterator[list[T]]:
    """The stream in lists of `size`; the last is shorter."""
    rest = iter(stream)
    while some := list(islice(rest, size)):
        yield some


@dataclass
class Metered:
    """An engine that counts what is asked of it, and sees to it that each request has one answer; whatever else is asked of
    it, the engine itself answers.
    """

    engine: Engine
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    load_seconds: float = field(default=0.0)
    """Imports and loading of models."""
    seconds: float = field(default=0.0)
    """In the engine's two calls; not what is done with the answers."""
    failed: int = 0
    """Requests that came back with an error."""
    last_error: str = ""
    others: list["Metered"] = field(default_factory=list)
    """What was asked of others in this one's place."""

    def instead(self, other: Engine) -> "Metered":
        """Another engine, whose requests count too."""
        self.others.append(Metered(other))
        return self.others[-1]

    def total(self, name: str) -> float:
        """A count of this engine and of the others together."""
        return sum(getattr(m, name) for m in (self, *self.others))

    def spent(self) -> float:
        """Seconds of loading and answering, of this engine and of the others."""
        return self.total("load_seconds") + self.total("seconds")

    def count(self, error: str | None) -> None:
        """Counts a request, and whether it failed."""
        self.requests += 1
        if error is not None:
            self.failed, self.last_error = self.failed + 1, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    @contextmanager
    def open(self, model: Path, cache: Path | None = None) -> Iterator[Policy]:
        """Opens the engine, and counts. Raises EngineError when nothing came of many requests: rows of errors alone are no
        result.
        """
        clock = time.perf_counter()
        with self.engine.open(model, cache) as policy:
            self.load_seconds += time.perf_counter() - clock
            yield _MeteredPolicy(self, policy)
        if self.failed == self.requests >= MANY:
            raise EngineError(
                f"engine {self.engine.strategy_name()}: none of {self.requests} requests was answered; the last one "
                f"said: {self.last_error}; mend the engine or its params, and run the stage again"
            )


@dataclass
class _MeteredPolicy:
    meter: Metered
    policy: Policy

    @property
    def digest(self) -> str:
        return self.policy.digest

    def sample(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        meter = self.meter
        for index, completion in self._timed(self.policy.sample(requests), len(requests)):
            meter.count(completion.error)
            meter.prompt_tokens += completion.prompt_tokens
            meter.completion_tokens += completion.tokens
            yield index, completion

    def score(self, prompts: Sequence[Messages], completions: Sequence[str]) -> Iterator[tuple[int, Scored]]:
        for index, scored in self._timed(self.policy.score(prompts, completions), len(prompts)):
            self.meter.count(scored.error)
            self.meter.prompt_tokens += len(scored.logprobs)
            yield index, scored

    def _timed(self, answers: Iterator[tuple[int, T]], count: int) -> Iterator[tuple[int, T]]:
        clock = time.perf_counter()
        for answer in each_once(answers, count):
            self.meter.seconds += time.perf_counter() - clock
            yield answer
            clock = time.perf_counter()
        self.meter.seconds += time.perf_counter() - clock
