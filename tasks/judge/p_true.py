"""The probability that the model calls an answer true, or says that it knows."""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import polars as pl
from pydantic import NonNegativeInt

from tasks.core.ids import seed_of
from tasks.core.judging import JudgeCase, Opinion, failure
from tasks.core.stage import Ability
from tasks.domains import FALSE, TRUE, Message
from tasks.engines import Scored, batched, turns
from tasks.judge._asking import Asking, opinions_frame, problem_rows

Question = tuple[str, tuple[str, ...], str]
"""Problem, brainstormed answers, possible answer."""


class PTrue(Asking):
    """The probability that the model calls the answer true, P(True) (Kadavath et al. 2022, arXiv:2207.05221). After the
    problem, some of the prompt's other sampled answers and the possible answer, it is asked whether that is True or
    False. About `knowledge` it is P(IK): whether the model will answer the problem rightly, before it sees an answer;
    one probability for all of a prompt's answers.

    The score is p(True) / (p(True) + p(False)), each the product over the word's tokens after the prompt. The
    re-implementation in semantic entropy (Farquhar et al. 2024, doi:10.1038/s41586-024-07421-0) takes log P(True): ours
    is a probability that can be compared with how often answers are right (calibration), and what a model spends on
    other beginnings than these two words does not lower it. `rationale` holds log P(True). No labelled shots are shown.

    Our reading of the possible answer is the response's final answer, its text where it has none; so of the brainstormed
    ones. On gold answers, which come alone, nothing is brainstormed.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset({"scores"})

    about: Literal["answer", "knowledge"] = "answer"
    """`answer` is P(True), `knowledge` P(IK)."""
    ideas: NonNegativeInt = 5
    """Other sampled answers that are shown, drawn by seed; equal ones count as often as they were sampled."""

    @property
    def auditable(self) -> bool:  # type: ignore[override]
        """Whether it is about the answer: what a model knows says nothing of an answer that it did not write."""
        return self.about == "answer"

    def __call__(self, case: JudgeCase) -> pl.LazyFrame:
        """Scores in [0, 1]. P(True) passes above ½ and fails below, since the likelier word is what the model would say;
        P(IK) has no verdict.
        """
        rows = problem_rows(case)
        asked = [None if q[0] is None else q for q in self._questions(rows, case.seed)]
        distinct = sorted({q for q in asked if q})
        return opinions_frame(rows, asked, dict(zip(distinct, self._opinions(distinct, case), strict=True)))

    def _questions(self, rows: pl.DataFrame, seed: int) -> list[Question]:
        if self.about == "knowledge":
            return [(problem, (), "") for problem in rows["problem"]]
        answers = rows.select("prompt_id", "id", pl.coalesce("answer", "response")).rows()
        drawn = sorted(answers, key=lambda row: seed_of(seed, "p_true idea", row[1]))
        sampled: dict[str, list[tuple[str, str]]] = {}
        for prompt, id, answer in drawn:
            sampled.setdefault(prompt, []).append((id, answer))
        others = [[a for i, a in sampled[prompt] if i != id][: self.ideas] for prompt, id, _ in answers]
        return [(p, tuple(o), a[2]) for p, o, a in zip(rows["problem"], others, answers, strict=True)]

    def _opinions(self, questions: Sequence[Question], case: JudgeCase) -> list[Opinion]:
        if not questions:
            return []
        chats = [turns(self._chat(q, case)) for q in questions for _ in (TRUE, FALSE)]
        with case.open(self.model) as policy:
            scored = dict(policy.score(chats, [TRUE, FALSE] * len(questions)))
        return [self._opinion(*both) for both in batched([scored[n] for n in range(len(chats))], 2)]

    def _chat(self, question: Question, case: JudgeCase) -> list[Message]:
        return case.domain.knows(question[0]) if self.about == "knowledge" else case.domain.truth(*question)

    def _opinion(self, true: Scored, false: Scored) -> Opinion:
        if error := true.error or false.error:
            return failure(error)
        log_true, log_false = sum(true.logprobs), sum(false.logprobs)
        score = share(log_true, log_false)
        verdict = None if self.about == "knowledge" or score == 0.5 else "pass" if score > 0.5 else "fail"
        return {"score": score, "verdict": verdict, "rationale": f"log P(True) = {log_true:.4f}", "error": None}


def share(log_p: float, log_q: float) -> float:
    """p / (p + q) of two log-probabilities, without under- or overflow."""
    return 0.5 + 0.5 * math.tanh((log_p - log_q) / 2)
