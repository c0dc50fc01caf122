"""Do the round's judges score a right answer above its spoiled copy?"""

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import PositiveInt

from tasks.core.ids import seed_of
from tasks.core.stage import Ability, Result
from tasks.domains import Domain, Item
from tasks.evaluate import EvaluateCase, Evaluation
from tasks.evaluate._gold import auditable, judged
from tasks.evaluate._items import ITEMS_SEED, Row, eval_items
from tasks.evaluate._measures import Measure, measures_frame, proportion

NUMBER = re.compile(r"\d+")
SHIFTS = (-3, -2, -1, 1, 2, 3)


class RewardConsistency(Evaluation):
    """Measures how often a judge scores a right answer strictly above the same answer with one number changed. The number
    moves by 1 to 3, and the domain's verifier must fail the changed answer, for a change can leave it right. That is our
    reading of contrast sets (Gardner et al. 2020, arXiv:2004.02709) for rewards: pairs on which a judge must flip.

    Measures of each judge that can judge a single response: `reward_consistency/<judge>`, the share of the pairs on which
    it flips, and `reward_consistency_errors/<judge>`, that of the pairs of which it could not score both. A domain without
    a gold set or a verifier has no pairs. As in `judging`, the model stands in the parent's place.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset({"samples"})
    example: ClassVar[dict[str, Any]] = {"count": 14}

    count: PositiveInt = 70
    """Gold answers to take the right ones of, spread over the levels."""

    def __call__(self, case: EvaluateCase) -> Result:
        """The measures."""
        judges, _ = auditable(case)
        gold = eval_items(case.domain, "gold", self.count)
        pairs = [(i, w) for i in gold if i.response and i.wrong_step is None and (w := spoiled(i, case.domain))]
        if not judges or not pairs:
            return Result({"measures": measures_frame([])})
        _, opinions = judged(judges, [item for pair in pairs for item in pair], case)
        scores = {(name, item.problem, item.response): row["score"] for name, item, row in opinions}
        rows = {name: [_scores(scores, name, pair) for pair in pairs] for name in judges}
        return Result({"measures": measures_frame(m for n in judges for m in consistency_measures(n, rows[n]))})


def _scores(scores: dict[Any, float | None], judge: str, pair: tuple[Item, Item]) -> Row:
    right, wrong = (scores.get((judge, item.problem, item.response)) for item in pair)
    return {"right": right, "wrong": wrong, "scored": right is not None and wrong is not None}


def spoiled(item: Item, domain: Domain) -> Item | None:
    """The item with its right answer made wrong; None where no change of a number is known to do that."""
    text = item.response or ""
    rng = random.Random(seed_of(ITEMS_SEED, "reward_consistency", item.problem, text))
    numbers = [m for m in NUMBER.finditer(text) if len(m[0]) < 10]
    changes = [(m, shift) for m in numbers for shift in SHIFTS if int(m[0]) + shift >= 0]
    for number, shift in rng.sample(changes, min(len(changes), 50)):
        changed = f"{text[: number.start()]}{int(number[0]) + shift}{text[number.end() :]}"
        if domain.verify(item.problem, changed, item.reference).passed is False:
            return replace(item, response=changed)
    return None


def consistency_measures(judge: str, rows: Sequence[Row]) -> list[Measure]:
    """Measures of a judge from `right`, `wrong` (the scores of each pair) and `scored` (whether it has both)."""
    flips = [r["right"] > r["wrong"] for r in rows if r["scored"]]
    measures = [
        proportion(f"reward_consistency/{judge}", None, flips),
        proportion(f"reward_consistency_errors/{judge}", None, [not r["scored"] for r in rows]),
    ]
    return [m for m in measures if m]
