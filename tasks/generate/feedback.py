"""A teacher says what is wrong with an answer, and the student answers again."""

from typing import Any, ClassVar

import polars as pl
from pydantic import PositiveInt

from tasks.core.ids import seed_of
from tasks.engines import Completion, Sampling, ask, completion_columns
from tasks.generate import GenerateCase
from tasks.generate._drawing import Drawing, need_verifier, responses, with_ids, with_verdicts


class Feedback(Drawing):
    """Has a student answer again after a teacher's feedback on its wrong answer, as in ThinkTuning (RRV et al. 2025,
    arXiv:2508.07616). That answer says `hinted`; what is trained on is the answer after the bare prompt.

    Our reading (of the abstract alone): every answer that the verifier calls wrong gets one feedback and one further
    answer; one that failed or cannot be checked gets none. Where the feedback failed or says nothing, the further answer
    is a row with an error. Student and teacher are opened one after the other.
    """

    example: ClassVar[dict[str, Any]] = {"teacher": "base", "samples": 2}

    model: str = "parent"
    """The student."""
    teacher: str
    """Who gives feedback: an ancestor or a model of the roster."""
    feedback_tokens: PositiveInt = 192
    """Longest feedback, in tokens."""

    def opened_models(self) -> frozenset[str]:
        """Student and teacher."""
        return frozenset({self.model, self.teacher})

    def __call__(self, case: GenerateCase) -> pl.LazyFrame:
        """The own samples; the further answer to the k-th of them has the number `samples` + k. The domain must verify
        (FlywheelError).
        """
        need_verifier(self, case.domain)
        own = self.draw(case, self.model, case.prompts)
        problems = case.prompts.select("problem", prompt_id="id")
        wrong = with_verdicts(own, case).filter(~pl.col("passed")).join(problems, on="prompt_id")
        if wrong.is_empty():
            return own.lazy()
        rows = self._again(case, wrong.sort("id"), self._feedback(case, wrong.sort("id")))
        return pl.concat([own, rows]).sort("prompt_id", "sample").lazy()

    def _feedback(self, case: GenerateCase, wrong: pl.DataFrame) -> list[str | Completion]:
        """The feedback to each wrong answer, or the failure that stands for it."""
        chats = [case.domain.feedback(*row) for row in wrong.select("problem", "response").iter_rows()]
        sampling = Sampling(self.temperature, self.top_p, self.min_p, self.feedback_tokens)
        seeds = [seed_of(case.seed, "feedback", "teacher", id) for id in wrong["id"]]
        with case.models.open(self.teacher) as policy:
            completions = ask(policy, chats, sampling, seeds)
        return [
            _missing(c.error) if c.error else case.domain.read_feedback(c.text) or _missing("empty")
            for c in completions
        ]

    def _again(self, case: GenerateCase, wrong: pl.DataFrame, feedback: list[str | Completion]) -> pl.DataFrame:
        draws = wrong.select("prompt_id", pl.col("sample").cast(pl.Int64) + self.samples)
        draws = draws.with_columns(self.seeds(case, self.model))
        texts = wrong.select("problem", "response").iter_rows()
        chats = {
            n: case.domain.refine(*text, said)
            for n, (text, said) in enumerate(zip(texts, feedback, strict=True))
            if isinstance(said, str)
        }
        with case.models.open(self.model) as policy:
            answers = ask(policy, list(chats.values()), self.sampling, draws["seed"][list(chats)])
            refined = dict(zip(chats, answers, strict=True))
            completions = [(n, refined[n] if isinstance(c, str) else c) for n, c in enumerate(feedback)]
            answers = responses(completion_columns(completions), case.domain)
            rows = pl.concat([draws, answers], how="horizontal").lazy()
            return with_ids(rows, self.model, policy.digest, hinted=True).collect()


def _missing(why: str) -> Completion:
    """Stands for the answer after feedback that did not come."""
    return Completion("", finish_reason="error", error=f"no feedback: {why}")
