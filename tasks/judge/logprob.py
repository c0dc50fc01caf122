"""How likely the model found its own words."""

import polars as pl

from tasks.judge import Case, opinion
from tasks.stage import Strategy


class Logprob(Strategy):
    """Mean log-probability per token, in nats: 1/n Σ log p(token), n the number of tokens, the end token included."""

    def apart(self) -> bool:
        """Always."""
        return True

    def __call__(self, case: Case) -> pl.LazyFrame:
        """Scores ≤ 0; only ranks, so no verdict."""
        return opinion(case.responses, pl.col("mean_logprob"), "the engine gave no log-probabilities")
