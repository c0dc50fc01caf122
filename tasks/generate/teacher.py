"""A teacher answers what its student gets wrong."""

from typing import Any, ClassVar, Literal

import polars as pl
from pydantic import PositiveInt

from tasks.generate import GenerateCase
from tasks.generate._drawing import Drawing, failed, need_verifier, with_verdicts


class Teacher(Drawing):
    """Draws samples of a student, and answers of a teacher to the prompts that the student gets wrong, as LLM2LLM has its
    teacher work from what the student fails at (Lee et al. 2024, arXiv:2403.15042).

    Wrong is what the domain's verifier says is wrong. An answer that failed or cannot be checked is neither right nor
    wrong. Answering the same prompt, rather than writing another like it as LLM2LLM does, is our reading.
    """

    example: ClassVar[dict[str, Any]] = {"model": "base", "samples": 2}

    model: str
    """The teacher: an ancestor or a model of the roster."""
    student: str = "parent"
    """Who samples first."""
    when: Literal["some_wrong", "none_right"] = "none_right"
    """`none_right`: at least one of the student's samples is wrong and none is right; `some_wrong`: at least one is wrong."""
    answers: PositiveInt = 1
    """Answers of the teacher a prompt."""

    def opened_models(self) -> frozenset[str]:
        """Student and teacher."""
        return frozenset({self.student, self.model})

    def __call__(self, case: GenerateCase) -> pl.LazyFrame:
        """The student's rows, and the teacher's numbered after them. The domain must verify (FlywheelError)."""
        need_verifier(self, case.domain)
        own = self.draw(case, self.student, case.prompts)
        lacking = failed(with_verdicts(own, case), case, self.when == "none_right")
        numbers = range(self.samples, self.samples + self.answers)
        return pl.concat([own, self.draw(case, self.model, lacking, numbers)]).sort("prompt_id", "sample").lazy()
