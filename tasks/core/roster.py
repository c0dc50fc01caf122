"""The models that a stage may open, by name, with a meter for each.

A strategy calls `with case.open("parent") as policy:`. Names are the ancestors' (`parent`, `base`, `anchor`,
`grandparent`), `model` for the round's own, and those of the roster `models:` in params.yaml: pinned folders and served
models, each with an engine of its own.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tasks.core.errors import EngineError, FlywheelError, UnknownName

if TYPE_CHECKING:
    import polars as pl

    from tasks.engines import Completion, Embedded, Engine, Messages, Policy, Request, Requests, Scored

T = TypeVar("T")
A = TypeVar("A", "Completion", "Scored", "Embedded")
CHUNK = 512
"""Answers that are checked and metered at once: one by one they would cost more than a fast engine."""
BATCH = 128
"""Requests between two looks at the budget, for engines without batches of their own."""
MIN_REQUESTS = 8
"""Requests below which a share of errors is too large only where it is all of them."""
SERVED = Path("served")
"""Stands for the folder of a model on a server."""


@dataclass(frozen=True)
class Source:
    """Where a model comes from."""

    engine: "Engine"
    folder: Callable[[], Path]
    """Returns its checked folder, or `SERVED`."""


class Models:
    """Opens models by name. A model stays open until another one is opened or the stage ends: consecutive strategies with
    the same model load it once, and two models are in memory only if a strategy holds both.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        cache: Path | None = None,
        budget: int | None = None,
        own_cache: Path | None = None,
    ) -> None:
        """`budget` is how many tokens may be generated, by all models together; None has no limit. `own_cache` is the cache of
        engines that load a model, where it is not that of the others.
        """
        self._sources, self._cache, self._budget, self._own_cache = dict(sources), cache, budget, own_cache
        self._open: dict[str, tuple[ExitStack, Policy]] = {}
        self._users: dict[str, int] = {}
        self.meters: dict[str, Meter] = {}

    @property
    def names(self) -> frozenset[str]:
        """Names of the models that can be opened."""
        return frozenset(self._sources)

    def engine(self, name: str = "parent") -> "Engine":
        """The engine that runs a model."""
        return self._source(name).engine

    def folder(self, name: str = "parent") -> Path:
        """The checked folder of a model.

        Raises:
            FlywheelError: for a model on a server.
        """
        folder = self._source(name).folder()
        if folder == SERVED:
            raise FlywheelError(f"the model {name!r} is on a server and has no folder; name one that has")
        return folder

    @contextmanager
    def open(self, name: str = "parent") -> "Iterator[Policy]":
        """Opens a model. Errors of opening it and of its calls name the model.

        Raises:
            UnknownName: when this round has no model of that name.
            EngineError, ModelRefused: when it cannot be opened.
        """
        source = self._source(name)
        for other in [n for n in self._open if n != name and not self._users.get(n)]:
            self._open.pop(other)[0].close()
        if name not in self._open:
            with _named(name), ExitStack() as stack:
                policy = stack.enter_context(self._metered(name, source))
                self._open[name] = (stack.pop_all(), policy)
        self._users[name] = self._users.get(name, 0) + 1
        try:
            yield self._open[name][1]
        except BaseException:
            self._users[name] = 0
            self.close()
            raise
        self._users[name] -= 1

    def close(self) -> None:
        """Closes every model that is open."""
        while self._open:
            self._open.popitem()[1][0].close()

    def check(self) -> None:
        """Raises EngineError when more than `max_error_share` of an engine's requests failed, since answers are not missing at
        random. Answers are cached, so a retry only requests the missing ones. Permanent errors, which a retry repeats, do
        not count: they are rows with an error, unless every request to a model ends in one (FlywheelError).
        """
        for name, meter in self.meters.items():
            meter.check(name, self._source(name).engine.max_error_share)

    def total(self, count: str) -> float:
        """Sum of a count over all meters."""
        return sum(getattr(m, count) for m in self.meters.values())

    @property
    def is_unlimited(self) -> bool:
        """Whether there is no budget of generated tokens."""
        return self._budget is None

    @property
    def over_budget(self) -> bool:
        """Whether the budget of generated tokens is spent."""
        return self._budget is not None and self.total("completion_tokens") >= self._budget

    def slice_size(self, name: str) -> int | None:
        """Requests to send at once, a batch where there is a budget to watch; None sends all."""
        return None if self._budget is None else getattr(self.engine(name), "batch_size", BATCH)

    def spent(self) -> float:
        """Seconds of loading and in engines."""
        return self.total("load_seconds") + self.total("seconds")

    def _source(self, name: str) -> Source:
        if name not in self._sources:
            raise UnknownName("model", name, self._sources, "models that this stage can open")
        return self._sources[name]

    @contextmanager
    def _metered(self, name: str, source: Source) -> "Iterator[Policy]":
        meter = self.meters.setdefault(name, Meter())
        clock = time.perf_counter()
        cache = self._own_cache if self._own_cache and source.engine.loads else self._cache
        with source.engine.open(source.folder(), cache) as policy:
            meter.load_seconds += time.perf_counter() - clock
            yield _MeteredPolicy(name, meter, policy, self)


def one(engine: "Engine", folder: Path = SERVED, *names: str, cache: Path | None = None) -> Models:
    """One model under one or several names (default `parent`), for notebooks, tests and benchmarks."""
    return Models(dict.fromkeys(names or ("parent",), Source(engine, lambda: folder)), cache)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Prefixes errors with the model's name, unless it is the parent."""
    try:
        yield
    except FlywheelError as error:
        if name in ("parent", "model") or str(error).startswith("model "):
            raise
        error.args = (f"model {name}: {error}",)
        raise


@dataclass
class Meter:
    """Counts the requests to a model, its tokens and seconds."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    load_seconds: float = field(default=0.0)
    """Imports and loading."""
    seconds: float = field(default=0.0)
    """In the engine's calls, without the processing of answers."""
    failed: int = 0
    """Requests that failed and may succeed in another try."""
    permanent: int = 0
    """Requests that fail in every try."""
    last_error: str = ""
    unsent: int = 0
    """Requests that were not sent, because the budget was spent."""

    def count(self, answers: "Sequence[Completion | Scored | Embedded]") -> None:
        """Counts requests, and those that failed."""
        self.requests += len(answers)
        for answer in answers:
            if answer.error is not None:
                self.last_error = answer.error
                self.permanent += answer.permanent
                self.failed += not answer.permanent

    def count_columns(self, completions: "pl.DataFrame", count: int) -> None:
        """Counts completions that came as columns. Raises EngineError where they are not `count`."""
        if len(completions) != count:
            raise EngineError(f"the engine answered {len(completions)} of {count} requests; fix its `sample_columns`")
        failed = completions.filter(completions["error"].is_not_null())
        self.requests += count
        self.prompt_tokens += completions["prompt_tokens"].sum()
        self.completion_tokens += completions["tokens"].sum()
        self.permanent += (permanent := failed["permanent"].sum())
        self.failed += len(failed) - permanent
        self.last_error = failed["error"][-1] if len(failed) else self.last_error

    def check(self, name: str, max_error_share: float) -> None:
        """Raises EngineError for too large a share of errors, FlywheelError where no request can succeed."""
        possible = self.requests - self.permanent
        if not possible and self.requests >= MIN_REQUESTS and max_error_share < 1:
            raise FlywheelError(
                f"model {name}: none of {self.requests} requests can succeed; the last error: {self.last_error}. Nothing "
                "was written: fix that, or set engine.max_error_share to 1 to keep them as rows with an error"
            )
        if self.failed > max_error_share * possible and (possible >= MIN_REQUESTS or self.failed == possible):
            raise EngineError(
                f"model {name}: {self.failed} of {possible} requests failed, more than engine.max_error_share "
                f"({max_error_share:g}) allows; the last error: {self.last_error}. Nothing was written, answers are "
                "cached: fix the engine and run the stage again"
            )


@dataclass
class _MeteredPolicy:
    name: str
    meter: Meter
    policy: "Policy"
    models: Models

    @property
    def digest(self) -> str:
        return self.policy.digest

    def sample(self, requests: "Sequence[Request]") -> "Iterator[tuple[int, Completion]]":
        size = self.models.slice_size(self.name) or max(1, len(requests))
        for start in range(0, len(requests), size):
            batch = requests[start : start + size]
            if self.models.over_budget:
                self.meter.unsent += len(batch)
                unsent = self.models.engine(self.name).unsent()
                yield from ((start + index, unsent) for index in range(len(batch)))
                continue
            for chunk in self._chunks(partial(self.policy.sample, batch), len(batch)):
                completions = [completion for _, completion in chunk]
                self.meter.prompt_tokens += sum([c.prompt_tokens for c in completions])
                self.meter.completion_tokens += sum([c.tokens for c in completions])
                yield from chunk if not start else [(start + index, completion) for index, completion in chunk]

    def sample_columns(self, requests: "Requests") -> "pl.DataFrame | None":
        """By the engine's own columns; None where it has none, or where a budget wants a look between batches."""
        own = getattr(self.policy, "sample_columns", None)
        if own is None or not self.models.is_unlimited:
            return None
        clock = time.perf_counter()
        with _named(self.name):
            answers: pl.DataFrame | None = own(requests)
            self.meter.seconds += time.perf_counter() - clock
            if answers is not None:
                self.meter.count_columns(answers, len(requests.seeds))
        return answers

    def score(
        self, prompts: "Sequence[Messages]", completions: Sequence[str], closed: bool = False
    ) -> "Iterator[tuple[int, Scored]]":
        for chunk in self._chunks(partial(self.policy.score, prompts, completions, closed), len(prompts)):
            self.meter.prompt_tokens += sum([len(scored.logprobs) for _, scored in chunk])
            yield from chunk

    def embed(self, texts: Sequence[str]) -> "Iterator[tuple[int, Embedded]]":
        for chunk in self._chunks(partial(self.policy.embed, texts), len(texts)):
            self.meter.prompt_tokens += sum([embedded.tokens for _, embedded in chunk])
            yield from chunk

    def _chunks(self, call: "Callable[[], Iterator[tuple[int, A]]]", count: int) -> "Iterator[list[tuple[int, A]]]":
        """The answers of a call of the engine, some at a time: errors name the model, and seconds go to the meter."""
        clock = time.perf_counter()
        with _named(self.name):
            for chunk in each_once(call(), count):
                self.meter.seconds += time.perf_counter() - clock
                self.meter.count([answer for _, answer in chunk])
                yield chunk
                clock = time.perf_counter()
        self.meter.seconds += time.perf_counter() - clock


def each_once(answers: Iterable[tuple[int, T]], count: int) -> Iterator[list[tuple[int, T]]]:
    """The answers to requests 0 … `count` - 1 as they arrive, `CHUNK` at a time.

    Raises:
        EngineError: at a second answer to a request or at an unknown index, and at the end when answers are missing.
    """
    answered, stream = bytearray(count), iter(answers)
    while chunk := list(islice(stream, CHUNK)):
        for index, _ in chunk:
            if not 0 <= index < count or answered[index]:
                reason = "twice" if 0 <= index < count else f"of only {count} requests"
                raise EngineError(f"the engine answered request {index} {reason}; fix its `sample`, `score` or `embed`")
            answered[index] = 1
        yield chunk
    if missing := answered.count(0):
        raise EngineError(
            f"the engine left {missing} of {count} requests without an answer, the first of them {answered.index(0)}; fix "
            "its `sample`, `score` or `embed`: a failure is an answer with an error"
        )


__all__ = ["SERVED", "Meter", "Models", "Source", "each_once", "one"]
