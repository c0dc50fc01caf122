"""How much better an answer is than the one that the model would most likely give."""

from typing import ClassVar

import polars as pl

from tasks.core.judging import COLUMNS, JudgeCase
from tasks.judge.self_judge import SelfJudge


class Gap(SelfJudge):
    """How much better the answer is graded than the prompt's likeliest one: the quality gap of PIT (Wang et al. 2023,
    arXiv:2310.00898), whose reward model rates an answer against a reference answer to the same problem.

    Our reading: both are graded by the domain's judge prompt, as by `self_judge`, and the reference is the prompt's
    likeliest answer. The score is ½ + ½·(grade of the answer − grade of the reference): ½ for the reference itself,
    above for what is better. The paper trains a reward model on pairs instead.
    """

    auditable: ClassVar[bool] = False

    def __call__(self, case: JudgeCase) -> pl.LazyFrame:
        """Scores in [0, 1] that only rank; an answer is an error where it or the reference has no grade. `rationale` is the
        answer's first judgment.
        """
        grades = super().__call__(case)
        likeliest = self.model_copy(update={"likeliest": 1})._candidates(case).select(response_id="id")
        of_prompt = grades.join(likeliest, on="response_id", how="semi").group_by("prompt_id")
        reference = of_prompt.agg(pl.col("score").first().alias("base"), pl.col("error").first().alias("why"))
        # equal texts have equal grades: any row stands for them
        rows = grades.join(reference, on="prompt_id", how="left").with_columns(
            score=0.5 + (pl.col("score") - pl.col("base")) / 2,
            verdict=pl.lit(None, pl.String),
            error=pl.coalesce("error", "the reference answer: " + pl.col("why")),
        )
        return rows.select(COLUMNS)
