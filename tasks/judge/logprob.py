"""Mean log-probability of the response under the model that wrote it."""

from typing import ClassVar

import polars as pl

from tasks.core.judging import JudgeCase, Judging, opinion


class Logprob(Judging):
    """Mean log-probability per token, in nats: 1/n Σ log p(token), n the number of tokens, the end token included."""

    auditable: ClassVar[bool] = True

    def reads_logprobs_of(self) -> frozenset[str]:
        """The responses."""
        return frozenset({"responses"})

    def per_prompt_only(self) -> bool:
        """Always."""
        return True

    def __call__(self, case: JudgeCase) -> pl.LazyFrame:
        """Scores ≤ 0; only ranks, so no verdict."""
        return opinion(case.responses, pl.col("mean_logprob"), "the engine gave no log-probabilities")
