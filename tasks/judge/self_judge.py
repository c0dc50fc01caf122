"""The model's own judge prompt."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import polars as pl
from pydantic import NonNegativeFloat, PositiveInt

from tasks.domains import Domain, Verdict
from tasks.engines import Completion, Policy, Sampling, ask, bulks
from tasks.judge import OPINION, ORPHAN, Case, graded
from tasks.stage import Strategy, seed_of

Judged = tuple[str, str]
"""A problem and a response to it."""


class SelfJudge(Strategy):
    """The model judges its own answer: the domain says how it is asked and how its verdict is read (LLM-as-a-judge,
    Zheng et al. 2023, arXiv:2306.05685; used on itself in Self-Rewarding, Yuan et al. 2024, arXiv:2401.10020).

    The score is the mean of the grades that could be read, the verdict what most of them say. Equal answers to a
    problem are judged once: seeds are hashes of what is judged.
    """

    needs: ClassVar[frozenset[Literal["samples", "scores"]]] = frozenset({"samples"})

    samples: PositiveInt = 1
    """Judgments averaged; more than one wants a temperature."""
    temperature: NonNegativeFloat = 0.0
    """0 is greedy."""
    max_tokens: PositiveInt = 192
    """Longest judgment, in tokens."""
    likeliest: PositiveInt | None = None
    """Judge only so many different answers of each prompt, those with the highest mean log-probability; the others get
    no row. Null judges all, which costs about as much as writing them did."""

    def __call__(self, case: Case) -> pl.LazyFrame:
        """Scores in [0, 1]; no verdict that can be read is an error. `rationale` is the first text that came."""
        asked = self._some(case.asked()).select("id", "prompt_id", "problem", "response").sort("id").collect()
        different = sorted(set(asked.drop_nulls("problem").select("problem", "response").iter_rows()))
        said = self.completions(different, case)
        opinions = {pair: read(came, case.domain) for pair, came in zip(different, said, strict=True)}
        lost = graded([ORPHAN])
        given = [opinions.get(row, lost) for row in asked.select("problem", "response").iter_rows()]
        rows = asked.select(pl.col("id").alias("response_id"), "prompt_id", pl.Series("opinion", given, dtype=OPINION))
        return rows.lazy().unnest("opinion")

    def _some(self, asked: pl.LazyFrame) -> pl.LazyFrame:
        if self.likeliest is None:
            return asked
        best = pl.col("mean_logprob").max().over("prompt_id", "response")  # equal answers stay together
        ranked = asked.with_columns(best=best).sort(
            "best", "response", "id", descending=[True, False, False], nulls_last=True
        )
        place = pl.col("response").rle_id().over("prompt_id")
        return ranked.filter(place < self.likeliest)

    def completions(self, judged: Sequence[Judged], case: Case) -> list[list[Completion]]:
        """What was said of each."""
        assert case.policy is not None
        return self.asked(judged, case.policy, case)

    def asked(self, judged: Sequence[Judged], policy: Policy, case: Case) -> list[list[Completion]]:
        """What a model says of each, `samples` times."""
        how = Sampling(self.temperature, max_tokens=self.max_tokens, regex=case.domain.verdict_form)
        draws = [(pair, sample) for pair in judged for sample in range(self.samples)]
        chats = [case.domain.judge(*pair) for pair, _ in draws]
        came = ask(policy, chats, how, [seed_of(case.seed, "self_judge", *pair, sample) for pair, sample in draws])
        return list(bulks(came, self.samples))


def read(came: list[Completion], domain: Domain) -> dict[str, Any]:
    """One opinion from the judgments of one response; those that failed or cannot be read do not count."""
    verdicts = [Verdict(None, error=c.error) if c.error else domain.verdict(c.text) for c in came]
    return graded(verdicts, next((c.text for c in came if not c.error), None))
