"""The better of two turns against the worse."""

from typing import Any, ClassVar

import polars as pl

from tasks.pair import PairCase, Pairing


class TwoTurn(Pairing):
    """Pairs the two turns of an answer of which one is right and one wrong, the right one chosen: self-correction
    learning (SCL, He et al. 2024, arXiv:2410.04055). Both right or both wrong is no pair. The pair's prompt is the
    original question, so that no second turn is needed at inference.

    Right is what equals the target. A turn without an answer is an error and in no pair. A second turn has no reward of its
    own: its score is the best reward of a response with the same answer, and 0, as of a vote that nobody gave, where no
    response has it (our reading). So a reward that is not positive for right answers learns from second turns that repeat
    another response's mistake alone.
    """

    example: ClassVar[dict[str, Any]] = {"member": None}

    member: str | None = "two_turn"
    """The member of `critique` whose refinements are the second turns; null takes all members'."""

    def per_prompt_only(self) -> bool:
        """Always."""
        return True

    def __call__(self, case: PairCase) -> pl.LazyFrame:
        """One candidate for each second turn that is right after a wrong answer, or wrong after a right one."""
        turns = self._turns(case).with_columns(
            first_right=pl.col("first_answer") == pl.col("target"),
            second_right=pl.col("second_answer") == pl.col("target"),
        )
        turned = turns.filter(pl.col("first_right") != pl.col("second_right"))
        return turned.select("prompt_id", *_sided("id"), *_sided("score"), *_sided(None), source=pl.lit("refinements"))

    def _turns(self, case: PairCase) -> pl.LazyFrame:
        """Both turns of each response, with the prompt's target."""
        second = case.refinements.filter(pl.col("error").is_null() & pl.col("answer").is_not_null())
        if self.member is not None:
            second = second.filter(pl.col("member") == self.member)
        second = second.select("response_id", second_id="id", second="response", second_answer="answer")
        first = case.responses.select(
            "prompt_id", first="response", first_id="id", first_answer="answer", first_score="score"
        )
        scores = case.responses.group_by("prompt_id", second_answer="answer").agg(second_score=pl.col("score").max())
        turns = second.join(first, left_on="response_id", right_on="first_id", coalesce=False)
        turns = turns.join(case.targets.select("prompt_id", "target"), on="prompt_id")
        turns = turns.join(scores, on=["prompt_id", "second_answer"], how="left")
        return turns.with_columns(pl.col("second_score").fill_null(0.0))


def _sided(column: str | None) -> tuple[pl.Expr, pl.Expr]:
    """A column of both turns (None: their texts) as the chosen one's and the rejected one's."""
    end = f"_{column}" if column else ""
    right = pl.when("second_right")
    return (
        right.then(f"second{end}").otherwise(f"first{end}").alias(f"chosen{end}"),
        right.then(f"first{end}").otherwise(f"second{end}").alias(f"rejected{end}"),
    )
