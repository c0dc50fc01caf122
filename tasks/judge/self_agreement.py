"""Whether an answer is the one that the model finds its own solutions to agree on."""

from collections.abc import Sequence
from typing import ClassVar

import polars as pl
from pydantic import Field, PositiveInt

from tasks.core.ids import seed_of
from tasks.core.judging import OPINION, ORPHAN, JudgeCase, Opinion, failure, graded
from tasks.core.stage import Ability
from tasks.domains import Verdict
from tasks.engines import Completion, Sampling
from tasks.judge._asking import Asking, problem_rows

Question = tuple[str, tuple[str, ...]]
"""A problem and the solutions to it that are shown."""


class SelfAgreement(Asking):
    """Self-Agreement (Lin et al. 2023, arXiv:2311.08154): one greedy call shows the question and k sampled solutions, of which
    the model extracts each answer, takes the most agreed one and prints it. An answer that equals it has the score 1, another 0.

    Shown are responses that have an answer, drawn by a hash of their text where there are more than `solutions`; equal
    texts count as often as they were sampled.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset({"samples"})

    solutions: int = Field(8, ge=2)
    """Most solutions that are shown."""
    max_tokens: PositiveInt = 256
    """Longest reply, in tokens."""

    def __call__(self, case: JudgeCase) -> pl.LazyFrame:
        """Passes with the agreed answer, fails with another. A response without an answer is an error, and so are all
        of a prompt whose agreed answer cannot be read. `rationale` is the model's reply.
        """
        rows = problem_rows(case)
        questions = self._questions(rows, case.seed)
        replies = self._replies(list(questions.values()), case)
        by_prompt = dict(zip(questions, replies, strict=True))
        answers = rows.select("prompt_id", "problem", "answer").rows()
        opinions = [ORPHAN if p is None else _opinion(a, by_prompt.get(id), case) for id, p, a in answers]
        column = pl.Series("opinion", opinions, dtype=OPINION)
        return rows.select("prompt_id", column, response_id="id").lazy().unnest("opinion")

    def _questions(self, rows: pl.DataFrame, seed: int) -> dict[str, Question]:
        shown: dict[str, tuple[str, list[str]]] = {}
        answered = rows.drop_nulls(["problem", "answer"]).select("prompt_id", "problem", "response").rows()
        for prompt, problem, response in sorted(answered, key=lambda row: seed_of(seed, "solution", row[0], row[2])):
            shown.setdefault(prompt, (problem, []))[1].append(response)
        return {id: (problem, tuple(texts[: self.solutions])) for id, (problem, texts) in sorted(shown.items())}

    def _replies(self, questions: Sequence[Question], case: JudgeCase) -> list[Completion]:
        chats = [case.domain.agree(*question) for question in questions]
        seeds = [seed_of(case.seed, "self_agreement", p, *texts) for p, texts in questions]
        return self.completions(case, chats, Sampling(0.0, max_tokens=self.max_tokens), seeds)


def _opinion(answer: str | None, reply: Completion | None, case: JudgeCase) -> Opinion:
    if answer is None or reply is None:
        return failure("no answer in the response")
    agreed = None if reply.error else case.domain.answer(reply.text)
    if agreed is None:
        return failure(reply.error or "no answer in what the model said they agree on", reply.text or None)
    return graded([Verdict(answer == agreed)], reply.text)
