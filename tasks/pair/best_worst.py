"""The best answer of a prompt against its worst."""

import polars as pl

from tasks.pair import PairCase, Pairing
from tasks.pair._choices import with_texts


class BestWorst(Pairing):
    """Pairs the best answer of a prompt with its worst, as Self-Rewarding does (Yuan et al. 2024, arXiv:2401.10020).

    The chosen one is the best that the filter kept. The rejected one has the lowest reward of all usable answers; of
    equally bad ones it is the likeliest, the mistake that the model really makes, then the first by id.
    """

    min_reward: float | None = None
    """Reward that the chosen one must reach; null has no bound beside the filter's."""

    def reads_logprobs_of(self) -> frozenset[str]:
        """The responses."""
        return frozenset({"responses"})

    def per_prompt_only(self) -> bool:
        """Always."""
        return True

    def __call__(self, case: PairCase) -> pl.LazyFrame:
        """One candidate a prompt of which an answer was kept."""
        best = pl.col("rank").arg_min()
        worst = pl.col("id").sort_by("score", "mean_logprob", "id", descending=[False, True, False], nulls_last=True)
        ends = case.responses.group_by("prompt_id").agg(
            chosen_id=pl.col("id").get(best),
            chosen_score=pl.col("score").get(best),
            rejected_id=worst.first(),
            rejected_score=pl.col("score").min(),
        )
        # the texts last, and only of those rows that can become pairs: they are most of what there is to read
        pairs = ends.filter(pl.col("chosen_score") - pl.col("rejected_score") >= self.min_margin)
        if self.min_reward is not None:
            pairs = pairs.filter(pl.col("chosen_score") >= self.min_reward)
        return with_texts(pairs, case.responses)
