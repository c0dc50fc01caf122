"""Generation: our own loop over the model's forward pass, a batch at a time.

A prompt with K requests is read once, keys and values are appended to a buffer instead of being copied at every
step, rows that are done leave the batch, and the statistics are computed where the logits are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.engines._attention import is_plain, key_value_cache
from tasks.engines._chats import Prompt
from tasks.engines._draws import Sampler, draw

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LOOK = 8
"""Steps between looks for stop strings and for rows that are done."""
SHRINK = 0.8
"""Rows that are done leave the batch once fewer than this share of it is alive; less often is less copying."""
PREFILL_TOKENS = 2560
"""Prompt tokens read at once on a CPU: what fits into its caches is up to twice as fast."""


@dataclass(slots=True)
class Drawn:
    """A row that is done: its tokens, and per token log-probability, entropy, self-certainty: float64 (3, tokens)."""

    ids: list[int]
    stats: np.ndarray


def decode(
    network: Any, ends: frozenset[int], prompts: list[Prompt], stopped: Callable[[Prompt, list[int]], bool]
) -> list[Drawn]:
    """Completes a batch. What happens depends on the batch alone, so that equal batches give equal bytes."""
    import torch

    with torch.inference_mode():
        batch = Batch(network, ends, prompts)
        for step in range(batch.steps):
            batch.draw(step)
            if step % LOOK == LOOK - 1:
                batch.look(step, stopped)
            if batch.done.all() or step == batch.steps - 1:
                break
            batch.forward(step)
        return batch.drawn()


class Batch:
    """A batch while it is generated. Rows leave it when they are done; `rows` says who is left."""

    def __init__(self, network: Any, ends: frozenset[int], prompts: list[Prompt]) -> None:
        import torch

        self.network, self.prompts = network, prompts
        self.device = network.device
        self.steps = max(p.limit for p in prompts)
        self.ends = torch.tensor(sorted(ends), device=self.device)
        self.limits = torch.tensor([p.limit for p in prompts], device=self.device)
        self.sampler = Sampler(prompts, self.steps, self.device)
        self.rows = torch.arange(len(prompts), device=self.device)
        self.done = torch.zeros(len(prompts), dtype=torch.bool, device=self.device)
        self.lengths = self.limits.clone()
        self.tokens = torch.zeros(len(prompts), self.steps, dtype=torch.long, device=self.device)
        self.stats = torch.zeros(3, len(prompts), self.steps, device=self.device)
        self.cache, self.logits, self.mask = _prefill(network, prompts)
        self.padded = not bool(self.mask.all())
        self.wide = is_plain(self.cache) and network.config._attn_implementation in ("sdpa", "small")
        self.positions = self.mask.sum(-1, keepdim=True)

    def draw(self, step: int) -> None:
        """Draws the next token of every row, and notes it."""
        import torch

        self.next, stats = draw(self.logits, self.sampler, step)
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
        self.sampler.keep(rows)
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

    def drawn(self) -> list[Drawn]:
        stats = self.stats.double().cpu().numpy()
        rows = zip(self.tokens.tolist(), self.lengths.tolist(), strict=True)
        return [Drawn(ids[:length], stats[:, row, :length]) for row, (ids, length) in enumerate(rows)]


def _prefill(network: Any, prompts: list[Prompt]) -> tuple[Any, "Tensor", "Tensor"]:
    """Reads each different prompt once. Gives keys and values, next-token logits and mask, with a row a request."""
    import torch

    unique = {ids: place for place, ids in enumerate(dict.fromkeys(p.ids for p in prompts))}
    rows = torch.tensor([unique[p.ids] for p in prompts], device=network.device)
    ids, mask = pad(list(unique), network.device)
    positions = (mask.cumsum(-1) - 1).clamp_(min=0)
    size = _at_once(network, ids)
    parts = [_read(network, *(t[i : i + size] for t in (ids, mask, positions))) for i in range(0, len(ids), size)]
    cache = parts[0][0]
    for other, _ in parts[1:]:
        for layer, more in zip(cache.layers, other.layers, strict=True):
            layer.keys, layer.values = torch.cat([layer.keys, more.keys]), torch.cat([layer.values, more.values])
    cache.batch_select_indices(rows)
    return cache, torch.cat([logits for _, logits in parts])[rows], mask[rows]


def _at_once(network: Any, ids: "Tensor") -> int:
    """Prompts to read at once: a few on a CPU; all where the layers are not of the kind that can be joined."""
    joined = is_plain(key_value_cache(network)) and network.device.type == "cpu"
    return max(1, PREFILL_TOKENS // ids.shape[1]) if joined else len(ids)


def _read(network: Any, ids: "Tensor", mask: "Tensor", positions: "Tensor") -> tuple[Any, "Tensor"]:
    cache = key_value_cache(network)
    out = network(
        ids, attention_mask=None if mask.all() else mask, position_ids=positions, past_key_values=cache,
        use_cache=True, logits_to_keep=1,
    )  # fmt: skip
    return cache, out.logits[:, -1]


def pad(rows: Sequence[Sequence[int]], device: "torch.device") -> tuple["Tensor", "Tensor"]:
    """Token ids (rows, longest), padded on the left, and the mask that is 1 where a token stands."""
    import torch

    size = max(map(len, rows))
    ids = torch.tensor([[0] * (size - len(r)) + list(r) for r in rows], device=device)
    mask = torch.tensor([[0] * (size - len(r)) + [1] * len(r) for r in rows], device=device)
    return ids, mask
