"""The parameters of a low-rank adapter; what is done with them is in weights.py."""

from pydantic import Field, PositiveFloat, PositiveInt

from tasks.core.plugin import Params


class Lora(Params):
    """A low-rank adapter on all linear layers (Hu et al. 2021, arXiv:2106.09685)."""

    rank: PositiveInt = 16
    """Rank r of the factors B (out × r) and A (r × in), whose product is added to a layer's matrix."""
    alpha: PositiveFloat = 32.0
    """α: the product is scaled by α / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability with which an input of the adapter is zeroed in training."""
    merge: bool = True
    """Merge it into the weights when the training ends. If not, the round's model is the adapter alone, on the base of
    its line: a few megabytes for a model of any size, which engine vllm serves beside the base without merging. A round
    whose start is such an adapter keeps both as one, so the rank grows by `rank` with every round.
    What is trained differs too where one step follows another: `sft_dpo` goes on in DPO with the adapter that SFT made,
    of which merging makes a new one on top of the merged weights."""
