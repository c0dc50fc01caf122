"""Supervised fine-tuning on what the round kept, by TRL's SFTTrainer with Muon on the matrices."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from pydantic import Field, PositiveFloat, PositiveInt

from tasks.domains import Domain
from tasks.stage import Params
from tasks.train import CURVE, Training

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Lora(Params):
    """A low-rank adapter on all linear layers (Hu et al. 2021, arXiv:2106.09685), merged when the training ends."""

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    dropout: float = Field(0.0, ge=0, lt=1)


class SFT(Training):
    """Supervised fine-tuning: the loss is over the completions' tokens."""

    epochs: PositiveInt = 2
    """Passes over the rows."""
    batch: PositiveInt = 48
    """Rows a step; batches hold rows of like length."""
    matrices: PositiveFloat = 0.004
    """Peak learning rate of Muon, on the hidden matrices (with an adapter: on its factors)."""
    rest: PositiveFloat = 0.0005
    """Peak learning rate of AdamW, on embeddings, norms and the head."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps in which the learning rates rise; then they fall to zero, linearly."""
    blend: float = Field(1.0, gt=0, le=1)
    """How far to go from the parent's weights to the trained ones; below 1 the two are averaged (Wortsman et al. 2022,
    arXiv:2109.01903).
    """
    max_length: PositiveInt = 512
    """Longest prompt and completion together, in tokens."""
    adapter: Lora | None = None
    """Train a low-rank adapter in the place of all weights."""

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
        """Writes the fine-tuned model and gives the curve. Raises Diverged."""
        from tasks.training import load, save

        policy, tokenizer = load(parent_model)
        policy, curve = self.supervised(policy, tokenizer, rows, work / "sft", seed)
        save(policy, tokenizer, parent_model, model, self.blend)
        return pl.DataFrame(curve, schema=CURVE)

    def supervised(
        self, policy: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", rows: pl.DataFrame, work: Path, seed: int
    ) -> tuple["PreTrainedModel", list[dict[str, Any]]]:
        """Trains `policy` on the rows, going on from the checkpoints in `work`; the trained model and its curve."""
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        from tasks.training import MuonAdamW, arguments, fit, in_order, peft

        data = Dataset.from_list(rows.select("prompt", "completion").to_dicts())
        steps = -(-len(rows) * self.epochs // self.batch)
        config = SFTConfig(max_length=self.max_length, **arguments(work, steps, self.batch, seed, self.warmup))
        policy = peft(policy, self.adapter)
        optimizer = MuonAdamW(policy, self.matrices, self.rest)
        trainer = SFTTrainer(
            policy, config, train_dataset=data, processing_class=tokenizer, optimizers=(optimizer, None)
        )
        tokens = trainer.train_dataset
        order = in_order([len(ids) for ids in tokens["input_ids"]], self.batch, self.epochs, seed)
        trainer.train_dataset = tokens.select(order)
        return trainer.model, fit(trainer, "sft")
