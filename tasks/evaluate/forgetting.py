"""What the model can no longer do that its parent or its base could."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import polars as pl
from pydantic import PositiveInt

from tasks.core.stage import Ability, Result
from tasks.evaluate import EvaluateCase, Evaluation
from tasks.evaluate._items import Row, checked, eval_items, greedily, round_items, trained_on
from tasks.evaluate._measures import Measure, at_levels, measures_frame, proportion


class Forgetting(Evaluation):
    """Measures the share of problems that an ancestor solved and the model does not. That is a forgetting event of an example
    (Toneva et al. 2018, arXiv:1812.05159), here between rounds in the place of steps, and by greedy answers.

    Measures, by level: `forgetting_parent` and `forgetting_base`, of the problems that the greedy answer of the parent, or
    base, solved the share that the model's does not; `forgetting_trained`, the share of the prompts that the parent was
    trained on which the model solves. What could not be checked counts in none of them. A base has nothing to forget.
    The gate `forgetting` looks at the first two.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset({"samples"})
    example: ClassVar[dict[str, Any]] = {"problems": 7, "limit": 2}

    split: Literal["heldout", "validation"] = "validation"
    """The frozen set; its problems that no member of the exam asked of the ancestor greedily do not count."""
    problems: PositiveInt = 350
    """Its problems, spread over the levels. As in `answers`, the model is asked once."""
    limit: PositiveInt = 100
    """Prompts that the parent was trained on, the first by id."""
    max_tokens: PositiveInt = 128
    """Longest answer."""

    def read_tables(self) -> frozenset[str]:
        """The ancestors' answers in the exam, and what the parent was trained on."""
        return frozenset({"parent_evals", "base_evals", "parent_prompts", "parent_training"})

    def __call__(self, case: EvaluateCase) -> Result:
        """The measures."""
        before = {"parent": case.parent_evals, "base": case.base_evals}
        solved = {name: self._solved(evals) for name, evals in before.items() if evals is not None}
        if not solved:
            return Result({"measures": measures_frame([])})
        items = eval_items(case.domain, self.split, self.problems)
        learnt = round_items(trained_on(case.parent_prompts, case.parent_training), self.limit)
        with case.open() as policy:
            rows = greedily(policy, case.domain, [*items, *learnt], self.max_tokens)
        exam, trained = checked(rows[: len(items)]), checked(rows[len(items) :])
        measures = at_levels(trained, lambda g, n: proportion("forgetting_trained", n, [r["correct"] for r in g]))
        for name, known in solved.items():
            measures += at_levels([r for r in exam if r["item"] in known], lambda g, n, k=name: _lost(k, n, g))
        return Result({"measures": measures_frame(measures)})

    def _solved(self, evals: pl.LazyFrame) -> set[str]:
        """The items of the set that a greedy answer solved."""
        rows = evals.filter(pl.col("correct"), split=self.split, mode="greedy")
        return set(rows.select("item").collect()["item"])


def _lost(ancestor: str, level: int | None, rows: Sequence[Row]) -> Measure | None:
    return proportion(f"forgetting_{ancestor}", level, [not r["correct"] for r in rows])
