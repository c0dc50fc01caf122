"""Supervised fine-tuning on the collected rows, by TRL's SFTTrainer with Muon on the matrices."""

import polars as pl

from tasks.train import CURVE, FineTuning, TrainCase


class SFT(FineTuning):
    """Supervised fine-tuning: the loss is over the completions' tokens."""

    def __call__(self, case: TrainCase) -> pl.DataFrame:
        """Writes the fine-tuned model and gives the curve. Raises Diverged, and ModelRefused as `weights.load`."""
        from tasks.training.weights import load, save

        policy, tokenizer = load(case.start, self.adapter, case.seed)
        policy, curve = self.supervised(policy, tokenizer, case.training, case.work / "sft", case.seed)
        save(policy, tokenizer, case.start, case.model, self.blend, self.adapter)
        return pl.DataFrame(curve, schema=CURVE)
