"""Supervised fine-tuning, then direct preference optimization on the collected pairs, by TRL's trainers."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import polars as pl
from pydantic import Field, PositiveFloat, PositiveInt

from tasks.core.errors import ModelRefused
from tasks.train import CURVE, FineTuning, TrainCase

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import DPOTrainer


class SFTThenDPO(FineTuning):
    """SFT on the kept rows, then DPO on the pairs (Rafailov et al. 2023, arXiv:2305.18290) with an SFT term on the
    chosen answers (Pang et al. 2024, arXiv:2404.19733). Either step is left out when there is nothing to learn from.
    """

    learns_from_preferences: ClassVar[bool] = True

    beta: PositiveFloat = 0.1
    """How strongly DPO holds to the reference, by default the model after SFT."""
    chosen: float = Field(1.0, ge=0)
    """Weight of the SFT term on the chosen answers."""
    smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Probability ε that a pair is the wrong way round: conservative DPO (Mitchell 2023; section 3 of Chowdhury et al. 2024,
    arXiv:2403.00409), with the loss −(1−ε) log σ(βΔ) − ε log σ(−βΔ)."""
    dpo_batch: PositiveInt = 32
    """Pairs a step."""
    dpo_epochs: PositiveInt = 1
    """Passes over the pairs."""
    dpo_muon_lr: PositiveFloat = 0.0005
    """Peak learning rate of Muon in the DPO step."""
    dpo_adamw_lr: PositiveFloat = 0.00005
    """Peak learning rate of AdamW in the DPO step."""

    def __call__(self, case: TrainCase) -> pl.DataFrame:
        """Writes the fine-tuned model and gives the curve of both steps. Raises Diverged, and ModelRefused as `weights.load`
        and for a reference that reads other tokens.
        """
        from tasks.training.weights import load, save

        policy, tokenizer = load(case.start, self.adapter, case.seed)
        curve: list[dict[str, Any]] = []
        if len(case.training):
            policy, curve = self.supervised(policy, tokenizer, case.training, case.work / "sft", case.seed)
        if len(case.preferences):
            policy, more = self.preferred(policy, tokenizer, case)
            curve += more
        save(policy, tokenizer, case.start, case.model, self.blend, self.adapter)
        return pl.DataFrame(curve, schema=CURVE)

    def preferred(
        self, policy: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", case: TrainCase
    ) -> tuple["PreTrainedModel", list[dict[str, Any]]]:
        """Trains `policy` on the pairs; the trained model and its curve."""
        from tasks.training.loop import fit, in_order
        from tasks.training.weights import peft

        if self.adapter is not None and self.adapter.merge:
            policy = peft(policy.merge_and_unload(), self.adapter, case.seed)
        reference = _reference(case.reference, tokenizer) if case.reference else None
        trainer = self.dpo_trainer(policy, reference, tokenizer, case.preferences, case.work / "dpo", case.seed)
        if "ref" in getattr(policy, "peft_config", {}):
            # TRL's copy of the fresh adapter has done its work, and a checkpoint with two is resumed from this one
            policy.delete_adapter("ref")
        trainer.ref_model = None  # its log-probabilities are computed already
        pairs = trainer.train_dataset
        lengths = [len(p) + max(len(c), len(r)) for p, c, r in zip(*(pairs[k] for k in KEYS), strict=True)]
        trainer.train_dataset = pairs.select(in_order(lengths, self.dpo_batch, self.dpo_epochs, case.seed))
        return trainer.model, fit(trainer, "dpo")

    def dpo_trainer(
        self,
        policy: "PreTrainedModel",
        reference: "PreTrainedModel | None",
        tokenizer: "PreTrainedTokenizerBase",
        pairs: pl.DataFrame,
        work: Path,
        seed: int,
    ) -> "DPOTrainer":
        """A trainer with this loss, which has the reference's log-probabilities of all pairs. The reference None is
        `policy` as it is now.
        """
        from datasets import Dataset
        from trl import DPOConfig

        from tasks.training.loop import Schedule, arguments, on_one_device
        from tasks.training.optimizer import MuonAdamW
        from tasks.training.preferring import PairTrainer

        schedule = Schedule(len(pairs), self.dpo_epochs, self.dpo_batch, self.micro_batch, self.warmup, seed)
        config = DPOConfig(
            **arguments(work, schedule),
            beta=self.beta,
            label_smoothing=self.smoothing,
            precompute_ref_log_probs=True,
            gradient_checkpointing=self.gradient_checkpointing,
            **self.loss(),
        )
        return PairTrainer(
            policy,
            reference,
            on_one_device(config),
            train_dataset=Dataset.from_list(pairs.select("prompt", "chosen", "rejected").to_dicts()),
            processing_class=tokenizer,
            optimizers=(MuonAdamW(policy, self.dpo_muon_lr, self.dpo_adamw_lr), None),
        )

    def loss(self) -> dict[str, list[Any]]:
        """The loss in TRL's terms. Its `sigmoid` knows no smoothing; its `robust` is [(1−ε) s − ε f] / (1−2ε) of the losses s
        of a pair and f of the same pair turned round, so that 2(1−ε) s − (1−2ε) robust = (1−ε) s + ε f.
        """
        terms = {"sigmoid": 1.0}
        if self.smoothing:
            terms = {"sigmoid": 2 * (1 - self.smoothing), "robust": -(1 - 2 * self.smoothing)}
        if self.chosen:
            terms["sft"] = self.chosen
        return {"loss_type": list(terms), "loss_weights": list(terms.values())}


KEYS = ("prompt_ids", "chosen_ids", "rejected_ids")


def _reference(folder: Path, tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedModel":
    from tasks.training.weights import load

    reference, words = load(folder)
    if words.get_vocab() != tokenizer.get_vocab():
        raise ModelRefused(
            f"{folder}: the reference has another vocabulary than the start, so their log-probabilities cannot be "
            "compared; set train.reference to a model of the same line"
        )
    return reference
