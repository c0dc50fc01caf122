"""Pairs that several judges order alike."""

from typing import Annotated, Any, ClassVar

import polars as pl
from pydantic import Field, NonNegativeFloat, PositiveInt

from tasks.pair import PairCase, Pairing
from tasks.pair._choices import all_pairs, opinions, with_texts


class Agreed(Pairing):
    """Keeps, of all pairs of a prompt's answers, those that every judge orders alike, as SCIR does (Zhou et al. 2025,
    arXiv:2502.08922).

    SCIR trains its judges to agree and to be sure while it pairs; here they are scored once a round. Its penalty of an
    unsure judge is read as the pair's weight (our reading): the mean over judges of 2σ(gap) − 1, in (0, 1), gap the
    difference of that judge's scores in its own units. Of a prompt's pairs those of the highest weight are taken. The
    reward must agree as well, by `min_margin`.
    """

    example: ClassVar[dict[str, Any]] = {"judges": {"self_consistency": 0.1, "verifier": 0.1}}

    judges: Annotated[dict[str, NonNegativeFloat], Field(min_length=2)]
    """The judges that must agree, names of members of `judge`, each with the smallest gap in its own units that counts;
    at 0 any gap does."""
    per_prompt: PositiveInt | None = 1
    """Most pairs a prompt; null takes all."""

    def per_prompt_only(self) -> bool:
        """Always."""
        return True

    def __call__(self, case: PairCase) -> pl.LazyFrame:
        """The pairs of highest weight among those on which all judges agree.

        Raises:
            UnknownName: for a judge that judged none of the round's responses.
        """
        pairs = all_pairs(case.responses, self.min_margin).with_columns(weight=pl.lit(0.0))
        for judge, scores in opinions(case, self.judges).items():
            gap = pl.col("score") - pl.col("score_other")
            judged = pairs.join(scores, left_on="chosen_id", right_on="id")
            judged = judged.join(scores, left_on="rejected_id", right_on="id", suffix="_other")
            agreed = judged.filter(gap > 0, gap >= self.judges[judge])
            surer = pl.col("weight") + (gap / 2).tanh() / len(self.judges)  # tanh(x/2) = 2σ(x) − 1
            pairs = agreed.with_columns(weight=surer).drop("score", "score_other")
        surest = pairs.sort("weight", "chosen_id", "rejected_id", descending=[True, False, False])
        if self.per_prompt is not None:
            surest = surest.filter(pl.int_range(pl.len()).over("prompt_id") < self.per_prompt)
        return with_texts(surest, case.responses)
