"""Does the model recite problems that it was trained on?"""

from math import sqrt
from typing import Any, ClassVar, Literal

from pydantic import PositiveInt

from tasks.core.stage import Ability, Result
from tasks.engines import Completion, Policy, Sampling
from tasks.evaluate import EvaluateCase, Evaluation
from tasks.evaluate._items import ask, eval_items, round_items, trained_on
from tasks.evaluate._measures import auroc, mean, measures_frame, proportion


class Contamination(Evaluation):
    """Measures whether problems that the round was trained on can be told from those of the exam by how the model answers a
    second time: Self-Critique (Tao et al. 2025, arXiv:2510.09259). The model answers greedily, and is then asked to go another
    way; on a problem that it has memorised it goes the same way again. The score is the cosine of the two answers' token
    entropies, the shorter padded with zeros, times the shorter length over the longer; higher is more contaminated.

    A score means something beside those of clean problems only. Here the prompts that the round was trained on are the
    ones that were seen, and those of the frozen set the clean ones. Measures: `contamination_auroc`, the chance that one
    that was seen scores above one of the exam, 0.5 where training left no trace; `contamination_training` and
    `contamination_exam`, the mean scores, the latter against that of earlier rounds and of the base, for an exam that
    leaked scores higher; `contamination_errors`, the share without a score, which counts in nothing else.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset({"samples", "entropies"})
    example: ClassVar[dict[str, Any]] = {"limit": 2, "problems": 7}

    limit: PositiveInt = 50
    """Prompts of the round, the first by id of those that it was trained on."""
    split: Literal["heldout", "validation"] = "heldout"
    """The frozen set."""
    problems: PositiveInt = 50
    """Its problems, spread over the levels."""
    max_tokens: PositiveInt = 128
    """Longest answer."""

    def read_tables(self) -> frozenset[str]:
        """The round's prompts, and the rows that it was trained on."""
        return frozenset({"prompts", "training"})

    def __call__(self, case: EvaluateCase) -> Result:
        """The measures."""
        seen = [i.problem for i in round_items(trained_on(case.prompts, case.training), self.limit)]
        problems = seen + [i.problem for i in eval_items(case.domain, self.split, self.problems)]
        scores = self._scores(case, problems)
        rows = [{"truth": n < len(seen), "score": score} for n, score in enumerate(scores)]
        usable = [r for r in rows if r["score"] is not None]
        measures = [
            auroc("contamination_auroc", None, usable),
            mean("contamination_training", None, [r["score"] for r in usable if r["truth"]]),
            mean("contamination_exam", None, [r["score"] for r in usable if not r["truth"]]),
            proportion("contamination_errors", None, [s is None for s in scores]),
        ]
        return Result({"measures": measures_frame(m for m in measures if m)})

    def _scores(self, case: EvaluateCase, problems: list[str]) -> list[float | None]:
        """The score of each problem; None where a request failed or gave no entropies."""
        if not problems:
            return []
        with case.open() as policy:
            first = self._ask(policy, [case.domain.solve(p) for p in problems])
            asked = [n for n, c in enumerate(first) if not c.error]
            chats = [case.domain.another_way(problems[n], first[n].text) for n in asked]
            second = dict(zip(asked, self._ask(policy, chats), strict=True))
        return [similarity(c, second[n]) if n in second else None for n, c in enumerate(first)]

    def _ask(self, policy: Policy, chats: list[Any]) -> list[Completion]:
        return ask(policy, chats, Sampling(temperature=0.0, max_tokens=self.max_tokens, trace=True))


def similarity(first: Completion, second: Completion) -> float | None:
    """cos(e₁, e₂) · min(|e₁|, |e₂|) / max(|e₁|, |e₂|) of two answers' token entropies in nats, padded with zeros; two
    answers without any entropy are equal. None where one of them has none to give.
    """
    a, b = first.token_entropies, second.token_entropies
    if first.error or second.error or not a or not b:
        return None
    norms = sqrt(sum(x * x for x in a)) * sqrt(sum(y * y for y in b))
    cosine = sum(x * y for x, y in zip(a, b, strict=False)) / norms if norms else float(not any(a) and not any(b))
    return cosine * min(len(a), len(b)) / max(len(a), len(b))
