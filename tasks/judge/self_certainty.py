"""How far from uniform the model's next-token distributions were."""

import polars as pl

from tasks.core.judging import JudgeCase, Judging, opinion


class SelfCertainty(Judging):
    """Self-certainty, how far from uniform the model's next-token distributions were: the mean over the response's
    tokens of the Kullback–Leibler divergence KL(uniform ‖ p), in nats (Kang et al. 2025, arXiv:2502.18581). With n
    tokens and a vocabulary of V:

        −1/(nV) Σ_i Σ_v log(V·p(v | x, y_<i))

    The engine computes it where the logits are. It needs the full vocabulary: an engine that has only top-k
    log-probabilities gives none.
    """

    def per_prompt_only(self) -> bool:
        """Always."""
        return True

    def __call__(self, case: JudgeCase) -> pl.LazyFrame:
        """Scores ≥ 0; only ranks, so no verdict."""
        return opinion(case.responses, pl.col("self_certainty"), "the engine gave no self-certainty")
