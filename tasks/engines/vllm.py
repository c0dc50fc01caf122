"""vLLM in this process (Kwon et al. 2023, arXiv:2309.06180), on a GPU or a CPU; its core runs in a process of its own.

All requests are handed over at once and vLLM batches them as it likes; prompts that begin alike share what was read of
them. Answers go into the request cache as they come, at least every `batch_size`: after a kill the next run asks for
the rest alone. vLLM promises no equal bytes: how requests are batched moves log-probabilities in the last digits, and so
now and then a token; a seed makes the draw the request's own, not the arithmetic.

Log-probabilities are the model's own (temperature 1, nothing truncated). They cost a small model a third of its throughput, so
the plan of a stage asks for them only where a strategy of the round reads them. Statistics over the whole vocabulary are not
to be had from it: `entropy`, `token_entropies` and `self_certainty` are None.

A core that died, or that gave no sign of life for `patience` seconds, is ended and started again, once for an opened
model, and unanswered requests are sent again.

Where `flywheel serve` keeps a server up for the very folder that is opened, that server answers, with the same requests
and the same cache keys (`_served.py`). It is refused where it has other weights, or was started with other parameters.
Several copies of a model (`data_parallel_size`) are always a server, which this process starts and ends.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from tasks.core import models
from tasks.core.cache import RequestCache
from tasks.core.devices import device_lock
from tasks.core.errors import EngineError
from tasks.engines import Completion, Embedded, Engine, Messages, Request, Scored, _served, batched, restored, stored
from tasks.engines._chats import Chats, Prompt, Row, end_tokens
from tasks.engines._vllm_core import Call, Core, Gone, Output

VERSION = 2
"""Part of every cache key; raise it when an edit changes answers."""
INSTALL = "run `make vllm-gpu` where there is a GPU with CUDA (Linux on x86_64), `make vllm-cpu` where there is none"


class Vllm(Engine):
    """vLLM, for models and batches worth its start-up of half a minute and more."""

    traces: ClassVar[bool] = True
    statistics: ClassVar[bool] = False
    transport: ClassVar[frozenset[str]] = frozenset(
        {
            "memory", "kv_cache", "max_num_seqs", "max_num_batched_tokens", "cudagraph_capture_sizes", "data_parallel_size",
            "batch_size", "patience", "stay_open",
        }
    )  # fmt: skip

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights; `auto` is the model's own."""
    logprobs: bool | None = None
    """Ask for log-probabilities of what is drawn; null asks where a strategy of the round reads them, which the plan of
    each stage says. A strategy that wants them token by token always gets them."""
    memory: float | None = Field(None, gt=0, le=1)
    """Share of the device's memory that vLLM may take; null is 0.9 of a GPU's, 0.3 of the machine's on a CPU."""
    kv_cache: PositiveFloat | None = None
    """GiB for keys and values; null is what `memory` leaves on a GPU, 1 on a CPU."""
    context: PositiveInt | None = None
    """Most tokens of prompt and completion together; null is the model's own context."""
    max_num_seqs: PositiveInt | None = None
    """Most requests worked at in one step, by each copy of the model; null is vLLM's choice for the device."""
    max_num_batched_tokens: PositiveInt | None = None
    """Most tokens, of prompts too, in one step of a copy; null is vLLM's choice. Below `context` only on a GPU."""
    cudagraph_capture_sizes: tuple[PositiveInt, ...] = ()
    """Batch sizes for which a graph is captured; empty is vLLM's choice. The largest should reach `max_num_seqs`."""
    tensor_parallel: PositiveInt = 1
    """GPUs that one copy of the model is spread over."""
    data_parallel_size: PositiveInt = 1
    """Copies of the model, each on `tensor_parallel` GPUs of its own, among which requests are spread."""
    eager: bool = False
    """Start sooner, without compiled graphs."""
    batch_size: PositiveInt = 256
    """Answers that go into the request cache at once."""
    patience: PositiveFloat = 60.0
    """Seconds without a sign of life after which the core counts as hung."""
    stay_open: bool = False
    """Under `flywheel run`, one server answers the stages of a round from `prompts` to `critique`, in the place of an engine
    that each of them starts; it needs to be the only one on the device then."""

    @contextmanager
    def open(self, model: Path, cache: Path | None = None) -> Iterator["_Policy"]:
        """Starts vLLM on the model, once its GPUs are free, or asks the server that `flywheel serve` keeps up for it; an
        adapter is served beside its base, not merged.

        Raises:
            ModelRefused: for a folder that is incomplete or unsafe, or where the server has other weights of it.
            EngineError: where vLLM is missing or fails.
        """
        models.check(model)
        digest, folder = models.digest(model), models.resolve(model)
        with self._core(model, folder, digest, cache) as core, closing(RequestCache(cache)) as answers:
            yield _Policy(self, core, folder, digest, answers)

    @contextmanager
    def _core(self, model: Path, folder: Path, digest: str, cache: Path | None) -> Iterator["Core | _served.Server"]:
        if cache is not None and (server := _served.find(_served.place(cache), self, model, digest)):
            with server.used(_served.place(cache)):
                yield server
            return
        if problems := self.problems():
            raise EngineError(f"engine vllm: {'; '.join(problems)}")
        with device_lock(self.tensor_parallel * self.data_parallel_size):
            if self.data_parallel_size > 1:
                with _served.started(self, folder, digest) as server:
                    yield server
                return
            core = Core(self, folder)
            try:
                yield core
            finally:
                core.end()

    def problems(self) -> list[str]:
        """That vLLM is not installed."""
        return [] if find_spec("vllm") else [f"vLLM is not installed; {INSTALL}"]


class _Policy:
    """An opened model."""

    def __init__(
        self, engine: Vllm, core: "Core | _served.Server", folder: Path, digest: str, answers: RequestCache
    ) -> None:
        self.digest = digest
        self._engine = engine
        self._core = core
        self._answers = answers
        self._restarted = False
        self._chats = Chats(core.tokenizer, core.context, _ends(folder, core.tokenizer))
        self._source = ("vllm", VERSION, *core.versions, digest, core.dtype)

    @property
    def _asks(self) -> bool:
        """Whether log-probabilities are asked for also where no trace is."""
        return self._engine.logprobs is not False

    def sample(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """What the cache knows comes first, then what vLLM answers, in its order."""
        source = self._source if self._asks else (*self._source, "without log-probabilities")
        places, prompts = self._chats.prepare(requests, source)
        known = self._answers.get(list(places))
        yield from ((i, restored(known[k])) for k in known for i in places[k])
        fitting, misfits = self._chats.sorted_out(p for k, p in prompts.items() if k not in known)
        yield from ((i, c) for p, c in misfits for i in places[p.key])
        by_name = {p.key.hex(): p for p in fitting}
        calls = {name: _drawing(p, self._asks or p.request.sampling.trace) for name, p in by_name.items()}
        for batch in batched(self._outputs(calls), self._engine.batch_size):
            completions = {(p := by_name[name]).key: _completion(p, out) for name, out in batch}
            self._answers.put({k: stored(c) for k, c in completions.items() if c.error is None})
            yield from ((i, c) for k, c in completions.items() for i in places[k])

    def score(
        self, prompts: Sequence[Messages], completions: Sequence[str], closed: bool = False
    ) -> Iterator[tuple[int, Scored]]:
        """Teacher-forced: each completion's tokens after its prompt, and the end token where `closed`."""
        passages = self._chats.passages(prompts, completions, closed, self._source)
        known = self._answers.get([p.key for p in passages])
        yield from ((p.index, Scored(tuple(known[p.key]))) for p in passages if p.key in known)
        rows = self._chats.rows([p for p in passages if p.key not in known], closed)
        yield from ((row.index, self._chats.unscorable) for row in rows if not self._fits(row))
        yield from ((row.index, Scored()) for row in rows if self._fits(row) and not row.completion)
        by_name = {str(row.index): row for row in rows if self._fits(row) and row.completion}
        for batch in batched(self._outputs(_scoring(by_name)), self._engine.batch_size):
            scores = {by_name[name].index: _scored(out) for name, out in batch}
            self._answers.put({passages[i].key: s.logprobs for i, s in scores.items() if not s.error})
            yield from scores.items()

    def embed(self, texts: Sequence[str]) -> Iterator[tuple[int, Embedded]]:
        """Raises EngineError: a vLLM that generates gives no hidden states."""
        raise EngineError(
            "engine vllm cannot embed: while it generates it gives no hidden states; take engine transformers for the "
            "models that embed"
        )

    def _fits(self, row: Row) -> bool:
        """Whether there is room for one token more: vLLM never asks for none."""
        return bool(row.prompt) and row.size < self._chats.context

    def _outputs(self, calls: dict[str, Call]) -> Iterator[tuple[str, Output | ValueError]]:
        """Every call's output, once. Raises EngineError when the core goes a second time."""
        left = dict(calls)
        while left:
            try:
                for name, out in self._core.answers(dict(left)):
                    del left[name]
                    yield name, out
            except Gone as gone:
                if self._restarted:
                    raise EngineError(
                        f"engine vllm: its core went twice, the last time because: {gone}; what was answered is kept: "
                        "run the stage again, with a smaller engine.memory or engine.context if memory was short"
                    ) from gone
                self._restarted = True
                self._core.restart()


def _ends(folder: Path, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a completion, where vLLM takes them from: the generation config, else the model's own."""
    base, _ = models.layout(folder)
    name = next(n for n in ("generation_config.json", "config.json") if (base / n).is_file())
    return end_tokens(json.loads((base / name).read_text()).get("eos_token_id"), tokenizer)


def _drawing(prompt: Prompt, with_logprobs: bool) -> Call:
    how = prompt.request.sampling
    form = {"regex": how.regex} if how.regex else {"json": how.schema} if how.schema else None
    params = {
        "temperature": how.temperature, "top_p": how.top_p, "min_p": how.min_p, "max_tokens": prompt.limit,
        "stop": list(how.stop), "seed": prompt.request.seed % 2**63, "logprobs": 0 if with_logprobs else None,
        "structured_outputs": form,
    }  # fmt: skip
    return Call(prompt.ids, params)


def _scoring(rows: Mapping[str, Row]) -> dict[str, Call]:
    how = {"temperature": 0.0, "max_tokens": 1, "prompt_logprobs": 0}
    return {n: Call((*row.prompt, *row.completion), how, len(row.completion)) for n, row in rows.items()}


def _completion(prompt: Prompt, out: Output | ValueError) -> Completion:
    if isinstance(out, ValueError):
        return Completion("", 0, len(prompt.ids), "error", error=f"vLLM refused it: {out}", permanent=True)
    if out.finish_reason not in ("stop", "length"):
        return Completion("", 0, len(prompt.ids), "error", error=f"vLLM ended it: {out.finish_reason}")
    return Completion(
        out.text, out.tokens, len(prompt.ids), out.finish_reason, out.logprob,
        token_logprobs=out.logprobs if prompt.request.sampling.trace else None,
    )  # fmt: skip


def _scored(out: Output | ValueError) -> Scored:
    if isinstance(out, ValueError):
        return Scored(error=f"vLLM refused it: {out}", permanent=True)
    return Scored(out.logprobs)
