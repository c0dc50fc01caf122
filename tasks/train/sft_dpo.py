"""Supervised fine-tuning, then direct preference optimization on the round's pairs, by TRL's trainers."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import polars as pl
from pydantic import Field, PositiveFloat, PositiveInt

from tasks.domains import Domain
from tasks.train import CURVE, FineTuning

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class SFTThenDPO(FineTuning):
    """SFT on the kept rows, then DPO on the pairs (Rafailov et al. 2023, arXiv:2305.18290) with an SFT term on the
    chosen answers (Pang et al. 2024, arXiv:2404.19733). Either step is left out when there is nothing to learn from.
    """

    learns_from_pairs: ClassVar[bool] = True

    beta: PositiveFloat = 0.1
    """How strongly DPO holds to the reference, the model after SFT."""
    chosen: float = Field(1.0, ge=0)
    """Weight of the SFT term on the chosen answers."""
    smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of the pairs taken to be the wrong way round (Mitchell 2023)."""
    pairs_batch: PositiveInt = 32
    """Pairs a step."""
    pairs_epochs: PositiveInt = 1
    """Passes over the pairs."""
    pairs_matrices: PositiveFloat = 0.0005
    """Peak learning rate of Muon in the DPO step."""
    pairs_rest: PositiveFloat = 0.00005
    """Peak learning rate of AdamW in the DPO step."""

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
        """Writes the fine-tuned model and gives the curve of both steps. Raises Diverged, and ModelRefused as `training.load`."""
        from tasks.training import load, save

        policy, tokenizer = load(parent_model, self.adapter, seed)
        curve: list[dict[str, Any]] = []
        if len(rows):
            policy, curve = self.supervised(policy, tokenizer, rows, work / "sft", seed)
        if len(pairs):
            policy, more = self.preferred(policy, tokenizer, pairs, work / "dpo", seed)
            curve += more
        save(policy, tokenizer, parent_model, model, self.blend, self.adapter)
        return pl.DataFrame(curve, schema=CURVE)

    def preferred(
        self,
        policy: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        pairs: pl.DataFrame,
        work: Path,
        seed: int,
    ) -> tuple["PreTrainedModel", list[dict[str, Any]]]:
        """Trains `policy` on the pairs; the trained model and its curve."""
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer

        from tasks.training import MuonAdamW, arguments, fit, in_order, peft

        wanted = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in pairs.to_dicts()]
        lengths = [sum(len(turn["content"]) for key in row for turn in row[key]) for row in wanted]
        order = in_order(lengths, self.pairs_batch, self.pairs_epochs, seed)
        steps = -(-len(order) // self.pairs_batch)
        config = DPOConfig(
            beta=self.beta,
            label_smoothing=self.smoothing,
            loss_type=["sigmoid", "sft"] if self.chosen else ["sigmoid"],
            loss_weights=[1.0, self.chosen] if self.chosen else None,
            max_length=self.max_length,
            precompute_ref_log_probs=True,
            **arguments(work, steps, self.pairs_batch, seed, self.warmup),
        )
        if self.adapter is not None and self.adapter.merge:
            policy = peft(policy.merge_and_unload(), self.adapter, seed)
        optimizer = MuonAdamW(policy, self.pairs_matrices, self.pairs_rest)
        data = Dataset.from_list([wanted[i] for i in order])
        trainer = DPOTrainer(
            policy, args=config, train_dataset=data, processing_class=tokenizer, optimizers=(optimizer, None)
        )
        if "ref" in getattr(policy, "peft_config", {}):
            # TRL's copy of the fresh adapter has done its work, and a checkpoint with two is resumed from this one
            policy.delete_adapter("ref")
        return trainer.model, fit(trainer, "dpo")
