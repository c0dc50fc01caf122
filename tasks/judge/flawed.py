"""The verifier's verdict, less what a flawed way to the right answer costs."""

from collections.abc import Sequence
from typing import ClassVar

import polars as pl
from pydantic import Field, NonNegativeFloat, PositiveInt

from tasks.core.ids import seed_of
from tasks.core.judging import JudgeCase, Opinion, failure, graded
from tasks.core.stage import Ability
from tasks.domains import Verdict
from tasks.engines import Sampling, batched
from tasks.judge._asking import Asking, Key, by_content
from tasks.judge.self_judge import read


class Flawed(Asking):
    """The verifier's reward, less λ for a right answer with a wrong step, a flawed positive: FAPO (Ding et al. 2025,
    arXiv:2510.22543). `Domain.verify` says whether an answer is right; of the right ones alone the domain's judge
    prompt asks whether their steps are.

    The paper's rewards are 1 for right, 1 − λ for right but flawed, −1 for wrong. The score is (reward + 1) / 2: 1, 1 −
    λ/2 and 0, so that with λ = 1 a flawed answer stands half way between right and wrong. Our reading: an answer is
    flawed where its mean grade is below ½. What cannot be verified, or is right and cannot be judged, is an error.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset({"samples"})
    auditable: ClassVar[bool] = True

    penalty: float = Field(1.0, ge=0, le=2)
    """λ, what a flawed answer loses of the paper's reward, which is from −1 to 1: 2 makes it as bad as a wrong one."""
    samples: PositiveInt = 1
    """Judgments averaged; more than one wants a temperature."""
    temperature: NonNegativeFloat = 0.0
    """0 is greedy."""
    max_tokens: PositiveInt = 192
    """Longest judgment, in tokens."""

    def __call__(self, case: JudgeCase) -> pl.LazyFrame:
        """Right answers pass and wrong ones fail; of a flawed one the verdict is neither, since its answer is right. `rationale`
        is the first judgment.
        """
        return by_content(case, ["problem", "response", "reference"], lambda keys: self._opinions(keys, case))

    def _opinions(self, keys: Sequence[Key], case: JudgeCase) -> list[Opinion]:
        verified = [case.domain.verify(*key) for key in keys]
        right = sorted({key[:2] for key, v in zip(keys, verified, strict=True) if v.passed and not v.error})
        judged = dict(zip(right, self._judged(right, case), strict=True))
        return [self._opinion(v, judged.get(key[:2])) for key, v in zip(keys, verified, strict=True)]

    def _judged(self, pairs: Sequence[Key], case: JudgeCase) -> list[Opinion]:
        draws = [(pair, sample) for pair in pairs for sample in range(self.samples)]
        chats = [case.domain.judge(*pair) for pair, _ in draws]
        seeds = [seed_of(case.seed, "flawed", *pair, sample) for pair, sample in draws]
        sampling = Sampling(self.temperature, max_tokens=self.max_tokens, regex=case.domain.verdict_form)
        judgments = batched(self.completions(case, chats, sampling, seeds), self.samples)
        return [read(of_one, case.domain) for of_one in judgments]

    def _opinion(self, verified: Verdict, judged: Opinion | None) -> Opinion:
        if verified.error or verified.passed is None:
            return failure(verified.error or "the verifier says neither right nor wrong")
        if not verified.passed:
            return graded([Verdict(False)])
        if judged is None or judged["score"] is None:
            return judged or failure("no judgment")
        flawed = judged["score"] < 0.5
        return judged | {"score": 1 - self.penalty / 2 * flawed, "verdict": None if flawed else "pass"}
