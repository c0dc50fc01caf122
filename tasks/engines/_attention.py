"""Attention over what was read before: buffers of keys and values that grow without copying, and a small model's kernel."""

from functools import cache as once
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

ROOM = 16
"""Positions by which the buffers of keys and values grow; with much empty room attention reads memory more slowly."""


def key_value_cache(network: Any) -> Any:
    """The model's kind of cache, its plain layers replaced by ones that grow without copying at every step."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    cache = DynamicCache(config=network.config)
    cache.layers = [growing()() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def is_plain(cache: Any) -> bool:
    """Whether every layer attends to all earlier tokens."""
    return all(isinstance(layer, growing()) for layer in cache.layers)


@once
def small_attention() -> str:
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
def growing() -> type:
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
