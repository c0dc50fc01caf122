"""Whether an answer is the one that the model finds its own solutions to agree on."""

from collections.abc import Sequence
from typing import ClassVar

import polars as pl
from pydantic import Field, PositiveInt

from tasks.core.ids import seed_of
from tasks.core.judging import JudgeCase, Opinion, failure, graded
from tasks.core.stage import Ability
from tasks.domains import Verdict
from tasks.engines import Completion, Sampling
from tasks.judge._asking import Asking, opinions_frame, problem_rows

Question = tuple[str, tuple[str, ...]]
"""A problem and the solutions to it that are shown."""


class SelfAgreement(Asking):
    """1 where the response's answer is the one on which the model, shown several of its solutions, says that most
    agree, else 0: Self-Agreement (Lin et al. 2023, arXiv:2311.08154). One greedy call shows the question and k sampled
    solutions, of which the model extracts each answer, takes the most agreed one and prints it.

    Shown are responses that have an answer, in an order drawn by the seed and their ids; where there are more than
    `solutions`, the first. Equal texts count as often as they were sampled.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset({"samples"})

    solutions: int = Field(8, ge=2)
    """Most solutions that are shown."""
    max_tokens: PositiveInt = 256
    """Longest reply, in tokens."""

    def __call__(self, case: JudgeCase) -> pl.LazyFrame:
        """Passes with the agreed answer, fails with another. A response without an answer is an error, and so are all
        of a prompt whose agreed answer cannot be read, or whose reply was cut off. `rationale` is the model's reply.
        """
        rows = problem_rows(case)
        questions = self._questions(rows, case.seed)
        replies = self._replies(list(questions.values()), case)
        by_prompt = dict(zip(questions, replies, strict=True))
        answers = rows.select("prompt_id", "problem", "answer").rows()
        keys = [None if problem is None else (id, answer) for id, problem, answer in answers]
        opinions = {key: _opinion(key[1], by_prompt.get(key[0]), case) for key in keys if key}
        return opinions_frame(rows, keys, opinions)

    def _questions(self, rows: pl.DataFrame, seed: int) -> dict[str, Question]:
        shown: dict[str, tuple[str, list[str]]] = {}
        answered = rows.drop_nulls(["problem", "answer"]).select("id", "prompt_id", "problem", "response").rows()
        # by id, not by text: else equal texts would be drawn all together or not at all, the majority among them
        for _, prompt, problem, response in sorted(answered, key=lambda row: seed_of(seed, "solution", row[0])):
            shown.setdefault(prompt, (problem, []))[1].append(response)
        return {id: (problem, tuple(texts[: self.solutions])) for id, (problem, texts) in sorted(shown.items())}

    def _replies(self, questions: Sequence[Question], case: JudgeCase) -> list[Completion]:
        chats = [case.domain.agree(*question) for question in questions]
        seeds = [seed_of(case.seed, "self_agreement", p, *texts) for p, texts in questions]
        return self.completions(case, chats, Sampling(0.0, max_tokens=self.max_tokens), seeds)


def _opinion(answer: str | None, reply: Completion | None, case: JudgeCase) -> Opinion:
    if answer is None or reply is None:
        return failure("no answer in the response")
    if reply.error or reply.finish_reason == "length":  # a cut reply may still be at one of the solutions
        return failure(reply.error or "the reply was cut off at max_tokens", reply.text or None)
    agreed = case.domain.answer(reply.text)
    if agreed is None:
        return failure("no answer in what the model said they agree on", reply.text or None)
    return graded([Verdict(answer == agreed)], reply.text)
