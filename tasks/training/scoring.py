"""Log-probabilities of texts under a model that a trainer holds, computed once before the training."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch  # noqa: TID253  (the file is about training; whoever trains imports it late)

from tasks.training.masking import IGNORED

if TYPE_CHECKING:
    from transformers import Trainer


@contextmanager
def scoring(trainer: "Trainer", model: Any) -> Iterator[None]:
    """Without gradients and dropout, in the precision that the trainer trains in."""
    was_training = model.training
    model.eval()
    with torch.no_grad(), trainer.accelerator.autocast():
        yield
    model.train(was_training)


def token_logprobs(
    trainer: "Trainer", model: Any, contexts: Sequence[list[int]], completions: Sequence[list[int]]
) -> list[list[float]]:
    """log π of each token of each completion after its context, in nats; as many rows at once as the trainer has. The model
    must have TRL's fused head, as the policy and the reference of a trainer do.
    """
    rows = list(zip(contexts, completions, strict=True))
    size, found = trainer.args.per_device_train_batch_size, []
    with scoring(trainer, model):
        for start in range(0, len(rows), size):
            found += _at_once(trainer.accelerator.device, model, rows[start : start + size])
    return found


def _at_once(device: torch.device, model: Any, rows: list[tuple[list[int], list[int]]]) -> list[list[float]]:
    ids = _padded([context + completion for context, completion in rows], 0).to(device)
    seen = _padded([[1] * (len(context) + len(completion)) for context, completion in rows], 0).to(device)
    labels = _padded([[IGNORED] * len(context) + completion for context, completion in rows], IGNORED).to(device)
    logprobs = model(input_ids=ids, attention_mask=seen, labels=labels, fused_lm_head=True).log_probs.float().cpu()
    return [
        row[len(context) - 1 : len(context) + len(completion) - 1].tolist()
        for row, (context, completion) in zip(logprobs, rows, strict=True)
    ]


def _padded(rows: list[list[int]], value: int) -> torch.Tensor:
    tensors = [torch.tensor(row) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)
