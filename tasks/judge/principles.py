"""Points for a prompt's answers side by side, by criteria that the judge writes for the prompt first."""

import random
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import ClassVar, NamedTuple

import polars as pl
from pydantic import NonNegativeFloat, PositiveInt

from tasks.core.ids import seed_of
from tasks.core.judging import JudgeCase, Opinion, failure
from tasks.core.stage import Ability
from tasks.core.verdicts import Steps
from tasks.engines import Sampling
from tasks.judge._asking import Asking, Texts, by_prompt, verdict


class Group(NamedTuple):
    """Answers to a problem in the order in which one prompt shows them."""

    problem: str
    texts: tuple[str, ...]
    sample: int

    @property
    def form(self) -> Steps:
        """How the judge closes: points from 1 to 10 for each."""
        return Steps(len(self.texts), 1, 10, "Scores")


class Vote(NamedTuple):
    """What one judgment says of one answer."""

    grade: float | None
    error: str | None
    rationale: str | None


class Principles(Asking):
    """Points for the prompt's answers side by side, by criteria that the model writes for the problem first: SPCT, of
    DeepSeek-GRM (Liu et al. 2025, arXiv:2504.02495). It weighs the criteria, compares the answers by them, and closes
    with points from 1 to 10 for each. The answers are shuffled before each of k samples, and an answer's points S are
    summed over these, which ranks finer than any one of them.

    Our reading: the score is (S/k − 1)/9 with k the judgments of the answer that could be read, so it is in [0, 1],
    ranks as the sum where all were read, and one that was lost costs an answer nothing. More than `group` different
    answers are divided among several prompts of like size, otherwise for each sample.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset({"samples"})

    samples: PositiveInt = 4
    """Judgments of each answer, k."""
    group: PositiveInt = 4
    """Most answers in one prompt."""
    temperature: NonNegativeFloat = 0.5
    """0 is greedy."""
    max_tokens: PositiveInt = 512
    """Longest judgment, in tokens."""

    def __call__(self, case: JudgeCase) -> pl.LazyFrame:
        """Scores in [0, 1] that only rank, so no verdict; an answer of which no judgment can be read is an error.
        `rationale` is its first judgment, after the place at which it stood there.
        """
        return by_prompt(case, lambda prompts: self._opinions(prompts, case))

    def _opinions(self, prompts: Sequence[Texts], case: JudgeCase) -> list[dict[str, Opinion]]:
        groups = [list(self._groups(*prompt, case.seed)) for prompt in prompts]
        votes = self._votes(sorted({g for of_prompt in groups for g in of_prompt}), case)
        return [
            {text: opinion([votes[g][g.texts.index(text)] for g in of_prompt if text in g.texts]) for text in texts}
            for (_, texts), of_prompt in zip(prompts, groups, strict=True)
        ]

    def _groups(self, problem: str, texts: Sequence[str], seed: int) -> Iterator[Group]:
        """The answers in a new order for each sample, in as few groups as `group` allows."""
        number = -(-len(texts) // self.group)
        for sample in range(self.samples):
            rng = random.Random(seed_of(seed, "principles order", problem, *texts, sample))
            order = rng.sample(texts, len(texts))
            yield from (Group(problem, tuple(order[k::number]), sample) for k in range(number))

    def _votes(self, groups: Sequence[Group], case: JudgeCase) -> dict[Group, list[Vote]]:
        """The votes on each group's answers, in its order. Groups of a size are asked together: their form is one."""
        votes = {}
        for size in sorted({len(g.texts) for g in groups}):
            votes |= self._ask([g for g in groups if len(g.texts) == size], case)
        return votes

    def _ask(self, groups: Sequence[Group], case: JudgeCase) -> dict[Group, list[Vote]]:
        chats = [case.domain.grade_together(g.problem, g.texts, g.form) for g in groups]
        seeds = [seed_of(case.seed, "principles", g.problem, *g.texts, g.sample) for g in groups]
        sampling = Sampling(self.temperature, max_tokens=self.max_tokens, regex=groups[0].form.regex)
        completions = self.completions(case, chats, sampling, seeds)
        read = [(g, c, verdict(c, g.form, case.domain)) for g, c in zip(groups, completions, strict=True)]
        return {
            g: [
                Vote(None if said.error else said.steps[k], said.error, c.text and f"As response {k + 1}:\n{c.text}")
                for k in range(len(g.texts))
            ]
            for g, c, said in read
        }


def opinion(votes: Sequence[Vote]) -> Opinion:
    """The mean grade of the votes that could be read: the place of S/k between 1 and 10."""
    text = next((v.rationale for v in votes if v.rationale), None)
    grades = [v.grade for v in votes if v.grade is not None]
    if not grades:
        return failure(next((v.error for v in votes if v.error), "no judgment"), text)
    return {"score": fmean(grades), "verdict": None, "rationale": text, "error": None}
