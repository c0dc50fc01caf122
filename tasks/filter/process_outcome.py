"""Balances right and wrong responses, the right ones by their process and the wrong ones against it."""

from typing import Any, ClassVar

import polars as pl
from pydantic import PositiveInt

from tasks.filter import NO_MARGIN, FilterCase, Filtering, drop, drop_duplicates


class ProcessOutcome(Filtering):
    """Keeps of each prompt the correct responses of the highest process score and the incorrect ones of the lowest,
    about as many of each: PROF (Ye et al. 2025, arXiv:2509.03403). The others are dropped until `per_prompt` are left.

    Correct is what reaches `min_reward`. Each class has half of the `per_prompt` places and takes what the other leaves
    free; an odd place goes to the correct ones.

    Incorrect responses are kept for methods that learn from negatives (`collect.labelled`): `collect.answers` would
    imitate them. Correct ones come first, so a prompt's target is never an incorrect one; our reading is that of a
    prompt without a correct response nothing is kept, which has no advantage to learn from either.
    """

    example: ClassVar[dict[str, Any]] = {"process": "verifier", "per_prompt": 4}

    process: str
    """The judge whose score is the process score; the paper's is the mean over the steps, as by `steps` with `by: mean`. A
    response without its score is dropped with the reason `no_judge/NAME`."""
    min_reward: float = 0.5
    """Reward from which a response is correct, in the reward's own units."""
    per_prompt: PositiveInt = 8
    """Most responses kept a prompt, of both classes together."""
    correct_only: bool = False
    """Choose by process score among the correct ones alone, for process scores that are not trusted on incorrect ones. Those
    that stay are then the first by id, a hash of content, with or without a process score."""

    def per_prompt_only(self) -> bool:
        """Always."""
        return True

    def __call__(self, case: FilterCase) -> pl.LazyFrame:
        """The margin of a kept row is the reward's distance to `min_reward`. One dropped as `process` misses by places;
        `no_correct` is an incorrect response to a prompt without a correct one.
        """
        process = case.judgments.filter(pl.col("member") == self.process).select(id="response_id", process="score")
        rows = self.usable(case).join(process, on="id", how="left")
        rows = rows.with_columns(correct=pl.col("score") >= self.min_reward)
        unscored = pl.col("process").is_null() & (pl.col("correct") | (not self.correct_only))
        rows = self._distinct(drop(rows, {f"no_judge/{self.process}": (unscored, NO_MARGIN)}))
        rows = drop(rows, {"no_correct": (_count(pl.col("correct")) == 0, NO_MARGIN)})
        rows = drop(rows, {"process": (pl.col("place") > self._room(), pl.col("place") - self._room())})
        margin = pl.when(pl.col("reason").is_null()).then((pl.col("score") - self.min_reward).abs()).otherwise("margin")
        return rows.with_columns(margin=margin)

    def _distinct(self, rows: pl.LazyFrame) -> pl.LazyFrame:
        """Correct ones first, each class from the first to keep, with its `place` there; duplicates are dropped."""
        sign = pl.when("correct").then(pl.col("process")).otherwise(-pl.col("process"))
        merit = pl.when(pl.col("correct") | (not self.correct_only)).then(sign)
        by, down = ["prompt_id", "correct", "merit", "id"], [False, True, True, False]
        rows = rows.with_columns(merit=merit, text=self.identity()).sort(by, descending=down, nulls_last=True)
        rows = drop_duplicates(rows)
        return rows.with_columns(place=pl.col("reason").is_null().cum_sum().over("prompt_id", "correct").cast(pl.Int64))

    def _room(self) -> pl.Expr:
        """Places of the row's class."""
        correct, incorrect = _count(pl.col("correct")), _count(~pl.col("correct"))
        half = pl.lit(self.per_prompt // 2)
        room = pl.min_horizontal(correct, self.per_prompt - pl.min_horizontal(incorrect, half))
        return pl.when("correct").then(room).otherwise(self.per_prompt - room)


def _count(which: pl.Expr) -> pl.Expr:
    """How many of a prompt's rows that no rule dropped."""
    return (which & pl.col("reason").is_null()).sum().over("prompt_id").cast(pl.Int64)
