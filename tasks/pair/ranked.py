"""All pairs of a prompt's ranked answers."""

import polars as pl
from pydantic import PositiveInt

from tasks.pair import PairCase, Pairing
from tasks.pair._choices import all_pairs, with_texts


class Ranked(Pairing):
    """Pairs every better answer of a prompt with every worse one, as ranking losses compare a list: RRHF (Yuan et al. 2023,
    arXiv:2304.05302), and the pairwise DPO of LiPO (Liu et al. 2024, arXiv:2402.01878).

    Answers whose rewards are less than `min_margin` apart are no pair. Equal texts count once. Each of a prompt's n
    pairs weighs 1/n, so that a prompt with many answers counts as much as one with two (our reading).
    """

    limit: PositiveInt | None = None
    """Most pairs a prompt, those with the widest gap first; null takes all."""

    def per_prompt_only(self) -> bool:
        """Always."""
        return True

    def __call__(self, case: PairCase) -> pl.LazyFrame:
        """All pairs of each prompt, or its widest."""
        gap = pl.col("chosen_score") - pl.col("rejected_score")
        pairs = all_pairs(case.responses, self.min_margin)
        if self.limit is not None:
            widest = pairs.sort(gap, "chosen_id", "rejected_id", descending=[True, False, False])
            pairs = widest.filter(pl.int_range(pl.len()).over("prompt_id") < self.limit)
        return with_texts(pairs.with_columns(weight=1 / pl.len().over("prompt_id")), case.responses)
