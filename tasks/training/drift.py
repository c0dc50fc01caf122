"""How far new rows are from old ones in the hidden states of each layer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch  # noqa: TID253  (the file is about training; whoever trains imports it late)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

AT_ONCE = 16
"""Rows at once."""
Chat = list[dict[str, str]]


def distances(new: torch.Tensor, old: torch.Tensor) -> list[float]:
    """The distance of the two means in each layer, in units of the old rows' root mean square distance from their own mean.
    Both are rows × layers × features; old rows that are all one have no spread, and whatever differs is far (∞).
    """
    center = old.mean(0)
    apart = (new.mean(0) - center).norm(dim=-1)
    spread = (old - center).norm(dim=-1).pow(2).mean(0).sqrt()
    return torch.where(apart == 0, 0.0, apart / spread).tolist()


@torch.no_grad()
def hidden_means(
    policy: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", chats: Sequence[Chat]
) -> torch.Tensor:
    """The mean over a row's tokens of what each layer puts out, rows × layers × features."""
    policy.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    ids = [torch.tensor(tokenizer.apply_chat_template(chat)["input_ids"]) for chat in chats]
    pieces = [ids[n : n + AT_ONCE] for n in range(0, len(ids), AT_ONCE)]
    return torch.cat([_means(policy, piece) for piece in pieces])


def _means(policy: Any, ids: list[torch.Tensor]) -> torch.Tensor:
    seen = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in ids], batch_first=True).to(policy.device)
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(policy.device)
    layers = policy(input_ids=padded, attention_mask=seen, output_hidden_states=True).hidden_states[1:]
    weights = (seen / seen.sum(1, keepdim=True))[:, :, None]
    return torch.stack([(layer * weights).sum(1) for layer in layers], 1).float().cpu()
