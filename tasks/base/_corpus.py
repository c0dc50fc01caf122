"""Training an embedded policy on a corpus that a program writes, chunk by chunk, so that a killed run goes on to the same
bytes.
"""

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerFast

    from tasks.training.optimizer import MuonAdamW

Chat = list[dict[str, str]]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Course:
    """A corpus, and how it is learnt."""

    chats: Callable[[int], Sequence[Chat]]
    """The conversations of a chunk: a function of its number, so that a resumed run sees what an undisturbed one does."""
    chunks: int
    chunk: int
    """Documents between two checkpoints; batches are made within a chunk."""
    rates: Callable[[float], tuple[float, float]]
    """Learning rates of Muon and AdamW after so many documents."""
    tokens: Callable[[int], int]
    """Tokens a step of a chunk, in documents of like length."""
    deciding: tuple[str, ...]
    """Tokens that weigh `emphasis` in the loss."""
    emphasis: float
    seed: int


def train(course: Course, policy: Any, tokenizer: "PreTrainedTokenizerFast", optimizer: Any, checkpoint: Path) -> None:
    """Trains `policy` on all chunks, from the checkpoint where there is one. Raises Diverged when a loss is not finite."""
    import torch

    from tasks.training.loop import save_atomic

    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        policy.load_state_dict(state["policy"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["chunk"]
    for chunk in range(first, course.chunks):
        loss = _chunk(course, policy, tokenizer, optimizer, chunk)
        log.info("chunk %d: loss %.4f", chunk, loss)
        state = {"policy": policy.state_dict(), "optimizer": optimizer.state_dict(), "chunk": chunk + 1}
        save_atomic(state, checkpoint)


def _chunk(
    course: Course, policy: "nn.Module", tokenizer: "PreTrainedTokenizerFast", optimizer: "MuonAdamW", chunk: int
) -> float:
    """Trains on one chunk of the corpus and gives its mean loss over batches, in nats a completion token."""
    from tasks.training.loop import buckets, check_finite

    chats = list(course.chats(chunk))
    tokens = tokenizer(tokenizer.apply_chat_template(chats, tokenize=False))["input_ids"]
    batches = buckets(map(len, tokens), course.tokens(chunk))
    random.Random(f"{course.seed} {chunk} order").shuffle(batches)
    total = 0.0
    for n, batch in enumerate(batches):
        rates = course.rates(chunk * course.chunk + n / len(batches) * len(chats))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        total += (loss := _step(course, policy, optimizer, [tokens[i] for i in batch], tokenizer))
        check_finite(loss, n)
    return total / len(batches)


def _step(
    course: Course,
    policy: "nn.Module",
    optimizer: "MuonAdamW",
    batch: list[list[int]],
    tokenizer: "PreTrainedTokenizerFast",
) -> float:
    """One step on a batch of token lists; the loss is over what follows the `<|answer|>` tag."""
    import torch
    from torch.nn.functional import cross_entropy

    width = max(map(len, batch))
    ids = torch.full((len(batch), width), tokenizer.pad_token_id)
    for row, tokens in enumerate(batch):
        ids[row, : len(tokens)] = torch.tensor(tokens)
    answer = tokenizer.convert_tokens_to_ids("<|answer|>")
    learnt = ((ids == answer).cumsum(1) > 0)[:, :-1] & (ids[:, 1:] != tokenizer.pad_token_id)
    with torch.autocast("cpu", torch.bfloat16):
        states = policy.model(ids, use_cache=False).last_hidden_state[:, :-1][learnt]
        targets = ids[:, 1:][learnt]
        weights = torch.ones(len(tokenizer))
        weights[tokenizer.convert_tokens_to_ids(list(course.deciding))] = course.emphasis
        loss = cross_entropy(policy.lm_head(states).float(), targets, weights)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()
