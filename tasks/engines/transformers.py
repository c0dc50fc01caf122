"""Any causal language model that transformers can load, in this process.

Generation is our own loop over the model's forward pass, not `model.generate` (`_decoding.py`); what it draws is the
request's own (`_draws.py`).

**The plan.** Prompts that do not fit the context fail at once and are part of no batch, for the cache does not keep
errors. The other requests that it does not know are sorted by (prompt length, prompt, key) and cut into batches of
`batch_size`; what happens in a batch depends on nothing but the batch. A batch is also what the cache commits at once.
So after a kill whole batches are missing, the rest is cut into the very same batches, and the bytes are the same as
those of an undisturbed run. When other requests are missing (a partial hit after an edit), batches are composed
differently: tokens are equal but for near-ties, and log-probabilities equal within 1e-4 in float32.

Torch and transformers are imported when a model is opened, so that params can be validated without them.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, nullcontext
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import PositiveInt

from tasks.core import models
from tasks.core.cache import RequestCache
from tasks.core.devices import device_lock
from tasks.core.errors import EngineError
from tasks.engines import Completion, Embedded, Engine, Messages, Request, Scored, restored, stored
from tasks.engines._chats import Chats, Prompt, Row, Text, end_tokens
from tasks.engines._decoding import Drawn, decode
from tasks.engines._loading import device_of, load, threads_restored
from tasks.engines._scoring import logprobs, means, pack

T, R = TypeVar("T"), TypeVar("R")

VERSION = 2
"""Part of every cache key; raise it when an edit changes answers."""
SCORE_TOKENS = 64
"""Tokens, padding included, scored at once for each completion of `batch_size`."""


class Transformers(Engine):
    """Any causal language model that transformers can load, in this process (Wolf et al. 2020, arXiv:1910.03771)."""

    traces: ClassVar[bool] = True
    entropies: ClassVar[bool] = True
    embeds: ClassVar[bool] = True

    batch_size: PositiveInt = 128
    """Completions generated at once. Also the unit of resume: a kill costs at most this many for each
    batch in flight. Given text is scored 64 times as many tokens at once."""
    threads: PositiveInt | None = None
    """CPU threads; null takes every core. Below 20M parameters each works at a batch of its own, since one operation is
    too little for two; above, all of them work at each operation."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights; `auto` is float32 on a CPU and the model's own on a GPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` is the GPU where there is one."""

    @contextmanager
    def open(self, model: Path, cache: Path | None = None) -> Iterator["_Policy"]:
        """Loads the model, once the GPU is free where it goes to one.

        Raises:
            ModelRefused: for a folder that is incomplete or unsafe.
            EngineError: when the device is not there, or has no room for the weights.
        """
        models.check(model)
        digest, folder, device = models.digest(model), models.resolve(model), device_of(self)
        with (
            nullcontext() if device == "cpu" else device_lock(),
            threads_restored(),
            closing(_Policy(self, *load(self, folder, device), digest, RequestCache(cache))) as policy,
        ):
            yield policy

    def problems(self) -> list[str]:
        """A GPU that is configured but missing."""
        if self.device == "cuda":
            import torch

            if not torch.cuda.is_available():
                return ["engine.device is cuda, but torch sees no GPU; set it to auto or cpu"]
        return []


class _Policy:
    """An opened model."""

    def __init__(
        self, engine: Transformers, network: Any, tokenizer: Any, workers: int, digest: str, answers: RequestCache
    ) -> None:
        self.digest = digest
        self._engine = engine
        self._workers = workers
        self._network = network
        self._tokenizer = tokenizer
        self._answers = answers
        self._chats = Chats(tokenizer, _context(network), _ends(network, tokenizer))
        self._source = ("transformers", VERSION, version("transformers"), version("torch"), digest, str(network.dtype))

    def close(self) -> None:
        """Lets go of the model, whoever still holds this policy, and of the cache's file; frees the GPU's memory."""
        import torch

        self._answers.close()
        self._network = None
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def sample(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """Cached answers come first, then prompts that do not fit, then batch by batch; the order is the module's."""
        places, prompts = self._chats.prepare(requests, self._source)
        known = self._answers.get(list(places))
        yield from ((i, restored(known[k])) for k in known for i in places[k])
        fitting, misfits = self._chats.sorted_out(p for k, p in prompts.items() if k not in known)
        yield from ((i, error) for p, error in misfits for i in places[p.key])
        fitting.sort(key=lambda p: p.order, reverse=True)
        size = self._engine.batch_size
        for batch, completions in self._each(
            self._generate, [fitting[i : i + size] for i in range(0, len(fitting), size)]
        ):
            self._answers.put({p.key: stored(c) for p, c in zip(batch, completions, strict=True)})
            yield from ((i, c) for p, c in zip(batch, completions, strict=True) for i in places[p.key])

    def score(
        self, prompts: Sequence[Messages], completions: Sequence[str], closed: bool = False
    ) -> Iterator[tuple[int, Scored]]:
        """Teacher-forced: each completion's tokens after its prompt, and the end token where `closed`."""
        passages = self._chats.passages(prompts, completions, closed, self._source)
        known = self._answers.get([p.key for p in passages])
        yield from ((p.index, Scored(tuple(known[p.key]))) for p in passages if p.key in known)
        rows = self._chats.rows([p for p in passages if p.key not in known], closed)
        yield from ((row.index, self._chats.unscorable) for row in rows if not self._fits(row))
        batches = list(pack([row for row in rows if self._fits(row)], SCORE_TOKENS * self._engine.batch_size))
        for batch, scores in self._each(self._score, batches):
            self._answers.put({passages[row.index].key: s.logprobs for row, s in zip(batch, scores, strict=True)})
            yield from ((row.index, s) for row, s in zip(batch, scores, strict=True))

    def embed(self, texts: Sequence[str]) -> Iterator[tuple[int, Embedded]]:
        """Each different text is read once."""
        places = self._chats.texts(texts, self._source)
        known = self._answers.get(list(places))
        yield from ((i, Embedded(tuple(v), tokens=n)) for k, (n, v) in known.items() for i in places[k])
        rows, misfits = self._chats.sized({k: texts[where[0]] for k, where in places.items() if k not in known})
        yield from ((i, error) for k, error in misfits for i in places[k])
        batches = list(pack(rows, SCORE_TOKENS * self._engine.batch_size))
        for batch, vectors in self._each(self._embed, batches):
            self._answers.put({row.key: (e.tokens, e.vector) for row, e in zip(batch, vectors, strict=True)})
            yield from ((i, e) for row, e in zip(batch, vectors, strict=True) for i in places[row.key])

    def _each(self, work: Callable[[T], R], batches: Sequence[T]) -> Iterator[tuple[T, R]]:
        """Every batch with its result of `work`, as soon as it is there; at most one running batch per worker."""
        if self._workers == 1:
            yield from ((batch, work(batch)) for batch in batches)
            return
        waiting, running = iter(batches), dict[Future[R], T]()
        with ThreadPoolExecutor(self._workers) as threads:
            while True:
                for batch in islice(waiting, self._workers - len(running)):
                    running[threads.submit(work, batch)] = batch
                if not running:
                    return
                ended = wait(
                    running, timeout=0.5, return_when=FIRST_COMPLETED
                ).done  # untimed, Ctrl-C would not wake it
                for future in sorted(ended, key=lambda future: future.exception() is not None):
                    yield running.pop(future), future.result()

    def _generate(self, batch: list[Prompt]) -> list[Completion]:
        with _out_of_memory():
            rows = decode(self._network, self._chats.ends, batch, self._stopped)
        return [self._completion(p, row) for p, row in zip(batch, rows, strict=True)]

    def _stopped(self, prompt: Prompt, ids: list[int]) -> bool:
        """Whether a stop string is among the text so far; it may be a special token's."""
        stop = prompt.request.sampling.stop
        return bool(stop) and any(s in self._tokenizer.decode(ids) for s in stop)

    def _completion(self, prompt: Prompt, drawn: Drawn) -> Completion:
        count, stopped = len(drawn.ids), self._stopped(prompt, drawn.ids)
        if stopped:  # looked for only now and then while generating: find the very token
            count = next(n for n in range(1, count + 1) if self._stopped(prompt, drawn.ids[:n]))
        text = self._tokenizer.decode(drawn.ids[:count], skip_special_tokens=True)
        cuts = [text.find(s) for s in prompt.request.sampling.stop if s in text]
        ended = stopped or drawn.ids[-1] in self._chats.ends
        logprob, entropy, certainty = drawn.stats[:, :count].tolist()
        traces = (tuple(logprob), tuple(entropy)) if prompt.request.sampling.trace else (None, None)
        return Completion(
            text[: min(cuts, default=None)], count, len(prompt.ids), "stop" if ended else "length",
            sum(logprob), sum(entropy) / count, sum(certainty) / count, None, False, *traces,
        )  # fmt: skip

    def _fits(self, row: Row) -> bool:
        return bool(row.prompt) and row.size <= self._chats.context

    def _score(self, batch: list[Row]) -> list[Scored]:
        with _out_of_memory():
            return [Scored(line) for line in logprobs(self._network, batch)]

    def _embed(self, batch: list[Text]) -> list[Embedded]:
        with _out_of_memory():
            vectors = means(self._network, batch)
        return [Embedded(vector, tokens=row.size) for row, vector in zip(batch, vectors, strict=True)]


def _ends(network: Any, tokenizer: Any) -> frozenset[int]:
    return end_tokens(network.generation_config.eos_token_id if network.generation_config else None, tokenizer)


def _context(network: Any) -> int:
    """Most tokens of prompt and completion together."""
    return int(getattr(network.config.get_text_config(), "max_position_embeddings", None) or 1 << 30)


@contextmanager
def _out_of_memory() -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EngineError(f"the GPU's memory is full ({error}); lower engine.batch_size") from error
