"""Does the model find its own answers likelier than another model's?"""

from statistics import fmean
from typing import Any, ClassVar, Literal

from pydantic import PositiveInt

from tasks.core.stage import Ability, Result
from tasks.domains import Domain, Item
from tasks.engines import Policy, turns
from tasks.evaluate import EvaluateCase, Evaluation
from tasks.evaluate._items import eval_items, greedily
from tasks.evaluate._measures import difference, measures_frame, proportion


class Familiarity(Evaluation):
    """Measures how much likelier the model finds its own greedy answers than another model's to the same problems: the mean
    log-probability per token of its own, less that of the other's, in nats, the end token included. Judges prefer text that
    is likely under themselves, whoever wrote it (Wataoka et al. 2024, arXiv:2410.21819; the measure is our reading). As it
    grows, rewards from the model's own likelihood or its own judgment say less about quality.

    Measures: `familiarity_own` and `familiarity_other`, the two means; `familiarity_gap`, their mean difference; and
    `familiarity_errors`, the share of the problems of which one of the two is missing. A base is its own base: its gap is 0.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset({"samples", "scores"})
    example: ClassVar[dict[str, Any]] = {"problems": 7}

    other: str = "base"
    """Name of the other model: `base`, an ancestor or one of the roster."""
    split: Literal["heldout", "validation"] = "validation"
    """The frozen set."""
    problems: PositiveInt = 70
    """Its problems, spread over the levels."""
    max_tokens: PositiveInt = 128
    """Longest answer."""

    def opened_models(self) -> frozenset[str]:
        """The model and the other one."""
        return frozenset({"model", self.other})

    def __call__(self, case: EvaluateCase) -> Result:
        """The measures."""
        items = eval_items(case.domain, self.split, self.problems)
        has_other = self.other == "base" or self.other in case.models.names
        with case.open(self.other if has_other else "model") as policy:  # a base has no parent
            theirs = self._answers(policy, case.domain, items)
        with case.open() as policy:
            ours = self._answers(policy, case.domain, items)
            own, others = (likelihoods(policy, case.domain, items, texts) for texts in (ours, theirs))
        pairs = [(a, b) for a, b in zip(own, others, strict=True) if a is not None and b is not None]
        measures = [
            difference("familiarity_own", None, [a for a, _ in pairs]),
            difference("familiarity_other", None, [b for _, b in pairs]),
            difference("familiarity_gap", None, [a - b for a, b in pairs]),
            proportion("familiarity_errors", None, [n >= len(pairs) for n in range(len(items))]),
        ]
        return Result({"measures": measures_frame(m for m in measures if m)})

    def _answers(self, policy: Policy, domain: Domain, items: list[Item]) -> list[str | None]:
        return [row.get("response") or None for row in greedily(policy, domain, items, self.max_tokens)]


def likelihoods(policy: Policy, domain: Domain, items: list[Item], texts: list[str | None]) -> list[float | None]:
    """Mean log-probability per token of each text after its problem; None where there is none."""
    given = [n for n, text in enumerate(texts) if text is not None]
    chats = [turns(domain.solve(items[n].problem)) for n in given]
    scores = dict(policy.score(chats, [texts[n] or "" for n in given], closed=True)) if given else {}
    means = {n: fmean(s.logprobs) for k, n in enumerate(given) if not (s := scores[k]).error and s.logprobs}
    return [means.get(n) for n in range(len(texts))]
