"""A model writes new problems in the manner of a pool that grows with what it writes, near the parent's own frontier.

Of earlier rounds it knows the parent's problems only: one that an older round accepted can be accepted again. The draws
of a batch are seeded by the round's seed and the number of problems written before it, so they depend on `batch`.
"""

import random
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import polars as pl
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from tasks.core.ids import content_id, seed_of
from tasks.prompts import FROZEN, PromptsCase
from tasks.prompts._agreement import agreement
from tasks.prompts._screen import Problem, usable
from tasks.prompts._writing import Draft, Writing, few_shot

Shelf = tuple[list[Problem], list[Problem]]
"""Problems that people wrote, and those that models wrote."""
MIN_SIGNAL = 0.1
"""No level's signal counts as less: a level that was easy is sampled again now and then."""


class Pool(Writing):
    """Has a model write problems after few-shot examples of a pool that grows with what it writes, as Self-Instruct
    does (Wang et al. 2022, arXiv:2212.10560).

    The pool holds the domain's seeds, and what the parent's round and this one accepted. A level is drawn in proportion
    to its weight in `levels`, times its learning signal with `frontier`: the mean over the parent's prompts of that
    level of 2√(p(1 − p)), where p is the share of the prompt's most frequent answer. A prompt's signal is highest where
    the parent agrees with itself half of the time. A level of which it solves half the prompts always and the others
    never has none.

    2√(p(1 − p)) is the expected absolute advantage, the reward of a category in Self-Evolving Curriculum (Chen et al.
    2025, arXiv:2505.14970), with p the accuracy on a prompt. Agreement, which needs no label, in the place of accuracy is
    our reading.
    """

    example: ClassVar[dict[str, Any]] = {"count": 12, "evaluation": {"heldout": 50}}

    model: str = "parent"
    """Which model writes: an ancestor (`parent`, `base`, `anchor`, `grandparent`) or a model of the roster."""
    seeds: PositiveInt = 175
    """Seed problems of the domain in the pool."""
    examples: NonNegativeInt = 8
    """Problems of the pool that the author sees."""
    model_examples: NonNegativeInt = 2
    """Most of these that a model wrote."""
    levels: dict[int, PositiveFloat] | None = None
    """Weight of each level; null gives the levels of the seeds equal weights."""
    frontier: bool = True
    """Weight levels by their learning signal, once the parent has answered problems."""

    def opened_models(self) -> frozenset[str]:
        """The author."""
        return frozenset({self.model})

    def __call__(self, case: PromptsCase) -> pl.LazyFrame:
        """Has problems written until `count` are accepted or `max_attempts` are used up."""
        items = case.domain.items("seeds", self.seeds, FROZEN)
        seeds = [Problem(content_id(i.problem, 0), i.problem, i.level) for i in items]
        pool = list({p.id: p for p in (*seeds, *usable(case.prompts), *case.known)}.values())
        intake, weights = self.intake(case, pool), self.weights(case, seeds)
        with case.models.open(self.model) as policy:
            shelves, shown = Shelves(pool), 0
            while size := self.batch_size(intake):
                rng = random.Random(seed_of(case.seed, "pool", len(intake.rows)))
                shelves.add(intake.accepted[shown:])
                shown = len(intake.accepted)
                self.write([self._few_shot(case, rng, weights, shelves) for _ in range(size)], policy, intake)
        return intake.table()

    def weights(self, case: PromptsCase, seeds: Sequence[Problem]) -> dict[int | None, float]:
        """The weight of each level; {None: 1.0} for a domain without levels."""
        prior = self.levels or {p.level: 1.0 for p in sorted(seeds, key=lambda p: p.level or 0)}
        if not self.frontier:
            return dict(prior)
        signals = learning_signals(case.prompts, case.responses)
        return {level: w * max(MIN_SIGNAL, signals.get(level, 1.0)) for level, w in prior.items()}

    def _few_shot(
        self, case: PromptsCase, rng: random.Random, weights: dict[int | None, float], shelves: "Shelves"
    ) -> Draft:
        level = rng.choices(list(weights), list(weights.values()))[0] if weights else None
        examples = few_shot(rng, *shelves.of_level(level), self.examples, self.model_examples)
        return Draft(examples, self.request(case.domain.write([p.text for p in examples], level), rng))


def learning_signals(prompts: pl.LazyFrame, responses: pl.LazyFrame) -> dict[int, float]:
    """By level, the mean over prompts of 2√(p(1 − p)), in [0, 1]; p is the share of the prompt's most frequent answer among
    its responses without an error, 0 where none of them has an answer.
    """
    shares = agreement(responses).group_by("prompt_id").agg(p=pl.col("share").max().fill_null(0))
    by_level = (
        shares.join(prompts.select(pl.col("id").alias("prompt_id"), "level"), on="prompt_id")
        .drop_nulls("level")
        .group_by("level")
        .agg((2 * (pl.col("p") * (1 - pl.col("p"))).sqrt()).mean().round(6))
    )
    return dict(by_level.sort("level").collect().iter_rows())


class Shelves:
    """The pool's problems by level, those that people wrote and those that models wrote apart, in the order in which they came:
    a wish reads its level's alone, so that writing many problems takes time in proportion to them.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self._all: Shelf = ([], [])
        self._levels: dict[int | None, Shelf] = {}
        self.add(problems)

    def add(self, problems: Iterable[Problem]) -> None:
        """Puts further problems behind those that are there."""
        for problem in problems:
            for shelf in (self._all, self._levels.setdefault(problem.level, ([], []))):
                shelf[problem.source == "model"].append(problem)

    def of_level(self, level: int | None) -> tuple[list[Problem], list[Problem]]:
        """Those of a level that people wrote, and that models wrote; of either all, where the level has none."""
        own = self._levels.get(level, ([], []))
        return own[0] or self._all[0], own[1] or self._all[1]
