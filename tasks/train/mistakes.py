"""Mistake tuning: supervised fine-tuning on right and wrong rationales, each with a tag that says which it is."""

from typing import ClassVar

import polars as pl

from tasks.core.errors import ParamsError
from tasks.train import TrainCase
from tasks.train.sft import SFT


class MistakeTuning(SFT):
    """Supervised fine-tuning on right and wrong rationales as separate rows: mistake tuning (Tong et al. 2024,
    arXiv:2403.20046). Each text begins with the tag that `collect.rationales` gives, `[CORRECT RATIONALE]` or
    `[INCORRECT RATIONALE]`, and the loss is that of `sft`, over the tag too. That the tag opens the answer, and not the
    prompt, is our reading: the model says itself which of the two it is about to write.
    """

    used_columns: ClassVar[frozenset[str]] = SFT.used_columns | {"training.label"}

    def __call__(self, case: TrainCase) -> pl.DataFrame:
        """As `sft`. Raises ParamsError for a wrong answer without a tag, which would be learnt as if it were right."""
        bare = case.training.filter(~pl.col("label"), pl.col("tag").is_null())
        if len(bare):
            raise ParamsError(
                f"train: {len(bare)} rows of training from collect.{bare['member'][0]} have label false and no tag, and "
                "train.mistakes would learn them as right answers; collect them by collect.rationales"
            )
        return super().__call__(case)
