"""Supervised fine-tuning, then direct preference optimization on the collected pairs, by TRL's trainers."""

from typing import Any, ClassVar

import polars as pl
from pydantic import PositiveFloat, PositiveInt

from tasks.train import CURVE, Steps, TrainCase
from tasks.train._pairs import Preferring


class SFTThenDPO(Preferring):
    """SFT on the kept rows, then DPO on the pairs (Rafailov et al. 2023, arXiv:2305.18290) with an SFT term on the
    chosen answers (Pang et al. 2024, arXiv:2404.19733). Either step is left out when there is nothing to learn from.
    """

    used_columns: ClassVar[frozenset[str]] = frozenset({
        "training.weight", "training.mask", "training.tag", "preferences.weight", "preferences.smoothing",
    })  # fmt: skip

    dpo_batch: PositiveInt = 32
    """Pairs a step."""
    dpo_epochs: PositiveInt = 1
    """Passes over the pairs."""
    dpo_muon_lr: PositiveFloat | None = 0.0005
    """Peak learning rate of Muon in the DPO step; null leaves all to AdamW."""
    dpo_adamw_lr: PositiveFloat = 0.00005
    """Peak learning rate of AdamW in the DPO step."""

    @property
    def pair_steps(self) -> Steps:
        """Those of the pairs."""
        return Steps(self.dpo_epochs, self.dpo_batch, self.dpo_muon_lr, self.dpo_adamw_lr)

    def __call__(self, case: TrainCase) -> pl.DataFrame:
        """Writes the fine-tuned model and gives the curve of both steps. Raises Diverged, and ModelRefused as `weights.load`
        and for a reference that reads other tokens.
        """
        from tasks.training.weights import save

        policy, tokenizer = self.load(case)
        curve: list[dict[str, Any]] = []
        if len(case.training):
            policy, curve = self.supervised(policy, tokenizer, case.training, case.work / "sft", case.seed)
        if len(case.preferences):
            policy, more = self.preferred(policy, tokenizer, case)
            curve += more
        save(policy, tokenizer, case.start, case.model, self.blend, self.adapter)
        return pl.DataFrame(curve, schema=CURVE)
