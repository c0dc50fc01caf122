"""How often do answers verify, backtrack, set sub-goals or reason backwards?"""

from typing import Any, ClassVar, Literal

from pydantic import PositiveInt, field_validator

from tasks.core.stage import ANCESTORS, Ability, Result
from tasks.core.verdicts import Count
from tasks.engines import Completion, Sampling
from tasks.evaluate import EvaluateCase, Evaluation
from tasks.evaluate._items import ask, eval_items, greedily
from tasks.evaluate._measures import mean, measures_frame, proportion

FORM = Count()
HABITS = {
    "verification": "it checks an intermediate result or the final answer",
    "backtracking": "it sees that a way of going about it fails, gives it up and tries another one",
    "subgoals": "it sets itself an intermediate goal on the way to the answer",
    "backward_chaining": "it reasons from the wanted result back to what is given",
}


class Habits(Evaluation):
    """Counts four cognitive behaviours in the model's answers: verification, backtracking, sub-goals and backward chaining. A
    base that shows them gains more from training on itself (Gandhi et al. 2025, arXiv:2503.01307). A model counts each by a
    judge prompt of its own.

    Measures: `habits_<name>`, the mean count per answer, for `verification`, `backtracking`, `subgoals` and
    `backward_chaining`; `habits_errors`, the share of the judge's requests that failed or whose count cannot be read, which
    counts in nothing else.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset({"samples"})
    example: ClassVar[dict[str, Any]] = {"problems": 7}

    split: Literal["heldout", "validation"] = "validation"
    """The frozen set."""
    problems: PositiveInt = 35
    """Its problems, spread over the levels, each answered greedily."""
    counter: str = "base"
    """Name of the model that counts: `base` or one of the roster, the same in all rounds."""
    max_tokens: PositiveInt = 128
    """Longest answer, and longest judgment."""

    @field_validator("counter")
    @classmethod
    def _same_in_all_rounds(cls, name: str) -> str:
        if name in {"model", *ANCESTORS} - {"base"}:
            raise ValueError(f"{name} is another model in each round; name base, or a model of the roster")
        return name

    def opened_models(self) -> frozenset[str]:
        """The model and the one that counts."""
        return frozenset({"model", self.counter})

    def __call__(self, case: EvaluateCase) -> Result:
        """The measures."""
        items = eval_items(case.domain, self.split, self.problems)
        with case.open() as policy:
            rows = greedily(policy, case.domain, items, self.max_tokens)
        answers = sorted((r["problem"], r["response"]) for r in rows if r.get("response"))
        counts = self._counts(case, answers) if answers else {}
        values = {habit: [float(n) for n in of if n is not None] for habit, of in counts.items()}
        measures = [mean(f"habits_{habit}", None, of, None) for habit, of in values.items()]
        errors = proportion("habits_errors", None, [n is None for of in counts.values() for n in of])
        return Result({"measures": measures_frame(m for m in [*measures, errors] if m)})

    def _counts(self, case: EvaluateCase, answers: list[tuple[str, str]]) -> dict[str, list[int | None]]:
        """The count of each habit in each answer; None where it failed or cannot be read."""
        sampling = Sampling(temperature=0.0, max_tokens=self.max_tokens, regex=FORM.regex)
        chats = [case.domain.count_habit(*answer, text, FORM) for text in HABITS.values() for answer in answers]
        with case.open(self.counter) as policy:
            counts = [read(completion) for completion in ask(policy, chats, sampling)]
        return {h: counts[n * len(answers) : (n + 1) * len(answers)] for n, h in enumerate(HABITS)}


def read(completion: Completion) -> int | None:
    """The count that closes a judgment; None where there is none."""
    return None if completion.error else FORM.read(completion.text).count
