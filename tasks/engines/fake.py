"""An engine without a model, for tests and dry runs: the answer is a pure function of the messages and the seed.

    Fake(error_rate=0.1)                              every tenth answer is an error
    Fake(answers={"2+2?": "Answer: 4"})               scripted by what the last message contains
    Fake.scripted(lambda messages, seed: "Answer: 4") scripted in Python

It keeps no cache.
"""

import hashlib
import math
import os
import signal
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from tasks.core.errors import EngineError
from tasks.engines import Completion, Embedded, Engine, Messages, Request, Requests, Scored

if TYPE_CHECKING:
    import polars as pl

Rate = Annotated[float, Field(ge=0, le=1)]
END = "<end>"
FAILED = "the fake engine failed, as its params ask"
WIDTH = 8
"""Numbers of a text's vector."""
GARBAGE = "\ufffd{[<Answer Day: ??\x00 Verdict"


class Fake(Engine):
    """Answers without a model; faults on request."""

    traces: ClassVar[bool] = True
    entropies: ClassVar[bool] = True
    embeds: ClassVar[bool] = True
    loads: ClassVar[bool] = False

    reply: Literal["answer", "echo"] = "answer"
    """`answer`: `Answer: d`, mostly the same digit for the same messages; `echo`: the last message again."""
    answers: dict[str, str] = {}
    """Scripted answers: the first key that the last message contains decides."""
    error_rate: Rate = 0.0
    """Share of requests whose completion, score or vector is an error."""
    garbage_rate: Rate = 0.0
    """Share of requests whose text is none that a parser could read."""
    seconds: NonNegativeFloat = 0.0
    """How long each answer takes."""
    crash_after: NonNegativeInt | None = None
    """The process is killed, as by `kill -9`, before it gives the answer after this many."""
    down: bool = False
    """Opening it fails, as a server that does not run."""

    @classmethod
    def scripted(cls, answer: Callable[[Messages, int], str], **fields: object) -> Self:
        """An engine that answers `answer(messages, seed)`."""

        class Scripted(cls):  # type: ignore[misc, valid-type]
            def answer(self, messages: Messages, seed: int) -> str:
                return answer(messages, seed)

        return Scripted.model_validate(fields)

    @contextmanager
    def open(self, model: Path, cache: Path | None = None) -> Iterator["_FakePolicy"]:
        """Needs no model: a folder that does not exist will do."""
        if self.down:
            raise EngineError("the fake engine is down, as its params ask; set engine.down to false")
        yield _FakePolicy(self, hashlib.sha256(str(model).encode()).hexdigest())

    def answer(self, messages: Messages, seed: int) -> str:
        """The text for a request, faults aside."""
        last = messages[-1][1]
        for part, scripted in self.answers.items():
            if part in last:
                return scripted
        if self.reply == "echo":
            return last
        usual, unusual = int(_unit(messages) * 10), int(_unit(messages, seed, "digit") * 10)
        return f"Answer: {usual if _unit(messages, seed) < 0.6 else unusual}"


class _FakePolicy:
    def __init__(self, engine: Fake, digest: str) -> None:
        self.digest = digest
        self._engine = engine
        self._answered = 0
        self._faulty = engine.error_rate + engine.garbage_rate > 0
        self._eventful = engine.seconds > 0 or engine.crash_after is not None

    def sample(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        for index, request in enumerate(requests):
            if self._eventful:
                self._work()
            yield index, self._complete(request)

    def sample_columns(self, requests: Requests) -> "pl.DataFrame | None":
        """Echoes; whatever else it is asked for wants each answer by itself."""
        engine = self._engine
        scripted = bool(engine.answers) or type(engine).answer is not Fake.answer
        if scripted or engine.reply != "echo" or self._faulty or self._eventful or requests.sampling.trace:
            return None
        import polars as pl

        chat, times = requests.chats, len(requests.seeds) // max(1, len(requests.chats))
        words = pl.element().struct.field("content").str.count_matches(" ", literal=True) + 1
        last = chat.list.last().struct.field("content")
        per_chat = pl.DataFrame({"text": last, "prompt_tokens": chat.list.eval(words).list.sum()})
        rows = per_chat[[n for n in range(len(chat)) for _ in range(times)]] if times > 1 else per_chat
        texts = rows["text"].to_list()
        seeds = requests.seeds.to_list() if requests.sampling.temperature else [0] * len(texts)
        sure = [_sure(text, seed) for text, seed in zip(texts, seeds, strict=True)]
        rows = rows.with_columns(tokens=pl.Series([len(text.split()) + 1 for text in texts]), sure=pl.Series(sure))
        return rows.select(
            "text", "tokens", pl.col("prompt_tokens").cast(pl.Int64), finish_reason=pl.lit("stop"),
            logprob=-pl.col("tokens") * (1 - pl.col("sure")), entropy=2 * (1 - pl.col("sure")),
            self_certainty=5 * pl.col("sure"), error=pl.lit(None, pl.String), permanent=pl.lit(False),
        )  # fmt: skip

    def score(
        self, prompts: Sequence[Messages], completions: Sequence[str], closed: bool = False
    ) -> Iterator[tuple[int, Scored]]:
        """A number for each word, and for the end where `closed`: as many as `sample` counts tokens."""
        for index, (prompt, text) in enumerate(zip(prompts, completions, strict=True)):
            self._work()
            words = [*text.split(), *([END] if closed else [])]
            scored = Scored(tuple(-_unit(prompt, i, word) for i, word in enumerate(words)))
            yield index, Scored(error=FAILED) if self._fails(prompt, text) else scored

    def embed(self, texts: Sequence[str]) -> Iterator[tuple[int, Embedded]]:
        """The sum of the words' own vectors, of length 1: the more words two texts share, the closer they are."""
        for index, text in enumerate(texts):
            self._work()
            yield index, Embedded(error=FAILED) if self._fails(text) else _embedded(text.split())

    def _fails(self, *given: object) -> bool:
        return self._engine.error_rate > 0 and _unit(*given, "fault") < self._engine.error_rate

    def _work(self) -> None:
        if self._engine.seconds:
            time.sleep(self._engine.seconds)
        if self._answered == self._engine.crash_after:
            os.kill(os.getpid(), signal.SIGKILL)
        self._answered += 1

    def _complete(self, request: Request) -> Completion:
        seed = request.seed if request.sampling.temperature else 0
        prompt_tokens = 0
        for _, content in request.messages:
            prompt_tokens += content.count(" ") + 1
        text = None
        if self._faulty:
            fault = _unit(request.messages, seed, "fault")
            if fault < self._engine.error_rate:
                return Completion("", 0, prompt_tokens, "error", error=FAILED)
            text = GARBAGE if fault < self._engine.error_rate + self._engine.garbage_rate else None
        if text is None:
            text = self._engine.answer(request.messages, seed)
        words, sure = len(text.split()) + 1, _sure(text, seed)
        completion = Completion(text, words, prompt_tokens, "stop", -words * (1 - sure), 2 * (1 - sure), 5 * sure)
        if request.sampling.trace:
            completion.token_logprobs = _spread(-words * (1 - sure), words, text, seed)
            completion.token_entropies = _spread(2 * words * (1 - sure), words, text, seed)
        return completion


def _sure(text: str, seed: int) -> float:
    """A number in [0, 1) for an answer, cheaply."""
    return zlib.crc32(text.encode("utf-8", "surrogatepass"), seed % 2**32) / 2**32


def _spread(total: float, count: int, *of: object) -> tuple[float, ...]:
    """Numbers of one sign that sum to `total`; they depend on nothing but the arguments."""
    shares = [0.1 + _unit(*of, n) for n in range(count)]
    each = total / sum(shares)
    return tuple(share * each for share in shares)


def _embedded(words: Sequence[str]) -> Embedded:
    if not words:
        return Embedded(error="the text is empty", permanent=True)
    total = [sum(_unit(word, n) - 0.5 for word in words) for n in range(WIDTH)]
    return Embedded(tuple(x / math.hypot(*total) for x in total), tokens=len(words))


def _unit(*of: object) -> float:
    """A number in [0, 1) that depends on nothing but the arguments."""
    return int.from_bytes(hashlib.sha256(repr(of).encode("utf-8", "surrogatepass")).digest()[:6]) / 2**48
