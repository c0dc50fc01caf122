"""How far new rows are from old ones in the hidden states of each layer."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch  # noqa: TID253  (the file is about training; whoever trains imports it late)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

AT_ONCE = 16
"""Rows at once."""
Chat = list[dict[str, str]]


@dataclass(frozen=True)
class Spread:
    """What is kept of rows, however many they are."""

    count: int
    mean: torch.Tensor
    """layers × features."""
    squares: torch.Tensor
    """Σ |row − mean|² of each layer."""

    def __add__(self, other: "Spread") -> "Spread":
        """That of both (Chan, Golub and LeVeque 1979)."""
        count, step = self.count + other.count, other.mean - self.mean
        between = step.pow(2).sum(-1) * self.count * other.count / count
        return Spread(count, self.mean + step * other.count / count, self.squares + other.squares + between)


def spread(pieces: Iterable[torch.Tensor]) -> Spread:
    """Of pieces of rows, each rows × layers × features."""
    return reduce(Spread.__add__, (_spread(piece.double()) for piece in pieces))


def _spread(rows: torch.Tensor) -> Spread:
    return Spread(len(rows), mean := rows.mean(0), (rows - mean).pow(2).sum((0, 2)))


def distances(new: Spread, old: Spread) -> list[float]:
    """The distance of the two means in each layer, in units of the old rows' root mean square distance from their own mean.
    Old rows that are all one have no spread, and whatever differs is far (∞).
    """
    apart = (new.mean - old.mean).norm(dim=-1)
    return torch.where(apart == 0, 0.0, apart / (old.squares / old.count).sqrt()).tolist()


@torch.no_grad()
def hidden_means(
    policy: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", chats: Iterable[Chat]
) -> Iterator[torch.Tensor]:
    """The mean over a row's tokens of what each layer puts out, rows × layers × features, some rows at a time."""
    policy.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    stream = iter(chats)
    while piece := list(islice(stream, AT_ONCE)):
        yield _means(policy, [torch.tensor(tokenizer.apply_chat_template(chat)["input_ids"]) for chat in piece])


def _means(policy: Any, ids: list[torch.Tensor]) -> torch.Tensor:
    seen = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in ids], batch_first=True).to(policy.device)
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(policy.device)
    layers = policy(input_ids=padded, attention_mask=seen, output_hidden_states=True).hidden_states[1:]
    weights = (seen / seen.sum(1, keepdim=True))[:, :, None]
    return torch.stack([(layer * weights).sum(1) for layer in layers], 1).float().cpu()
