"""A model of transformers' brought into memory: safetensors alone, every weight from the folder, on the requested device."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.core import models
from tasks.core.errors import EngineError, ModelRefused
from tasks.engines._attention import growing, small_attention
from tasks.engines._room import check_room

if TYPE_CHECKING:
    from tasks.engines.transformers import Transformers

WORKERS = 4
"""Most batches at once: Python's own lock, which each step of a batch needs for a moment, keeps more threads waiting."""
MALLOC = {-1: 2**31 - 1, -2: 2**26, -3: 2**25}
"""glibc's M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD (mallopt(3)): bytes free at the heap's end before it shrinks,
bytes by which it grows, bytes from which memory is allocated piece by piece."""
TINY = 20_000_000
"""Parameters below which a second thread on the same operation costs more than it brings."""


@contextmanager
def threads_restored() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def load(engine: "Transformers", folder: Path, device: str) -> tuple[Any, Any, int]:
    """The model and its tokenizer, and how many batches to work at at once."""
    import torch

    threads = engine.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(1)  # tiny tensors load faster on one
    network, tokenizer = _model(engine, folder, device)
    if device != "cpu" or network.num_parameters() >= TINY:
        torch.set_num_threads(threads)
        return network, tokenizer, 1
    _keep_memory()
    growing()  # made once, before there are threads that would each make one
    if network.config._attn_implementation == "sdpa":
        network.set_attn_implementation(small_attention())
    return network, tokenizer, min(threads, WORKERS)


def _keep_memory() -> None:
    """Has glibc keep freed memory for the next tensor: a small model spends more than a tenth of its time on fresh pages."""
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        for option, value in MALLOC.items():
            library.mallopt(option, value)


def device_of(engine: "Transformers") -> str:
    """`cpu` or `cuda`. Raises EngineError for a GPU that is not there."""
    import torch

    if problems := engine.problems():
        raise EngineError("; ".join(problems))
    return ("cuda" if torch.cuda.is_available() else "cpu") if engine.device == "auto" else engine.device


def _model(engine: "Transformers", folder: Path, device: str) -> tuple[Any, Any]:
    _import_without_sklearn()
    import psutil
    import torch
    from transformers import AutoTokenizer

    free = psutil.virtual_memory().available if device == "cpu" else torch.cuda.mem_get_info()[0]
    check_room(folder, _dtype(engine, device), device, free)
    base, vocabulary = models.layout(folder)
    tokenizer = AutoTokenizer.from_pretrained(vocabulary, local_files_only=True, trust_remote_code=False)
    network = _network(base, _dtype(engine, device))
    if base != folder:
        from peft import PeftModel

        network = PeftModel.from_pretrained(network, folder).merge_and_unload()
    return network.to(device).eval(), tokenizer


def _import_without_sklearn() -> None:
    """Imports transformers as if scikit-learn were not installed.

    transformers wants one function of it, for assisted generation; importing it takes a quarter of a process's start-up.
    """
    if "sklearn" in sys.modules:
        return
    sys.modules["sklearn"] = None  # type: ignore[assignment]
    try:
        import transformers.generation.candidate_generator  # noqa: F401  (the module that would import it)
    finally:
        del sys.modules["sklearn"]


def _dtype(engine: "Transformers", device: str) -> str:
    return "float32" if engine.dtype == "auto" and device == "cpu" else engine.dtype


def _network(folder: Path, dtype: str) -> Any:
    """The model, with every weight from the folder: transformers itself would fill a gap with random numbers."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    network, loading = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, local_files_only=True,
        attn_implementation=_attention(config), output_loading_info=True,
    )  # fmt: skip
    if missing := sorted(loading["missing_keys"]):
        raise ModelRefused(f"{folder}: the weights lack {', '.join(missing[:5])}; copy them from the original model")
    return network


def _attention(config: Any) -> str | None:
    """The plain implementation for a model that caps attention scores, which torch's fused one silently leaves out; else
    transformers' choice: the fused one, or the plain one for an architecture that the fused one cannot do.
    """
    return "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) else None
