"""Direct preference optimization on the collected pairs alone, by TRL's DPOTrainer with Muon on the matrices."""

from typing import ClassVar

import polars as pl
from pydantic import Field, PositiveFloat, PositiveInt

from tasks.train import CURVE, TrainCase
from tasks.train._pairs import Preferring


class DPO(Preferring):
    """Trains on preference pairs alone, the chosen answer against the rejected one: DPO, direct preference optimization
    (Rafailov et al. 2023, arXiv:2305.18290). With Δ = [log π(y_w) − log π_ref(y_w)] − [log π(y_l) − log π_ref(y_l)], sums over
    tokens, the loss of a step is the mean over its pairs of w · [−(1−ε) log σ(βΔ) − ε log σ(−βΔ)], w and ε the pair's weight
    and smoothing.

    The reference may be a soup of ancestors, as in SALSA (Chegini et al. 2024, arXiv:2411.01798), whose KL term of PPO is held
    to the average of two SFT models. That DPO is held to one is our reading.
    """

    learns_from_training: ClassVar[bool] = False
    can_be_sharded: ClassVar[bool] = True
    used_columns: ClassVar[frozenset[str]] = frozenset({"preferences.weight", "preferences.smoothing"})

    epochs: PositiveInt = 1
    """Passes over the pairs."""
    batch: PositiveInt = 32
    """Pairs a step; batches hold pairs of like length."""
    muon_lr: PositiveFloat | None = 0.0005
    """Peak learning rate of Muon, on the hidden matrices (with an adapter: on its factors); null trains them by AdamW, too."""
    adamw_lr: PositiveFloat = 0.00005
    """Peak learning rate of AdamW, on embeddings, norms and the head."""
    chosen: float = Field(0.0, ge=0)
    """Weight of an SFT term on the chosen answers (Pang et al. 2024, arXiv:2404.19733)."""

    def __call__(self, case: TrainCase) -> pl.DataFrame:
        """Writes the trained model and gives the curve. Raises Diverged, and ModelRefused as `weights.load` and for a
        reference that reads other tokens.
        """
        from tasks.training.weights import save

        policy, tokenizer = self.load(case)
        policy, curve = self.preferred(policy, tokenizer, case)
        save(policy, tokenizer, case.start, case.model, self.blend, self.adapter)
        return pl.DataFrame(curve, schema=CURVE)
