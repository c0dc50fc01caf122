"""Supervised fine-tuning whose saved checkpoints are combined into one model."""

import logging
from typing import TYPE_CHECKING, Any, ClassVar, Self

import polars as pl
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from tasks.core.frames import seeds
from tasks.train import CURVE, FineTuning, TrainCase

if TYPE_CHECKING:
    from tasks.training.weighted import RowTrainer

log = logging.getLogger(__name__)


class Combine(FineTuning):
    """Supervised fine-tuning, and then the linear combination of the run's checkpoints with the lowest loss on rows that were
    held out: LCSC (Liu et al. 2024, arXiv:2404.02241, who combine diffusion and consistency models). The model is Σ a_k w_k
    over the checkpoints' weights w_k, with Σ a_k = 1 and negative a_k allowed. On the held-out rows it is never worse than
    the last checkpoint.

    Our reading: the score is the loss of `sft`, and the evolutionary search is scipy's differential evolution, which begins
    with the last checkpoint alone among its candidates.
    """

    used_columns: ClassVar[frozenset[str]] = frozenset({"training.weight", "training.mask", "training.tag"})

    held_out: float = Field(0.1, gt=0, lt=1)
    """Share of the rows that are not trained on, and by whose loss the coefficients are chosen: one row at least, and of a
    single row none."""
    bound: PositiveFloat = 1.0
    """Largest size of a coefficient; the last checkpoint's follows from the others."""
    generations: PositiveInt = 6
    """Generations of the search, of about 15 candidates each; a candidate costs a pass over the held-out rows."""

    @model_validator(mode="after")
    def _check_adapter(self) -> Self:
        if self.adapter is not None:
            raise ValueError(
                "combine averages whole weights, and products of factors do not average; leave the adapter out"
            )
        return self

    def __call__(self, case: TrainCase) -> pl.DataFrame:
        """Writes the combined model and gives the curve, with the loss on the held-out rows of the last checkpoint (step 0)
        and of the combination (step 1) as `held_out`. Raises Diverged, and ModelRefused as `weights.load`.
        """
        from tasks.training.loop import fit_in_order
        from tasks.training.rows import lengths
        from tasks.training.weights import load, save

        rows, held_out = split(case.training, self.held_out, case.seed)
        policy, tokenizer = load(case.start, None, case.seed)
        kept = held_out if len(held_out) else None
        trainer, schedule = self.row_trainer(
            policy, tokenizer, rows, case.work / "sft", case.seed, held_out=kept, save_total_limit=None
        )
        curve = fit_in_order(trainer, lengths(trainer.train_dataset, "input_ids"), schedule, "sft")
        if kept is not None:
            curve += self.combined(trainer, case.seed)
        save(trainer.model, tokenizer, case.start, case.model, self.blend)
        return pl.DataFrame(curve, schema=CURVE)

    def combined(self, trainer: "RowTrainer", seed: int) -> list[dict[str, Any]]:
        """Gives the trainer's policy the best combination; its part of the curve."""
        from tasks.training.combining import combine, held_out_loss

        before = held_out_loss(trainer)
        parts = combine(trainer, self.bound, self.generations, seed)
        losses = [before, held_out_loss(trainer)]
        log.info("coefficients of the checkpoints: %s; loss on held-out rows: %s", parts, losses)
        return [{"step": n, "phase": "combine", "name": "held_out", "value": round(v, 6)} for n, v in enumerate(losses)]


def split(rows: pl.DataFrame, share: float, seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows to train on, and the held-out ones, drawn by a hash of seed and id."""
    drawn = rows.sort(seeds(pl.lit("combine"), pl.lit(str(seed)), "id"))
    count = min(len(rows) - 1, max(1, round(share * len(rows))))
    return drawn[count:].sort("id"), drawn[:count].sort("id")
