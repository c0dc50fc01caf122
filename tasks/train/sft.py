"""Supervised fine-tuning on the collected rows, by TRL's SFTTrainer with Muon on the matrices."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import polars as pl
from pydantic import PositiveInt, model_validator

from tasks.train import CURVE, FineTuning, TrainCase

if TYPE_CHECKING:
    from tasks.training.loop import Schedule
    from tasks.training.weighted import RowTrainer


class SFT(FineTuning):
    """Supervised fine-tuning on the collected rows. The loss of a step is Σ_rows w Σ_tokens −log p / tokens, over the tokens of
    the completions that no mask touches; w is the row's weight and does not enter the tokens, so that a row of weight 2
    counts twice. On answers that passed it is rejection-sampling fine-tuning (STaR, Zelikman et al. 2022, arXiv:2203.14465).
    """

    on_several_devices: ClassVar[bool] = True
    can_be_sharded: ClassVar[bool] = True
    used_columns: ClassVar[frozenset[str]] = frozenset({"training.weight", "training.mask", "training.tag"})

    schedule: Literal["linear", "wsd", "infinite"] = "linear"
    """After the warm-up, `linear` falls to zero. `wsd` (warm-up, stable, decay; Hu et al. 2024, arXiv:2404.06395) stays at
    the peak, and falls in the last `decay` of the steps as peak · 0.1^(part of the decay that is over). A round with `wsd`
    after another one goes on from the decayed weights, which is WSD-S (Wen et al. 2024, arXiv:2410.05192). `infinite` is
    `wsd` that keeps the weights from before the decay beside the model, in `trunk/`; a next round with `infinite` goes on
    from these, so that rounds share one trunk, each with a decay branch of its own (Hägele et al. 2024, arXiv:2405.18392).
    Our reading: the exponential decay ends at a tenth; and weights alone go on, so that each round warms up anew."""

    replay_interval: PositiveInt | None = None
    """Steps of new rows between two steps of replayed ones, which then are steps of their own; null mixes them. An old row
    comes back when the interval is over, and rests in between (recall intervals of the view-batch model, Kang et al. 2025,
    arXiv:2503.18371; there augmented views of an image share a step, and the spacing of whole steps is our reading)."""

    @model_validator(mode="after")
    def _check_trunk(self) -> Self:
        if self.schedule == "infinite" and self.adapter is not None:
            raise ValueError("schedule is infinite, whose trunk has all weights; leave the adapter out, or take wsd")
        return self

    def __call__(self, case: TrainCase) -> pl.DataFrame:
        """Writes the fine-tuned model and gives the curve. Raises Diverged, and ModelRefused as `weights.load`."""
        from tasks.training.trunk import keep, trunk_of
        from tasks.training.weights import save

        start, work = case.start, case.work / "sft"
        if self.schedule == "infinite":
            start = trunk_of(start)
        policy, tokenizer = self.load(replace(case, start=start))
        policy, curve = self.supervised(policy, tokenizer, case.training, work, case.seed)
        save(policy, tokenizer, start, case.model, self.blend, self.adapter)
        if self.schedule == "infinite":
            keep(work, tokenizer, start, case.model)
        return pl.DataFrame(curve, schema=CURVE)

    def row_order(self, rows: pl.DataFrame, lengths: list[int], schedule: "Schedule") -> list[int]:
        """Indices of the rows, which have so many tokens, as their steps take them."""
        from tasks.training.loop import at_intervals

        if self.replay_interval is None:
            return super().row_order(rows, lengths, schedule)
        return at_intervals(lengths, rows["source"].eq_missing("replay").to_list(), schedule, self.replay_interval)

    def watch(self, trainer: "RowTrainer", schedule: "Schedule") -> None:
        """Keeps the trunk."""
        from tasks.training.trunk import keeper

        if self.schedule == "infinite":
            work, words = Path(trainer.args.output_dir), trainer.processing_class
            trainer.add_callback(keeper(trainer.model, words, work, schedule.trunk_steps))
