"""The best of today's answers against the worst of yesterday's."""

import polars as pl
from pydantic import PositiveFloat

from tasks.pair import PairCase, Pairing
from tasks.pair._choices import LIKELIEST, end, with_texts


class Anchored(Pairing):
    """Pairs the best answer of today's model with the worst answer of the first model: Temporal Self-Rewarding (Wang et
    al. 2025, arXiv:2508.06026). Rejected answers are anchored in the past, chosen ones guided by the future. Of each
    prompt,

    - chosen is the best answer of `chosen`; in the second phase that of `future`, a model trained on the first phase's
      pairs, where it scores higher;
    - rejected is the worst answer of `rejected` where it scores below the worst of `chosen`, else that one.

    A pair is kept when the chosen one scores higher. All are answers of this round, so one judge has scored them.
    """

    min_margin: PositiveFloat = 1e-6
    """Smallest gap of the reward, in its own units; any gap at all by default, as published."""
    chosen: str = "parent"
    """Author of the chosen answers: today's model."""
    rejected: str = "base"
    """Author of the rejected answers: the first model."""
    future: str | None = None
    """Author of the answers that may take the chosen one's place, such as `anchor`; null is the first phase."""

    def reads_logprobs_of(self) -> frozenset[str]:
        """The responses."""
        return frozenset({"responses"})

    def per_prompt_only(self) -> bool:
        """Always."""
        return True

    def __call__(self, case: PairCase) -> pl.LazyFrame:
        """One candidate a prompt that `chosen` answered."""
        best = self._written(case, self.chosen, self.future)
        worst = self._written(case, self.chosen, self.rejected)
        pairs = end(best, "chosen", best=True).join(end(worst, "rejected", best=False), on="prompt_id")
        own = case.responses.filter(pl.col("author") == self.chosen).select("prompt_id")
        return with_texts(pairs.join(own, on="prompt_id", how="semi"), case.responses)

    def _written(self, case: PairCase, own: str, other: str | None) -> pl.LazyFrame:
        """The answers of two authors; those of `own` come first, for the other must be better or worse to replace them."""
        authors = [own] if other is None else [own, other]
        return pl.concat([case.responses.filter(pl.col("author") == name).sort(**LIKELIEST) for name in authors])
