"""Negative-aware fine-tuning: learns from right and wrong answers, with no reward model and no reference in memory."""

from typing import ClassVar, Literal

import polars as pl
from pydantic import PositiveFloat, PositiveInt

from tasks.train import CURVE, FineTuning, TrainCase
from tasks.train._labels import check_labels

LOWEST_RATE, HIGHEST_RATE = 0.02, 0.98


class NFT(FineTuning):
    """Raises the likelihood of right answers, and lowers that of wrong ones through the policy that they imply, hard prompts
    first: NFT (Chen et al. 2025, arXiv:2505.18116) on rows with a label and a group, such as `collect.labelled` gives.

    The loss of a step is −Σ_rows w ω Σ_t [r log R_t + (1 − r) log max_v((1 − r̂R_t) / (1 − r̂), 1)] / tokens. r is the row's label
    and w its weight. R_t = π/π_old is the ratio of a token's likelihoods, its logarithm capped at 10; π_old is the start,
    computed once before the first step. r̂ is the share of true labels in the row's group, clamped to 0.02 … 0.98, so a group
    with one label only counts too. max_v is the straight-through maximum: its gradient is that of its first argument.
    Formula and constants are those of the authors' code (NVlabs/NFT), which divides by 1,000 in the place of the tokens.
    """

    on_several_devices: ClassVar[bool] = True
    used_columns: ClassVar[frozenset[str]] = frozenset({
        "training.weight", "training.mask", "training.tag", "training.label",
    })  # fmt: skip

    epochs: PositiveInt = 1
    """Passes over the rows."""
    muon_lr: PositiveFloat | None = 0.0005
    """Peak learning rate of Muon, on the hidden matrices (with an adapter: on its factors); null trains them by AdamW, too."""
    adamw_lr: PositiveFloat = 0.00005
    """Peak learning rate of AdamW, on embeddings, norms and the head."""
    emphasis: Literal["failures", "root"] = "failures"
    """ω, the weight of a group, higher for hard prompts: 1 − r̂ (`failures`), or √((1 − r̂) / r̂) (`root`)."""

    def __call__(self, case: TrainCase) -> pl.DataFrame:
        """Writes the trained model and gives the curve. Raises Diverged, ModelRefused as `weights.load`, and ParamsError for a
        row without a label or a group.
        """
        from tasks.training.loop import fit_in_order
        from tasks.training.negatives import NegativeTrainer
        from tasks.training.rows import lengths
        from tasks.training.weights import save

        check_labels(self.strategy_name(), case.training, "label", "group")
        policy, tokenizer = self.load(case)
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
        curve = fit_in_order(trainer, lengths(trainer.train_dataset, "input_ids"), schedule, "nft")
        save(trainer.model, tokenizer, case.start, case.model, self.blend, self.adapter)
        return pl.DataFrame(curve, schema=CURVE)


def with_rates(rows: pl.DataFrame) -> pl.DataFrame:
    """With `rate`, the share of true labels in the row's group, within its bounds."""
    return rows.with_columns(rate=pl.col("label").mean().over("group").clip(LOWEST_RATE, HIGHEST_RATE))
