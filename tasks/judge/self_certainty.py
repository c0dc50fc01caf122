"""How far from uniform the model's next-token distributions were."""

import polars as pl

from tasks.core.judging import JudgeCase, Judging, opinion


class SelfCertainty(Judging):
    """Self-certainty (Kang et al. 2025, arXiv:2502.18581): −1/(nV) Σ_i Σ_v log(V·p(v | x, y_<i)), in nats, as the
    engine computed it where the logits were. It needs the full vocabulary: an engine with top-k log-probabilities only
    gives none.
    """

    def per_prompt_only(self) -> bool:
        """Always."""
        return True

    def __call__(self, case: JudgeCase) -> pl.LazyFrame:
        """Scores ≥ 0; only ranks, so no verdict."""
        return opinion(case.responses, pl.col("self_certainty"), "the engine gave no self-certainty")
