"""Supervised fine-tuning on what the round kept, by TRL's SFTTrainer with Muon on the matrices."""

from pathlib import Path

import polars as pl

from tasks.domains import Domain
from tasks.train import CURVE, FineTuning


class SFT(FineTuning):
    """Supervised fine-tuning: the loss is over the completions' tokens."""

    def __call__(
        self,
        rows: pl.DataFrame,
        pairs: pl.DataFrame,
        *,
        parent_model: Path,
        model: Path,
        work: Path,
        seed: int,
        domain: Domain,
    ) -> pl.DataFrame:
        """Writes the fine-tuned model and gives the curve. Raises Diverged, and ModelRefused as `training.load`."""
        from tasks.training import load, save

        policy, tokenizer = load(parent_model, self.adapter, seed)
        policy, curve = self.supervised(policy, tokenizer, rows, work / "sft", seed)
        save(policy, tokenizer, parent_model, model, self.blend, self.adapter)
        return pl.DataFrame(curve, schema=CURVE)
