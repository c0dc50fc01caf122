"""Does the model choose better between its answer and its revision than it revises?"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import PositiveInt

from tasks.core.stage import Ability, Result
from tasks.domains import PREFERENCE, Domain, Item
from tasks.engines import Completion, Policy, Sampling
from tasks.evaluate import EvaluateCase, Evaluation
from tasks.evaluate._items import Row, answer_row, ask, checked, eval_items, greedily
from tasks.evaluate._measures import Measure, difference, mean, measures_frame, proportion

WORTH = {"A": 0.0, "B": 1.0, "tie": 0.5}


class SelfChoice(Evaluation):
    """Measures whether the model chooses right more often between its answer and its revision than the revision is right
    (SELF-[IN]CORRECT, Jiang et al. 2024, arXiv:2404.04298, finds that choosing is no easier). Our reading: the model answers greedily, looks at its answer and answers again without being
    told whether it was wrong, and is then shown both answers in both orders. The revision's weight is the mean of its two
    choices, ½ for a tie, and the choice is right with the probability weight × revision right + (1 − weight) × first right.

    Measures over the problems whose answers could all be checked: `self_choice_first`, `self_choice_generation` and
    `self_choice_choice`, how often the first answer, the revision and the choice are right; `self_choice_gain`, the mean of
    choice − generation; `self_choice_revision`, the mean weight where the two answers differ; and `self_choice_errors`,
    the share of all problems where a request failed or a choice could not be read.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset({"samples"})
    example: ClassVar[dict[str, Any]] = {"problems": 7}

    split: Literal["heldout", "validation"] = "validation"
    """The frozen set."""
    problems: PositiveInt = 35
    """Its problems, spread over the levels."""
    max_tokens: PositiveInt = 128
    """Longest answer, and longest comparison."""

    def __call__(self, case: EvaluateCase) -> Result:
        """The measures."""
        items = eval_items(case.domain, self.split, self.problems)
        with case.open() as policy:
            pairs = self._answers(policy, case.domain, items)
            weights = _weights(policy, case.domain, pairs, self.max_tokens)
        rows = [(*pair, w) for pair, w in zip(pairs, weights, strict=True) if w is not None]
        errors = proportion("self_choice_errors", None, [n >= len(rows) for n in range(len(items))])
        return Result({"measures": measures_frame([*choice_measures(rows), *([errors] if errors else [])])})

    def _answers(self, policy: Policy, domain: Domain, items: list[Item]) -> list[tuple[Row, Row]]:
        """The first answer to each problem and its revision, where both came."""
        answers = zip(items, greedily(policy, domain, items, self.max_tokens), strict=True)
        first = [(item, row) for item, row in answers if row.get("response")]
        sampling = Sampling(temperature=0.0, max_tokens=self.max_tokens)
        completions = ask(policy, [domain.retry(item.problem, row["response"]) for item, row in first], sampling)
        revisions = [answer_row(item, c, domain) for (item, _), c in zip(first, completions, strict=True)]
        return [(row, r) for (_, row), r in zip(first, revisions, strict=True) if r.get("response")]


def _weights(policy: Policy, domain: Domain, pairs: Sequence[tuple[Row, Row]], max_tokens: int) -> list[float | None]:
    """The weight of each revision; ½ where it equals the first answer, None where a choice cannot be read."""
    sampling = Sampling(temperature=0.0, max_tokens=max_tokens, regex=PREFERENCE.regex)
    orders = [[(a, b), (b, a)] for a, b in pairs if a["response"] != b["response"]]
    shown = [domain.compare(x["problem"], x["response"], y["response"]) for order in orders for x, y in order]
    choices = [_worth(completion, domain) for completion in ask(policy, shown, sampling)]
    weights = iter([weight(*both) for both in zip(choices[::2], choices[1::2], strict=True)])
    return [0.5 if a["response"] == b["response"] else next(weights) for a, b in pairs]


def _worth(completion: Completion, domain: Domain) -> float | None:
    """How far a choice is for the answer that was shown second."""
    return None if completion.error else WORTH.get(domain.read(PREFERENCE, completion.text).choice or "")


def weight(forward: float | None, backward: float | None) -> float | None:
    """The weight of the revision from the choice that shows it second and the one that shows it first."""
    return None if forward is None or backward is None else (forward + 1 - backward) / 2


def choice_measures(rows: Sequence[tuple[Row, Row, float]]) -> list[Measure]:
    """All measures but the errors, from (first answer, revision, weight of the revision)."""
    known = [(a["correct"], b["correct"], w) for a, b, w in rows if len(checked([a, b])) == 2]
    choices = [w * b + (1 - w) * a for a, b, w in known]
    measures = [
        proportion("self_choice_first", None, [a for a, _, _ in known]),
        proportion("self_choice_generation", None, [b for _, b, _ in known]),
        mean("self_choice_choice", None, choices),
        difference("self_choice_gain", None, [c - b for c, (_, b, _) in zip(choices, known, strict=True)]),
        mean("self_choice_revision", None, [w for a, b, w in rows if a["response"] != b["response"]]),
    ]
    return [m for m in measures if m]
