"""Kept answers."""

import polars as pl

from tasks.collect import CollectCase, Collecting, Rows, after_prompt


class Answers(Collecting):
    """Answers that the filter kept, after their problem's prompt, with the reward that the round's judge gave."""

    def __call__(self, case: CollectCase) -> Rows:
        """One row for each kept response."""
        kept = case.filtered.filter("kept").select("id")
        rewards = case.judgments.filter("reward").select(id="response_id", reward="score")
        rows = case.responses.join(kept, on="id", how="semi").join(rewards, on="id", how="left")
        rows = rows.select("prompt_id", "model", "reward", response_id="id", text="response")
        return Rows(after_prompt(case.prompts, rows, "responses").with_columns(pl.col("reward").cast(pl.Float64)))
