"""Refinements that reached their target."""

import polars as pl

from tasks.collect import CollectCase, Collecting, Rows, after_prompt


class Refinements(Collecting):
    """Successful refinements, one a critique (the first), as answers to the bare problem, as the loop of AutoMathCritique
    does (Xi et al. 2024, arXiv:2411.16579). No judge scored them, so they have no reward.
    """

    successful: bool = True
    """Only those that reached the target; false takes every one with an answer, and so one a critique by lot: a control."""

    def __call__(self, case: CollectCase) -> Rows:
        """One row for each critique of which a refinement is taken, each text once a problem."""
        taken = pl.col("success") if self.successful else pl.col("error").is_null()
        rows = case.refinements.filter(taken).sort("critique_id", "sample", "id")
        rows = rows.unique("critique_id", keep="first", maintain_order=True)
        rows = rows.unique(["prompt_id", "response"], keep="first", maintain_order=True)
        rows = rows.select("prompt_id", "model", response_id="id", text="response")
        return Rows(after_prompt(case.prompts, rows, "refinements"))
