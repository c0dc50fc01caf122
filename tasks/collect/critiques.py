"""Kept critiques."""

import polars as pl

from tasks.collect import CollectCase, Collecting, Rows, with_completion


class Critiques(Collecting):
    """Critiques that were kept, after the critic's own prompt, so that the model learns to criticise. Their group is the
    criticised response: critiques of one prompt's several answers have different prompts.
    """

    kept: bool = True
    """Only those that were kept; false takes every one with a verdict, whatever it led to: a control."""

    def __call__(self, case: CollectCase) -> Rows:
        """One row for each critique that is taken."""
        rows = case.critiques.filter(pl.col("kept") if self.kept else pl.col("error").is_null())
        rows = rows.select("prompt_id", "model", "prompt", response_id="id", text="critique", group="response_id")
        return Rows(with_completion(rows, "critiques"))
