"""The model's own judge prompt."""

from collections.abc import Sequence
from typing import ClassVar

import polars as pl
from pydantic import NonNegativeFloat, PositiveInt

from tasks.core import frames
from tasks.core.ids import seed_of
from tasks.core.judging import OPINION, ORPHAN, JudgeCase, Judging, Opinion, graded
from tasks.core.stage import Ability
from tasks.domains import Domain, Verdict
from tasks.engines import Completion, Sampling, ask, batched

Pair = tuple[str, str]
"""A problem and a response to it."""


class SelfJudge(Judging):
    """The grade that the model gives its own answer (LLM-as-a-judge, Zheng et al. 2023, arXiv:2306.05685; used on
    itself in Self-Rewarding, Yuan et al. 2024, arXiv:2401.10020). The domain writes the judge prompt and reads the
    verdict.

    The score is the mean of the grades that could be read, the verdict what most of them say. Equal answers to a
    problem are judged once: seeds are hashes of what is judged.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset({"samples"})
    auditable: ClassVar[bool] = True

    samples: PositiveInt = 1
    """Judgments averaged; more than one wants a temperature."""
    temperature: NonNegativeFloat = 0.0
    """0 is greedy."""
    max_tokens: PositiveInt = 192
    """Longest judgment, in tokens."""
    likeliest: PositiveInt | None = None
    """Judge only so many different answers of each prompt, those with the highest mean log-probability (where there is
    none, or it is equal: the most frequent); the others get no row. Null judges all, which costs about as much as writing
    them did."""

    def reads_logprobs_of(self) -> frozenset[str]:
        """The responses, where it judges the likeliest alone."""
        return frozenset({"responses"} if self.likeliest is not None else ())

    def per_prompt_only(self) -> bool:
        """Always."""
        return True

    def __call__(self, case: JudgeCase) -> pl.LazyFrame:
        """Scores in [0, 1]; no verdict that can be read is an error. `rationale` is the first judgment's text."""
        rows = self._candidates(case).select("id", "prompt_id", "problem", "response").sort("id").collect()
        pairs = sorted(set(rows.drop_nulls("problem").select("problem", "response").iter_rows()))
        completions = self.completions(pairs, case) if pairs else []
        by_pair = {pair: read(texts, case.domain) for pair, texts in zip(pairs, completions, strict=True)}
        opinions = [by_pair.get(pair, ORPHAN) for pair in rows.select("problem", "response").iter_rows()]
        columns = pl.col("id").alias("response_id"), "prompt_id", pl.Series("opinion", opinions, dtype=OPINION)
        return rows.select(columns).lazy().unnest("opinion")

    def _candidates(self, case: JudgeCase) -> pl.LazyFrame:
        """The responses to judge, with their problems; equal texts of a prompt count as one."""
        rows = case.with_problems()
        if self.likeliest is None:
            return rows
        text = pl.struct("prompt_id", "response")
        order = rows.with_columns(
            likelihood=pl.col("mean_logprob").fill_nan(None).max().over(text),
            frequency=pl.len().over(text),
            draw=frames.seeds(pl.lit(f"{case.seed}\x1flikeliest"), "prompt_id", "response"),
        ).sort("likelihood", "frequency", "draw", descending=[True, True, False], nulls_last=True)
        place = pl.col("response").rle_id().over("prompt_id")
        return order.filter(place < self.likeliest)

    def completions(self, pairs: Sequence[Pair], case: JudgeCase) -> list[list[Completion]]:
        """The judgments of each pair."""
        return self.judgments(pairs, "parent", case)

    def judgments(self, pairs: Sequence[Pair], model: str, case: JudgeCase) -> list[list[Completion]]:
        """One model's judgments of each pair, `samples` of them."""
        sampling = Sampling(self.temperature, max_tokens=self.max_tokens, regex=case.domain.verdict_form)
        draws = [(pair, sample) for pair in pairs for sample in range(self.samples)]
        chats = [case.domain.judge(*pair) for pair, _ in draws]
        seeds = [seed_of(case.seed, "self_judge", *pair, sample) for pair, sample in draws]
        with case.open(model) as policy:
            return list(batched(ask(policy, chats, sampling, seeds), self.samples))


def read(completions: Sequence[Completion], domain: Domain) -> Opinion:
    """One opinion from the judgments of one response; those that failed or cannot be read do not count."""
    verdicts = [Verdict(None, error=c.error) if c.error else domain.verdict(c.text) for c in completions]
    return graded(verdicts, next((c.text for c in completions if not c.error), None))
