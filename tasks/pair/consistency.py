"""Best against worst, smoothed where two judges rank the prompt's answers differently."""

from typing import Any, ClassVar, Self

import polars as pl
from pydantic import model_validator

from tasks.pair import PairCase
from tasks.pair._choices import opinions
from tasks.pair.best_worst import BestWorst


class Consistency(BestWorst):
    """Pairs the best with the worst, as `best_worst`, with a label smoothing of 1 − C, where C says how much two judges
    agree on the ranking of the prompt's answers: CREAM (Wang et al. 2024, arXiv:2410.12735).

    C = (τ + 1)/2 in [0, 1], τ Kendall's rank correlation of the two judges' scores, such as the implicit rewards of the
    model and of the one before it. The loss C·DPO(w, l) + (1 − C)·DPO(l, w) is DPO with label smoothing 1 − C.

    τ is τ-b, which knows ties, where the published code ranks equal scores in their order (our reading). Answers that a
    judge did not score are left out. Where fewer than two are left, or a judge scores all alike, C is not defined: it
    enters no mean, and without `averaged` the prompt gives no pair.
    """

    example: ClassVar[dict[str, Any]] = {"judges": ["self_consistency", "verifier"]}

    judges: tuple[str, str]
    """The two judges that are compared: names of members of `judge`."""
    averaged: bool = False
    """Gives every pair the mean smoothing of all prompts, the paper's other variant."""

    @model_validator(mode="after")
    def _two(self) -> Self:
        if len(set(self.judges)) < 2:
            raise ValueError(f"judges names {self.judges[0]!r} twice, and a judge agrees with itself; name another")
        return self

    def per_prompt_only(self) -> bool:
        """Unless prompts are averaged."""
        return not self.averaged

    def needs_overview(self) -> bool:
        """Where prompts are averaged."""
        return self.averaged

    def summary(self, case: PairCase) -> pl.LazyFrame:
        """The smoothing of each prompt."""
        return self.smoothing(case).lazy()

    def fold(self, summaries: pl.LazyFrame) -> pl.DataFrame:
        """The mean smoothing of all prompts."""
        return summaries.collect().rechunk().sort("prompt_id").select(pl.col("smoothing").mean())

    def __call__(self, case: PairCase) -> pl.LazyFrame:
        """The pairs of `best_worst` with `smoothing`."""
        pairs = super().__call__(case)
        if self.averaged:
            return pairs.join(self.overview(case).lazy(), how="cross").drop_nulls("smoothing")
        return pairs.join(self.smoothing(case).lazy(), on="prompt_id")

    def smoothing(self, case: PairCase) -> pl.DataFrame:
        """`prompt_id` and 1 − C of each prompt that has one."""
        from scipy.stats import kendalltau

        scores = opinions(case, self.judges)
        first, second = (scores[judge] for judge in self.judges)
        both = first.join(second, on="id", suffix="_other").join(case.responses.select("id", "prompt_id"), on="id")
        ranked = both.sort("id").group_by("prompt_id").agg("score", "score_other").sort("prompt_id").collect()
        taus = [kendalltau(a, b).statistic if len(a) > 1 else None for _, a, b in ranked.iter_rows()]
        tau = pl.Series("tau", taus, dtype=pl.Float64).fill_nan(None)
        return ranked.select("prompt_id", smoothing=((1 - tau) / 2).clip(0, 1)).drop_nulls()
