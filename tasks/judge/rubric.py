"""Points by an additive rubric."""

from collections.abc import Sequence
from typing import ClassVar

import polars as pl
from pydantic import Field, NonNegativeFloat, PositiveInt

from tasks.core.ids import seed_of
from tasks.core.judging import JudgeCase, Opinion, graded
from tasks.core.stage import Ability
from tasks.core.verdicts import Score
from tasks.engines import Sampling, batched
from tasks.judge._asking import Asking, Key, by_content, rationale, verdict

RUBRIC = """Grade the answer with the additive 5-point scoring system below. Points add up:
- Add 1 point if the answer is relevant and says something on the matter, even if it is incomplete.
- Add 1 point if it addresses a substantial part of the problem, without resolving it wholly.
- Add 1 point if it answers the basic elements of the problem in a useful way, whoever may have written it.
- Add 1 point if it is clearly written, direct, comprehensive, well organised and helpful.
- Add 1 point if it is impeccably tailored to the problem, expert, engaging, and without superfluous words.
Justify your total in at most 100 words."""


class Rubric(Asking):
    """A model grades each answer by an additive rubric of five criteria, justifies the total briefly and closes with
    `Score: n`, as in Self-Rewarding (Yuan et al. 2024, arXiv:2401.10020). The score is the mean over the judgments that
    could be read of n / `highest`; it neither passes nor fails.

    Equal answers to a problem are judged once: seeds are hashes of what is judged. A domain whose model was taught a rubric
    of its own, as the embedded one, asks by that.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset({"samples"})
    auditable: ClassVar[bool] = True

    rubric: str = RUBRIC
    """The criteria, as the judge reads them. Their points add up to `highest`."""
    highest: PositiveInt = 5
    """Most points; the fewest are 0."""
    samples: PositiveInt = 3
    """Judgments averaged."""
    temperature: NonNegativeFloat = 0.7
    """0 is greedy: one judgment is then enough."""
    top_p: float = Field(0.9, gt=0, le=1)
    """Nucleus of the sampling."""
    max_tokens: PositiveInt = 256
    """Longest judgment, in tokens."""

    @property
    def form(self) -> Score:
        """How a judgment closes."""
        return Score(0, self.highest)

    def __call__(self, case: JudgeCase) -> pl.LazyFrame:
        """Scores in [0, 1]; an answer of which no judgment can be read is an error. `rationale` is the first judgment."""
        return by_content(case, ["problem", "response"], lambda keys: self._opinions(keys, case))

    def _opinions(self, keys: Sequence[Key], case: JudgeCase) -> list[Opinion]:
        draws = [(*key, sample) for key in keys for sample in range(self.samples)]
        chats = [case.domain.grade(problem, response, self.rubric, self.form) for problem, response, _ in draws]
        seeds = [seed_of(case.seed, "rubric", *draw) for draw in draws]
        sampling = Sampling(self.temperature, self.top_p, max_tokens=self.max_tokens, regex=self.form.regex)
        judgments = batched(self.completions(case, chats, sampling, seeds), self.samples)
        return [graded([verdict(c, self.form, case.domain) for c in of_one], rationale(of_one)) for of_one in judgments]
