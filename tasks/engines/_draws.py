"""The draw of a token: temperature, top-p and min-p, and the statistics of the whole distribution.

A request's seed keys a counter-based generator (Philox; Salmon et al. 2011), whose n-th number picks the n-th token
through the inverse of the distribution function. Neither the position in the list nor batch mates matter.
"""

from typing import TYPE_CHECKING

import numpy as np

from tasks.engines._chats import Prompt

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Sampler:
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


def draw(logits: "Tensor", sampler: Sampler, step: int) -> tuple["Tensor", "Tensor"]:
    """Tokens (rows,) and (3, rows) log-probability, entropy, self-certainty from logits (rows, vocabulary).

    The statistics are those of the untruncated distribution at temperature 1.
    """
    import torch

    logp = torch.log_softmax(logits.float(), -1)
    p = logp.exp()
    tokens = _choose(p if sampler.plain else _tempered(logits.float(), sampler), sampler, step)
    if sampler.greedy:
        tokens = torch.where(sampler.temperature[:, 0] == 0, logits.argmax(-1), tokens)
    chosen = logp.gather(-1, tokens[:, None])[:, 0]
    certainty = -logp.mean(-1) - float(np.log(logp.shape[-1]))
    return tokens, torch.stack([chosen, -torch.nan_to_num(p * logp).sum(-1), certainty])


def _tempered(logits: "Tensor", sampler: Sampler) -> "Tensor":
    import torch

    return torch.softmax(logits / torch.where(sampler.temperature == 0, 1.0, sampler.temperature), -1)


def _choose(p: "Tensor", sampler: Sampler, step: int) -> "Tensor":
    """The token at which the distribution function passes the row's number, in vocabulary order."""
    if sampler.nucleus:
        p = _nucleus(p, sampler.top_p)
    if sampler.floor:
        p = p.masked_fill(p < sampler.min_p * p.amax(-1, keepdim=True), 0.0)
    cdf = p.double().cumsum(-1)
    passed = cdf <= sampler.uniforms[:, step : step + 1] * cdf[:, -1:]
    return passed.sum(-1).clamp_(max=p.shape[-1] - 1)


def _nucleus(p: "Tensor", top_p: "Tensor") -> "Tensor":
    """The smallest set of likeliest tokens that holds `top_p` of the mass (Holtzman et al. 2020, arXiv:1904.09751)."""
    ranked, order = p.sort(dim=-1, descending=True, stable=True)
    outside = ranked.double().cumsum(-1) - ranked >= top_p
    return p.masked_fill(outside.scatter(-1, order, outside), 0.0)
