"""Negative-aware fine-tuning: from right and wrong answers, without a reward model or a reference in memory."""

from typing import ClassVar, Literal

import polars as pl
from pydantic import PositiveFloat, PositiveInt

from tasks.train import CURVE, FineTuning, TrainCase
from tasks.train._labels import check_labels

LOWEST_RATE, HIGHEST_RATE = 0.02, 0.98


class NFT(FineTuning):
    """NFT (Chen et al. 2025, arXiv:2505.18116) on rows with a label and a group, such as `collect.labelled` gives. The loss is
    L = −Σ ω Σ_t [r log R_t + (1 − r) log max_v((1 − r̂R_t) / (1 − r̂), 1)]: r is the row's label, R_t = π/π_old of a token,
    its logarithm capped at 10, and r̂ the share of true labels in the row's group, kept within 0.02 and 0.98, so that a
    group without both labels counts too. π_old is the start, computed once before the first step; max_v the straight-through
    maximum. Formula and constants are those of the authors' code (NVlabs/NFT).

    Our reading: the loss of a step is divided by its tokens, as in SFT, where the code divides by 1,000; a row's weight
    multiplies it.
    """

    used_columns: ClassVar[frozenset[str]] = frozenset({
        "training.weight", "training.mask", "training.tag", "training.label",
    })  # fmt: skip

    epochs: PositiveInt = 1
    """Passes over the rows."""
    muon_lr: PositiveFloat = 0.0005
    """Peak learning rate of Muon, on the hidden matrices (with an adapter: on its factors)."""
    adamw_lr: PositiveFloat = 0.00005
    """Peak learning rate of AdamW, on embeddings, norms and the head."""
    emphasis: Literal["failures", "root"] = "failures"
    """ω, how much groups count that are hard: 1 − r̂ (`failures`), or √((1 − r̂) / r̂) (`root`)."""

    def __call__(self, case: TrainCase) -> pl.DataFrame:
        """Writes the trained model and gives the curve. Raises Diverged, ModelRefused as `weights.load`, and ParamsError for a
        row without a label or a group.
        """
        from tasks.training.loop import fit_in_order
        from tasks.training.negatives import NegativeTrainer
        from tasks.training.weights import load, save

        check_labels(self.strategy_name(), case.training, "label", "group")
        policy, tokenizer = load(case.start, self.adapter, case.seed)
        made = self.row_trainer(
            policy,
            tokenizer,
            with_rates(case.training),
            case.work / "nft",
            case.seed,
            NegativeTrainer,
            ("label", "rate"),
        )
        trainer, schedule = made
        trainer.emphasis = self.emphasis
        trainer.remember()
        lengths = [len(ids) for ids in trainer.train_dataset["input_ids"]]
        curve = fit_in_order(trainer, lengths, schedule, "nft")
        save(trainer.model, tokenizer, case.start, case.model, self.blend, self.adapter)
        return pl.DataFrame(curve, schema=CURVE)


def with_rates(rows: pl.DataFrame) -> pl.DataFrame:
    """With `rate`, the share of true labels in the row's group, within its bounds."""
    return rows.with_columns(rate=pl.col("label").mean().over("group").clip(LOWEST_RATE, HIGHEST_RATE))
