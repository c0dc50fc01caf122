"""What a model makes of given texts, a batch at a time: log-probabilities of completions, and hidden states."""

from collections.abc import Iterator
from typing import Any, TypeVar

from tasks.engines._chats import Row, Text
from tasks.engines._decoding import pad

T = TypeVar("T", Row, Text)


def pack(rows: list[T], tokens: int) -> Iterator[list[T]]:
    """Batches of at most `tokens` with padding. Rows come longest first, so a batch depends on its first row alone."""
    start = 0
    while start < len(rows):
        size = max(1, tokens // max(1, rows[start].size))
        yield rows[start : start + size]
        start += size


def logprobs(network: Any, rows: list[Row]) -> list[tuple[float, ...]]:
    """log p of each completion's tokens after its prompt."""
    import torch

    with torch.inference_mode():
        ids, mask = pad([row.prompt + row.completion for row in rows], network.device)
        positions_kept = max(len(row.completion) for row in rows) + 1
        positions = (mask.cumsum(-1) - 1).clamp_(min=0)
        out = network(ids, attention_mask=mask, position_ids=positions, logits_to_keep=positions_kept, use_cache=False)
        logits = out.logits[:, -positions_kept:-1].float()
        targets = ids[:, ids.shape[1] - positions_kept + 1 :]
        logp = logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)
        return [tuple(line[len(line) - len(row.completion) :]) for line, row in zip(logp.tolist(), rows, strict=True)]


def means(network: Any, texts: list[Text]) -> list[tuple[float, ...]]:
    """Mean over each text's tokens of the last hidden state, as the output layer reads it."""
    import torch

    with torch.inference_mode():
        ids, mask = pad([text.ids for text in texts], network.device)
        positions = (mask.cumsum(-1) - 1).clamp_(min=0)
        out = network.base_model(ids, attention_mask=mask, position_ids=positions, use_cache=False)
        states = out.last_hidden_state.float().masked_fill(mask[..., None] == 0, 0.0)
        return [tuple(vector) for vector in (states.sum(1) / mask.sum(-1, keepdim=True)).tolist()]
