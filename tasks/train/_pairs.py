"""What strategies that learn from pairs share: the reference, the trainer, the steps."""

from typing import TYPE_CHECKING, Any, ClassVar

import polars as pl
from pydantic import Field, PositiveFloat

from tasks.train import FineTuning, Steps, TrainCase
from tasks.train._reference import reference_model

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tasks.training.preferring import PairTrainer

KEYS = ("prompt_ids", "chosen_ids", "rejected_ids")
COLUMNS = ("prompt", *KEYS, "weight", "smoothing")


class Preferring(FineTuning):
    """Direct preference optimization on pairs, each with its weight and smoothing."""

    learns_from_preferences: ClassVar[bool] = True
    has_reference: ClassVar[bool] = True
    on_several_devices: ClassVar[bool] = True

    beta: PositiveFloat = 0.1
    """How strongly DPO holds to the reference, by default the model that this step begins with."""
    chosen: float = Field(1.0, ge=0)
    """Weight of the SFT term on the chosen answers."""
    smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Probability ε that a pair is the wrong way round: conservative DPO (Mitchell 2023; section 3 of Chowdhury et al. 2024,
    arXiv:2403.00409), with the loss −(1−ε) log σ(βΔ) − ε log σ(−βΔ). A pair may have an ε of its own; then ε is the
    probability that exactly one of the two turned it round."""

    @property
    def pair_steps(self) -> Steps:
        """Those of the pairs."""
        return self.steps

    def preferred(
        self, policy: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", case: TrainCase
    ) -> tuple["PreTrainedModel", list[dict[str, Any]]]:
        """Trains `policy` on the pairs; the trained model and its curve."""
        from tasks.training.loop import fit_in_order
        from tasks.training.rows import lengths
        from tasks.training.weights import peft

        if self.adapter is not None and self.adapter.merge:
            policy = peft(policy.merge_and_unload(), self.adapter, case.seed)
        reference = reference_model(case, tokenizer)
        trainer = self.dpo_trainer(policy, reference, tokenizer, case.preferences, case.work / "dpo", case.seed)
        self.prepare(trainer)
        if "ref" in getattr(policy, "peft_config", {}):
            # TRL's copy of the fresh adapter has done its work, and a checkpoint with two is resumed from this one
            policy.delete_adapter("ref")
        trainer.ref_model = None  # its log-probabilities are computed already
        sides = zip(*(lengths(trainer.train_dataset, key) for key in KEYS), strict=True)
        sizes = [prompt + max(chosen, rejected) for prompt, chosen, rejected in sides]
        schedule = self.schedule_of(len(case.preferences), self.pair_steps, case.seed)
        curve = fit_in_order(trainer, sizes, schedule, "dpo")
        return trainer.model, curve

    def dpo_trainer(
        self,
        policy: "PreTrainedModel",
        reference: "PreTrainedModel | None",
        tokenizer: "PreTrainedTokenizerBase",
        pairs: pl.DataFrame,
        work: "Path",
        seed: int,
    ) -> "PairTrainer":
        """A trainer with this loss, which has the reference's log-probabilities of all pairs. The reference None is
        `policy` as it is now.
        """
        from trl import DPOConfig

        from tasks.training.loop import on_one_device
        from tasks.training.rows import FOLDER, PIECE, on_disk
        from tasks.training.tokens import pair_tokens

        steps = self.pair_steps
        schedule = self.schedule_of(len(pairs), steps, seed)
        settings = self.settings_of(work, schedule, steps)
        config = DPOConfig(**settings, beta=self.beta, precompute_ref_log_probs=True)
        kind, further = self.pair_trainer()
        rows = (pair_tokens(piece, tokenizer).select(COLUMNS) for piece in pairs.iter_slices(PIECE))
        return kind(
            policy,
            reference,
            on_one_device(config),
            train_dataset=on_disk(rows, work / FOLDER),
            processing_class=tokenizer,
            optimizers=self.optimizers_of(policy, schedule, steps),
            smoothing=self.smoothing,
            chosen=self.chosen,
            **further,
        )

    def pair_trainer(self) -> tuple[type["PairTrainer"], dict[str, Any]]:
        """The kind of trainer, and its further settings."""
        from tasks.training.preferring import PairTrainer

        return PairTrainer, {}

    def prepare(self, trainer: "PairTrainer") -> None:
        """Computes what the loss needs of the reference beside the log-probabilities of the pairs: here nothing."""
