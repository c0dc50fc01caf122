"""Teacher-forced log-probabilities of completions, a batch at a time."""

from collections.abc import Iterator
from typing import Any

from tasks.engines._chats import Row
from tasks.engines._decoding import pad


def pack(rows: list[Row], tokens: int) -> Iterator[list[Row]]:
    """Batches of at most `tokens` with padding. Rows come longest first, so a batch depends on its first row alone."""
    start = 0
    while start < len(rows):
        size = max(1, tokens // max(1, len(rows[start].prompt) + len(rows[start].completion)))
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
