"""A mark for each step of an answer."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import ClassVar, Literal

import polars as pl
from pydantic import NonNegativeFloat, PositiveInt

from tasks.core.ids import seed_of
from tasks.core.judging import JudgeCase, Opinion, graded
from tasks.core.stage import Ability
from tasks.core.verdicts import Steps as StepsForm
from tasks.core.verdicts import Verdict
from tasks.engines import Completion, Sampling
from tasks.judge._asking import Asking, Key, by_content, verdict


class Steps(Asking):
    """The least or the mean of the marks, 1 or 0, that a model gives to the answer's steps: the policy as its own
    process reward model, Self-PRM (Feng et al. 2025, arXiv:2505.11227). Each step is marked given those before it. The
    minimum is how process reward models are usually reduced (Wang et al. 2023, arXiv:2312.08935).

    Our reading: one judgment marks all steps and closes with `Steps: 1 0 1`; how many steps there are is the judge's
    count. An answer passes where every step is right. Equal answers to a problem are judged once.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset({"samples"})
    auditable: ClassVar[bool] = True

    by: Literal["min", "mean"] = "min"
    """The score: `min` is 1 or 0, `mean` the share of the steps that are right."""
    temperature: NonNegativeFloat = 0.0
    """0 is greedy."""
    max_tokens: PositiveInt = 256
    """Longest judgment, in tokens."""

    def __call__(self, case: JudgeCase) -> pl.LazyFrame:
        """Scores in [0, 1]; marks that cannot be read are an error. `rationale` names the first wrong step, then it is the
        judgment.
        """
        return by_content(case, ["problem", "response"], lambda keys: self._opinions(keys, case))

    def _opinions(self, keys: Sequence[Key], case: JudgeCase) -> list[Opinion]:
        form = StepsForm()
        chats = [case.domain.grade_steps(problem, response, form) for problem, response in keys]
        seeds = [seed_of(case.seed, "steps", *key) for key in keys]
        sampling = Sampling(self.temperature, max_tokens=self.max_tokens, regex=form.regex)
        return [self._opinion(c, verdict(c, form, case.domain)) for c in self.completions(case, chats, sampling, seeds)]

    def _opinion(self, completion: Completion, marks: Verdict) -> Opinion:
        if marks.error:
            return graded([marks], completion.text or None)
        score = min(marks.steps) if self.by == "min" else fmean(marks.steps)
        wrong = "no wrong step" if marks.wrong_step is None else f"first wrong step: {marks.wrong_step}"
        return graded([replace(marks, passed=marks.wrong_step is None, score=score)], f"{wrong}\n{completion.text}")
