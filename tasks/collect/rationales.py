"""Right and wrong answers, each with a tag that says which it is."""

import polars as pl

from tasks.collect import CollectCase, Collecting, Rows, after_prompt
from tasks.collect._verdicts import judged
from tasks.core.frames import ids

CORRECT, INCORRECT = "[CORRECT RATIONALE]", "[INCORRECT RATIONALE]"


class Rationales(Collecting):
    """Right and wrong rationales of a problem as separate rows, each with a tag before its text, `[CORRECT RATIONALE]` or
    `[INCORRECT RATIONALE]`: rows for mistake tuning (Tong et al. 2024, arXiv:2403.20046). Equal texts of a problem are one
    row. The round's judge says which are right; the paper has gold labels.
    """

    min_reward: float | None = None
    """Reward from which an answer is right, in the reward's own units; null takes the reward judge's verdict, and leaves out
    answers of which it said neither pass nor fail."""

    def __call__(self, case: CollectCase) -> Rows:
        """One row for each text of a problem that was judged, the first response's."""
        texts = judged(case, self.min_reward).sort("response_id")
        texts = texts.unique(["prompt_id", "text"], keep="first", maintain_order=True)
        rows = after_prompt(case.prompts, texts, "responses")
        tag = pl.when("label").then(pl.lit(CORRECT)).otherwise(pl.lit(INCORRECT))
        rows = rows.with_columns(tag=tag)  # with the tag it is another text, and so another row
        return Rows(rows.with_columns(ids(pl.lit("training"), "tag", "prompt_id", "response_id", "text")))
