"""Self-certainty's vote: the surer the model was of a response, the more its answer's vote weighs."""

import polars as pl
from pydantic import NonNegativeFloat

from tasks.core.judging import JudgeCase, Judging
from tasks.judge._votes import elected, share, weighted_votes


class Borda(Judging):
    """The answer's share of the prompt's votes, the surest response weighing most: Borda voting by self-certainty (Kang
    et al. 2025, arXiv:2502.18581).

    The N responses to a prompt that have an answer and a self-certainty are ranked by the latter, r = 1 the surest, and
    vote for their answers with the weight (N − r + 1)^p. The score is the answer's share of the summed weights. The
    authors' code writes (N − rank)^p with ranks from 0, which is the same; p is 0.5 there. Our reading: equally sure
    responses share the mean of their ranks, so that no order decides.
    """

    power: NonNegativeFloat = 0.5
    """p: 0 is the plain majority, and the larger it is the more the surest response decides alone."""

    def per_prompt_only(self) -> bool:
        """Always."""
        return True

    def __call__(self, case: JudgeCase) -> pl.LazyFrame:
        """Scores in (0, 1]; a response without an answer or a self-certainty is an error. Verdicts as of a vote."""
        certainty = pl.when(pl.col("answer").is_not_null() & pl.col("self_certainty").is_finite()).then(
            "self_certainty"
        )
        rows = case.responses.with_columns(certainty=certainty)
        # ranked upwards the surest has N, and the least sure 1
        weight = pl.col("certainty").rank("average").over("prompt_id") ** self.power
        return elected(weighted_votes(rows, weight), share(), "the engine gave no self-certainty")
