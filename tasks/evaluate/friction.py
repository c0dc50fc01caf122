"""Does the model use true feedback?"""

from typing import Any, ClassVar, Literal

from pydantic import PositiveInt

from tasks.core.stage import Ability, Result
from tasks.domains import Domain, Item
from tasks.engines import Policy, Sampling
from tasks.evaluate import EvaluateCase, Evaluation
from tasks.evaluate._items import Row, answer_row, ask, eval_items, greedily
from tasks.evaluate._measures import at_levels, measures_frame, proportion


class Friction(Evaluation):
    """Measures how many wrong answers stay wrong after true feedback: feedback friction (Jiang et al. 2025, arXiv:2506.11930).
    The domain checks the greedy answer and says whether and where it is wrong (`describe`), and the model answers again,
    until it is right or has had its tries. The paper's feedback comes from a model that knows the solution.

    Measures, by level: `friction_stuck`, of the answers that were wrong the share that still is after the last try that
    could be checked; `friction_wrong`, the share that was wrong at first. `friction_errors` is the share of the wrong
    answers that no answer followed which could be checked; these do not count as stuck. A domain without a verifier has no
    measures.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset({"samples"})
    example: ClassVar[dict[str, Any]] = {"problems": 7, "tries": 2}

    split: Literal["heldout", "validation"] = "validation"
    """The frozen set."""
    problems: PositiveInt = 140
    """Its problems, spread over the levels."""
    tries: PositiveInt = 3
    """Answers after feedback."""
    max_tokens: PositiveInt = 128
    """Longest answer."""

    def __call__(self, case: EvaluateCase) -> Result:
        """The measures."""
        items = eval_items(case.domain, self.split, self.problems)
        with case.open() as policy:
            first = greedily(policy, case.domain, items, self.max_tokens)
            wrong = [(i, r) for i, r in zip(items, first, strict=True) if r.get("correct") is False]
            last = self._corrected(policy, case.domain, wrong)
        checked = [r for r in first if r.get("correct") is not None]
        stuck = [r for r in last if r.get("correct") is not None]
        measures = at_levels(stuck, lambda g, n: proportion("friction_stuck", n, [not r["correct"] for r in g]))
        measures += at_levels(checked, lambda g, n: proportion("friction_wrong", n, [not r["correct"] for r in g]))
        errors = proportion("friction_errors", None, [r.get("correct") is None for r in last])
        return Result({"measures": measures_frame([*measures, *([errors] if errors else [])])})

    def _corrected(self, policy: Policy, domain: Domain, wrong: list[tuple[Item, Row]]) -> list[Row]:
        """The last answer to each problem that could be checked; a row without `correct` where none could."""
        sampling = Sampling(temperature=0.0, max_tokens=self.max_tokens)
        latest = [row for _, row in wrong]
        last: list[Row] = [{"level": row["level"]} for row in latest]
        for _ in range(self.tries):
            open_ = [n for n, row in enumerate(latest) if row["correct"] is False]
            chats = [_feedback(domain, wrong[n][0], latest[n]["response"]) for n in open_]
            for n, completion in zip(open_, ask(policy, chats, sampling), strict=True):
                row = answer_row(wrong[n][0], completion, domain)
                if row.get("correct") is not None:
                    latest[n] = last[n] = row
        return last


def _feedback(domain: Domain, item: Item, response: str) -> Any:
    verdict = domain.verify(item.problem, response, item.reference)
    return domain.refine(item.problem, response, domain.describe(verdict))
