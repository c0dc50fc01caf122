"""Any causal language model that transformers can load, in this process.

Generation is our own loop over the model's forward pass, not `model.generate`: requests are sorted by prompt and cut
into batches of equal prompts' length, a prompt that is asked K times is read once, keys and values are appended to a
buffer instead of being copied at every step, rows that are done leave the batch, and the statistics are computed where
the logits are.

**The plan.** Prompts that do not fit the context are told at once and are part of no batch, for the cache does not keep
errors. The other requests that it does not know are sorted by (prompt length, prompt, key) and cut into batches of
`batch_size`; what happens in a batch depends on nothing but the batch. A batch is also what the cache commits at once.
So after a kill whole batches are missing, the rest is cut into the very same batches, and the bytes are the same as
those of an undisturbed run. When other requests are missing (a partial hit after an edit), batches are composed
differently: tokens are equal but for near-ties, and log-probabilities equal within 1e-4 in float32.

**The draw.** A request's seed keys a counter-based generator (Philox; Salmon et al. 2011), whose n-th number picks the
n-th token through the inverse of the distribution function. Neither the position in the list nor batch mates matter.

Torch and transformers are imported when a model is opened, so that params can be validated without them.
"""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass
from functools import cache as once
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from pydantic import PositiveInt

from tasks import models
from tasks.cache import RequestCache, key
from tasks.engines import Completion, Engine, Messages, Request, Scored, check_room
from tasks.engines._chats import Chats, Prompt
from tasks.errors import EngineError, ModelRefused

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T, R = TypeVar("T"), TypeVar("R")

_Row = tuple[int, tuple[int, ...], tuple[int, ...]]
"""What is to be scored: index, prompt ids, completion ids."""

VERSION = 2
"""Part of every cache key; raise it when an edit of this file changes answers."""
WORKERS = 4
"""Most batches at once: Python's own lock, which each step of a batch needs for a moment, keeps more threads waiting."""
MALLOC = {-1: 2**31 - 1, -2: 2**26, -3: 2**25}
"""glibc's M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD (mallopt(3)): bytes free at the heap's end before it shrinks,
bytes by which it grows, bytes from which memory is asked of the system piece by piece."""
TINY = 20_000_000
"""Parameters below which a second thread on the same operation costs more than it brings."""
LOOK = 8
"""Steps between looks for stop strings and for rows that are done."""
SHRINK = 0.8
"""Rows that are done leave the batch once fewer than this share of it is alive; less often is less copying."""
ROOM = 16
"""Positions by which the buffers of keys and values grow; with much empty room attention reads memory more slowly."""
PREFILL_TOKENS = 2560
"""Prompt tokens read at once on a CPU: what fits into its caches is up to twice as fast."""
SCORE_TOKENS = 64
"""Tokens, padding included, scored at once for each completion of `batch_size`."""


class Transformers(Engine):
    """Any causal language model that transformers can load, in this process (Wolf et al. 2020, arXiv:1910.03771)."""

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
        """Loads the model. Raises ModelRefused for a folder that is incomplete or unsafe."""
        models.check(model)
        digest, folder = models.digest(model), models.resolve(model)
        with _threads_put_back(), closing(_Policy(self, *_loaded(self, folder), digest, RequestCache(cache))) as policy:
            yield policy

    def problems(self) -> list[str]:
        """A GPU that was asked for and is not there."""
        if self.device == "cuda":
            import torch

            if not torch.cuda.is_available():
                return ["engine.device is cuda, but torch sees no GPU; set it to auto or cpu"]
        return []


# Loading


@contextmanager
def _threads_put_back() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _loaded(engine: Transformers, folder: Path) -> tuple[Any, Any, int]:
    """The model and its tokenizer, and how many batches to work at at once."""
    import torch

    device, threads = _device(engine), engine.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(1)  # tiny tensors load faster on one
    network, tokenizer = _load(engine, folder, device)
    if device != "cpu" or network.num_parameters() >= TINY:
        torch.set_num_threads(threads)
        return network, tokenizer, 1
    _keep_memory()
    _growing()  # made once, before there are threads that would each make one
    if network.config._attn_implementation == "sdpa":
        network.set_attn_implementation(_small_attention())
    return network, tokenizer, min(threads, WORKERS)


def _keep_memory() -> None:
    """Has glibc keep freed memory for the next tensor: a small model spends more than a tenth of its time on fresh pages."""
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        for option, value in MALLOC.items():
            library.mallopt(option, value)


def _device(engine: Transformers) -> str:
    import torch

    if found := engine.problems():
        raise EngineError("; ".join(found))
    return ("cuda" if torch.cuda.is_available() else "cpu") if engine.device == "auto" else engine.device


def _load(engine: Transformers, folder: Path, device: str) -> tuple[Any, Any]:
    _import_without_sklearn()
    import psutil
    import torch
    from transformers import AutoTokenizer

    free = psutil.virtual_memory().available if device == "cpu" else torch.cuda.mem_get_info()[0]
    check_room(folder, _dtype(engine, device), device, free)
    base, words = models.layout(folder)
    tokenizer = AutoTokenizer.from_pretrained(words, local_files_only=True, trust_remote_code=False)
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


def _dtype(engine: Transformers, device: str) -> str:
    return "float32" if engine.dtype == "auto" and device == "cpu" else engine.dtype


def _network(folder: Path, dtype: str) -> Any:
    """The model, with every weight from the folder: transformers itself would fill a gap with random numbers."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    network, told = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, local_files_only=True,
        attn_implementation=_attention(config), output_loading_info=True,
    )  # fmt: skip
    if missing := sorted(told["missing_keys"]):
        raise ModelRefused(f"{folder}: the weights lack {', '.join(missing[:5])}; copy them from where they came from")
    return network


def _attention(config: Any) -> str | None:
    """The plain implementation for a model that caps attention scores, which torch's fused one silently leaves out; else
    transformers' choice: the fused one, or the plain one for an architecture that the fused one cannot do.
    """
    return "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) else None


# Requests and their order


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
        self._ends = _ends(network, tokenizer)
        self._context = _context(network)
        self._chats = Chats(tokenizer, self._context)
        self._named = ("transformers", VERSION, version("transformers"), version("torch"), digest, str(network.dtype))

    def close(self) -> None:
        """Lets go of the model, whoever still holds this policy, and of the cache's file; frees the GPU's memory."""
        import torch

        self._answers.close()
        self._network = None
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def sample(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """What the cache knows comes first, then what cannot be asked, then batch by batch; the order is the module's."""
        places, prompts = self._chats.prepare(requests, self._named)
        known = self._answers.get(list(places))
        yield from ((i, Completion(*known[k])) for k in known for i in places[k])
        fitting, misfits = self._chats.sorted_out(p for k, p in prompts.items() if k not in known)
        yield from ((i, error) for p, error in misfits for i in places[p.key])
        fitting.sort(key=lambda p: p.order, reverse=True)
        size = self._engine.batch_size
        for batch, done in self._each(self._generate, [fitting[i : i + size] for i in range(0, len(fitting), size)]):
            self._answers.put({p.key: astuple(c) for p, c in zip(batch, done, strict=True)})
            yield from ((i, c) for p, c in zip(batch, done, strict=True) for i in places[p.key])

    def score(self, prompts: Sequence[Messages], completions: Sequence[str]) -> Iterator[tuple[int, Scored]]:
        """Teacher-forced: each completion's tokens after its prompt. An end token is not among them."""
        texts = self._chats.render(prompts)
        keys = [key("score", *self._named, texts[p], c) for p, c in zip(prompts, completions, strict=True)]
        known = self._answers.get(keys)
        yield from ((i, Scored(tuple(known[k]))) for i, k in enumerate(keys) if k in known)
        wanted = [(i, texts[prompts[i]], completions[i]) for i, k in enumerate(keys) if k not in known]
        rows = self._rows(wanted)
        misfit = Scored(error=f"prompt and completion do not fit the model's context of {self._context} tokens")
        yield from ((row[0], misfit) for row in rows if not self._fits(row))
        batches = list(_packed([row for row in rows if self._fits(row)], SCORE_TOKENS * self._engine.batch_size))
        for batch, done in self._each(self._score, batches):
            self._answers.put({keys[row[0]]: s.logprobs for row, s in zip(batch, done, strict=True)})
            yield from ((row[0], s) for row, s in zip(batch, done, strict=True))

    def _each(self, work: Callable[[T], R], batches: Sequence[T]) -> Iterator[tuple[T, R]]:
        """Every batch with what `work` makes of it, as soon as it is made; no more are begun than are worked at."""
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
                for done in sorted(ended, key=lambda future: future.exception() is not None):
                    yield running.pop(done), done.result()

    # Generation

    def _generate(self, batch: list[Prompt]) -> list[Completion]:
        with _out_of_memory("batch_size"):
            done = _decode(self._network, self._ends, batch, self._stopped)
        return [self._completion(p, row) for p, row in zip(batch, done, strict=True)]

    def _stopped(self, prompt: Prompt, ids: list[int]) -> bool:
        """Whether a stop string is among the text so far; it may be a special token's."""
        stop = prompt.request.sampling.stop
        return bool(stop) and any(s in self._tokenizer.decode(ids) for s in stop)

    def _completion(self, prompt: Prompt, drawn: "_Drawn") -> Completion:
        count, stopped = len(drawn.ids), self._stopped(prompt, drawn.ids)
        if stopped:  # looked for only now and then while generating: find the very token
            count = next(n for n in range(1, count + 1) if self._stopped(prompt, drawn.ids[:n]))
        text = self._tokenizer.decode(drawn.ids[:count], skip_special_tokens=True)
        cuts = [text.find(s) for s in prompt.request.sampling.stop if s in text]
        ended = stopped or drawn.ids[-1] in self._ends
        logprob, entropy, certainty = drawn.stats[:, :count].tolist()
        return Completion(
            text[: min(cuts, default=None)], count, len(prompt.ids), "stop" if ended else "length",
            sum(logprob), sum(entropy) / count, sum(certainty) / count,
        )  # fmt: skip

    # Scoring

    def _rows(self, wanted: list[tuple[int, str, str]]) -> list[_Row]:
        """(index, prompt ids, completion ids), longest first."""
        befores = self._chats.ids([before for _, before, _ in wanted])
        afters = self._chats.ids([after for _, _, after in wanted])
        rows = [(w[0], before, after) for w, before, after in zip(wanted, befores, afters, strict=True)]
        return sorted(rows, key=lambda r: (len(r[1]) + len(r[2]), r[1], r[2], r[0]), reverse=True)

    def _fits(self, row: _Row) -> bool:
        _, before, after = row
        return bool(before) and len(before) + len(after) <= self._context

    def _score(self, batch: list[_Row]) -> list[Scored]:
        with _out_of_memory("batch_size"):
            return [Scored(line) for line in _forced(self._network, [(before, after) for _, before, after in batch])]


def _packed(rows: list[_Row], tokens: int) -> Iterator[list[_Row]]:
    """Batches of at most `tokens` with padding. Rows come longest first, so a batch depends on its first row alone."""
    start = 0
    while start < len(rows):
        size = max(1, tokens // max(1, len(rows[start][1]) + len(rows[start][2])))
        yield rows[start : start + size]
        start += size


def _ends(network: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a completion: the generation config's and the tokenizer's."""
    told = network.generation_config.eos_token_id if network.generation_config else None
    several = told if isinstance(told, list) else [told]
    return frozenset(int(t) for t in [*several, tokenizer.eos_token_id] if t is not None)


def _context(network: Any) -> int:
    """Most tokens of prompt and completion together."""
    return int(getattr(network.config.get_text_config(), "max_position_embeddings", None) or 1 << 30)


@contextmanager
def _out_of_memory(field: str) -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EngineError(f"the GPU's memory is full ({error}); lower engine.{field}") from error


# The decode loop


@dataclass(slots=True)
class _Drawn:
    """A row that is done: its tokens, and per token log-probability, entropy, self-certainty: float64 (3, tokens)."""

    ids: list[int]
    stats: np.ndarray


class _Knobs:
    """The sampling of a batch's rows, as columns (rows, 1)."""

    def __init__(self, prompts: list[Prompt], steps: int, device: "torch.device") -> None:
        import torch

        def column(name: str) -> "Tensor":
            return torch.tensor([[getattr(p.request.sampling, name)] for p in prompts], device=device)

        self.temperature, self.top_p, self.min_p = column("temperature"), column("top_p"), column("min_p")
        self.uniforms = torch.from_numpy(np.stack([_uniforms(p, steps) for p in prompts])).to(device)
        self._classify()

    def _classify(self) -> None:
        """What at least one row needs; most batches need none of it."""
        self.plain = bool((self.temperature == 1).all())
        self.greedy = bool((self.temperature == 0).any())
        self.nucleus, self.floor = bool((self.top_p < 1).any()), bool((self.min_p > 0).any())

    def keep(self, rows: "Tensor") -> None:
        for name in ("temperature", "top_p", "min_p", "uniforms"):
            setattr(self, name, getattr(self, name)[rows])
        self._classify()


def _uniforms(prompt: Prompt, steps: int) -> np.ndarray:
    """The request's own numbers in [0, 1), one a step, whatever the number of steps is."""
    if not prompt.request.sampling.temperature:
        return np.zeros(steps)
    return np.random.Generator(np.random.Philox(key=prompt.request.seed % 2**128)).random(steps)


def _draw(logits: "Tensor", knobs: _Knobs, step: int) -> tuple["Tensor", "Tensor"]:
    """Tokens (rows,) and (3, rows) log-probability, entropy, self-certainty from logits (rows, vocabulary).

    The statistics are those of the untruncated distribution at temperature 1.
    """
    import torch

    logp = torch.log_softmax(logits.float(), -1)
    p = logp.exp()
    tokens = _choose(p if knobs.plain else _tempered(logits.float(), knobs), knobs, step)
    if knobs.greedy:
        tokens = torch.where(knobs.temperature[:, 0] == 0, logits.argmax(-1), tokens)
    chosen = logp.gather(-1, tokens[:, None])[:, 0]
    certainty = -logp.mean(-1) - float(np.log(logp.shape[-1]))
    return tokens, torch.stack([chosen, -torch.nan_to_num(p * logp).sum(-1), certainty])


def _tempered(logits: "Tensor", knobs: _Knobs) -> "Tensor":
    import torch

    return torch.softmax(logits / torch.where(knobs.temperature == 0, 1.0, knobs.temperature), -1)


def _choose(p: "Tensor", knobs: _Knobs, step: int) -> "Tensor":
    """The token at which the distribution function passes the row's number, in vocabulary order."""
    if knobs.nucleus:
        p = _nucleus(p, knobs.top_p)
    if knobs.floor:
        p = p.masked_fill(p < knobs.min_p * p.amax(-1, keepdim=True), 0.0)
    cdf = p.double().cumsum(-1)
    passed = cdf <= knobs.uniforms[:, step : step + 1] * cdf[:, -1:]
    return passed.sum(-1).clamp_(max=p.shape[-1] - 1)


def _nucleus(p: "Tensor", top_p: "Tensor") -> "Tensor":
    """The smallest set of likeliest tokens that holds `top_p` of the mass (Holtzman et al. 2020, arXiv:1904.09751)."""
    ranked, order = p.sort(dim=-1, descending=True, stable=True)
    outside = ranked.double().cumsum(-1) - ranked >= top_p
    return p.masked_fill(outside.scatter(-1, order, outside), 0.0)


def _decode(
    network: Any, ends: frozenset[int], prompts: list[Prompt], stopped: Callable[[Prompt, list[int]], bool]
) -> list[_Drawn]:
    """Completes a batch. What happens depends on the batch alone, so that equal batches give equal bytes."""
    import torch

    with torch.inference_mode():
        batch = _Batch(network, ends, prompts)
        for step in range(batch.steps):
            batch.draw(step)
            if step % LOOK == LOOK - 1:
                batch.look(step, stopped)
            if batch.done.all() or step == batch.steps - 1:
                break
            batch.forward(step)
        return batch.drawn()


class _Batch:
    """A batch while it is generated. Rows leave it when they are done; `rows` says who is left."""

    def __init__(self, network: Any, ends: frozenset[int], prompts: list[Prompt]) -> None:
        import torch

        self.network, self.prompts = network, prompts
        self.device = network.device
        self.steps = max(p.limit for p in prompts)
        self.ends = torch.tensor(sorted(ends), device=self.device)
        self.limits = torch.tensor([p.limit for p in prompts], device=self.device)
        self.knobs = _Knobs(prompts, self.steps, self.device)
        self.rows = torch.arange(len(prompts), device=self.device)
        self.done = torch.zeros(len(prompts), dtype=torch.bool, device=self.device)
        self.lengths = self.limits.clone()
        self.tokens = torch.zeros(len(prompts), self.steps, dtype=torch.long, device=self.device)
        self.stats = torch.zeros(3, len(prompts), self.steps, device=self.device)
        self.cache, self.logits, self.mask = _prefill(network, prompts)
        self.padded = not bool(self.mask.all())
        self.wide = _is_plain(self.cache) and network.config._attn_implementation in ("sdpa", "small")
        self.positions = self.mask.sum(-1, keepdim=True)

    def draw(self, step: int) -> None:
        """Draws the next token of every row, and notes it."""
        import torch

        self.next, stats = _draw(self.logits, self.knobs, step)
        self.tokens[self.rows, step] = self.next
        self.stats[:, self.rows, step] = stats
        over = torch.isin(self.next, self.ends) | (self.limits[self.rows] == step + 1)
        self._finish(over & ~self.done, step)

    def _finish(self, over: "Tensor", step: int) -> None:
        self.lengths[self.rows[over]] = step + 1
        self.done |= over

    def look(self, step: int, stopped: Callable[[Prompt, list[int]], bool]) -> None:
        """Ends the rows that have met a stop string, and lets rows that are done go when they are many."""
        import torch

        texts = self.tokens[self.rows, : step + 1].tolist()
        over = [stopped(self.prompts[row], ids) for row, ids in zip(self.rows.tolist(), texts, strict=True)]
        self._finish(torch.tensor(over, device=self.device) & ~self.done, step)
        alive = (~self.done).nonzero()[:, 0]
        if 0 < len(alive) < SHRINK * len(self.rows):
            self._keep(alive)

    def _keep(self, rows: "Tensor") -> None:
        for name in ("rows", "done", "next", "mask", "positions"):
            setattr(self, name, getattr(self, name)[rows])
        self.knobs.keep(rows)
        self.cache.batch_select_indices(rows)

    def forward(self, step: int) -> None:
        """One more token of every row through the model."""
        import torch

        if self.padded:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.rows), 1)], -1)
        out = self.network(
            self.next[:, None], attention_mask=self._mask() if self.padded else None,
            position_ids=self.positions + step, past_key_values=self.cache, use_cache=True,
        )  # fmt: skip
        self.logits = out.logits[:, -1]

    def _mask(self) -> "Tensor":
        """Where attention takes it as it is, already as wide as it wants it (rows, 1, 1, positions): saves making it."""
        return self.mask[:, None, None].bool() if self.wide else self.mask

    def drawn(self) -> list[_Drawn]:
        stats = self.stats.double().cpu().numpy()
        rows = zip(self.tokens.tolist(), self.lengths.tolist(), strict=True)
        return [_Drawn(ids[:length], stats[:, row, :length]) for row, (ids, length) in enumerate(rows)]


def _prefill(network: Any, prompts: list[Prompt]) -> tuple[Any, "Tensor", "Tensor"]:
    """Reads each different prompt once. Gives keys and values, next-token logits and mask, with a row a request."""
    import torch

    unique = {ids: place for place, ids in enumerate(dict.fromkeys(p.ids for p in prompts))}
    rows = torch.tensor([unique[p.ids] for p in prompts], device=network.device)
    ids, mask = _padded(list(unique), network.device)
    positions = (mask.cumsum(-1) - 1).clamp_(min=0)
    some = _at_once(network, ids)
    parts = [_read(network, *(t[i : i + some] for t in (ids, mask, positions))) for i in range(0, len(ids), some)]
    cache = parts[0][0]
    for other, _ in parts[1:]:
        for layer, more in zip(cache.layers, other.layers, strict=True):
            layer.keys, layer.values = torch.cat([layer.keys, more.keys]), torch.cat([layer.values, more.values])
    cache.batch_select_indices(rows)
    return cache, torch.cat([logits for _, logits in parts])[rows], mask[rows]


def _at_once(network: Any, ids: "Tensor") -> int:
    """Prompts to read at once: a few on a CPU; all where the layers are not of the kind that can be joined."""
    joined = _is_plain(_cache(network)) and network.device.type == "cpu"
    return max(1, PREFILL_TOKENS // ids.shape[1]) if joined else len(ids)


def _read(network: Any, ids: "Tensor", mask: "Tensor", positions: "Tensor") -> tuple[Any, "Tensor"]:
    cache = _cache(network)
    out = network(
        ids, attention_mask=None if mask.all() else mask, position_ids=positions, past_key_values=cache,
        use_cache=True, logits_to_keep=1,
    )  # fmt: skip
    return cache, out.logits[:, -1]


def _padded(rows: Sequence[Sequence[int]], device: "torch.device") -> tuple["Tensor", "Tensor"]:
    """Token ids (rows, longest), padded on the left, and the mask that is 1 where a token stands."""
    import torch

    size = max(map(len, rows))
    ids = torch.tensor([[0] * (size - len(r)) + list(r) for r in rows], device=device)
    mask = torch.tensor([[0] * (size - len(r)) + [1] * len(r) for r in rows], device=device)
    return ids, mask


def _forced(network: Any, rows: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[tuple[float, ...]]:
    """log p of each completion's tokens after its prompt, for rows of (prompt ids, completion ids)."""
    import torch

    with torch.inference_mode():
        ids, mask = _padded([before + after for before, after in rows], network.device)
        kept = max(len(after) for _, after in rows) + 1
        positions = (mask.cumsum(-1) - 1).clamp_(min=0)
        out = network(ids, attention_mask=mask, position_ids=positions, logits_to_keep=kept, use_cache=False)
        logits = out.logits[:, -kept:-1].float()
        targets = ids[:, ids.shape[1] - kept + 1 :]
        logp = logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)
        return [tuple(line[len(line) - len(after) :]) for line, (_, after) in zip(logp.tolist(), rows, strict=True)]


def _cache(network: Any) -> Any:
    """The model's kind of cache, its plain layers replaced by ones that grow without copying at every step."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    cache = DynamicCache(config=network.config)
    cache.layers = [_growing()() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _is_plain(cache: Any) -> bool:
    """Whether every layer attends to all that came before."""
    return all(isinstance(layer, _growing()) for layer in cache.layers)


@once
def _small_attention() -> str:
    """Registers, and names, attention that reads one query a row by two plain matrix products.

    On a small model they take two thirds of the time of torch's fused kernel, whose blocks are made for many queries.
    """
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def attend(
        module: Any, query: "Tensor", keys: "Tensor", values: "Tensor", mask: "Tensor | None", **how: Any
    ) -> tuple["Tensor", None]:
        rows, heads, queries, width = query.shape
        if queries > 1 or how.get("scaling") is None or how.get("position_bias") is not None:
            return sdpa_attention_forward(module, query, keys, values, mask, **how)
        grouped = query.view(rows, keys.shape[1], -1, width) * how["scaling"]  # heads that share keys, together
        weights = torch.matmul(grouped, keys.transpose(2, 3))
        if mask is not None:
            weights = weights.masked_fill(~mask, -torch.inf)
        return torch.matmul(weights.softmax(-1), values).view(rows, 1, heads, -1), None

    AttentionInterface.register("small", attend)
    AttentionMaskInterface.register("small", sdpa_mask)
    return "small"


@once
def _growing() -> type:
    from transformers.cache_utils import DynamicLayer

    class Growing(DynamicLayer):
        """Keys and values (rows, heads, positions, width) in buffers with room; `DynamicLayer` copies all each step."""

        room: tuple["Tensor", "Tensor"] | None = None

        def update(self, key_states: "Tensor", value_states: "Tensor", *_: Any, **__: Any) -> tuple["Tensor", "Tensor"]:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
                self.keys, self.values = key_states, value_states
                return self.keys, self.values
            start = self.keys.shape[-2]
            end = start + key_states.shape[-2]
            if self.room is None or end > self.room[0].shape[-2]:
                self.room = _roomier(self.keys, end), _roomier(self.values, end)
            for buffer, states in zip(self.room, (key_states, value_states), strict=True):
                buffer[:, :, start:end] = states
            self.keys, self.values = (buffer[:, :, :end] for buffer in self.room)
            return self.keys, self.values

        def batch_select_indices(self, indices: "Tensor") -> None:
            super().batch_select_indices(indices)
            self.room = None

    return Growing


def _roomier(states: "Tensor", end: int) -> "Tensor":
    """A copy of `states` with room for `end` positions and some more."""
    rows, heads, start, width = states.shape
    buffer = states.new_empty(rows, heads, -(-end // ROOM) * ROOM, width)
    buffer[:, :, :start] = states
    return buffer
