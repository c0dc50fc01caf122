"""The parent's problems, rewritten where its answers say most, beside some of the originals."""

import random
from typing import Any, ClassVar, Literal, NamedTuple

import polars as pl
from pydantic import Field, PositiveInt

from tasks.core.ids import content_id, seed_of
from tasks.domains import Item
from tasks.prompts import FROZEN, PromptsCase
from tasks.prompts._agreement import agreement
from tasks.prompts._screen import Intake, Problem
from tasks.prompts._writing import Draft, Writing, sample


class Original(NamedTuple):
    """A problem that may be rewritten."""

    problem: Problem
    reference: str | None = None
    author: str | None = None
    """Digest of the weights that wrote it."""


class Evolve(Writing):
    """Has a model rewrite the parent's problems in depth and in breadth, drawn in proportion to their informativeness,
    and mixes in originals, as eva does (Ye et al. 2024, arXiv:2411.00062).

    Informativeness is the best reward of a prompt's answers less the mean. Our reading, for this stage sees the parent's
    answers and no judgments: an answer's reward is its vote share, so that it is max_a p_a − Σ_a p_a² over the shares
    p_a of the answers, in [0, 1/4]. It is 0 where all answers agree or all differ. Where no prompt is informative, as in a
    base's first round, all are drawn alike; there the originals are the domain's seeds.
    """

    example: ClassVar[dict[str, Any]] = {"count": 12, "originals": 0.0, "evaluation": {"heldout": 50}}

    model: str = "parent"
    """Which model rewrites: an ancestor (`parent`, `base`, `anchor`, `grandparent`) or a model of the roster."""
    originals: float = Field(0.25, ge=0, le=1)
    """Share of `count` that are originals, drawn uniformly."""
    deeper: float = Field(0.5, ge=0, le=1)
    """Share of the rewritings that ask for a further step; the others ask for another problem of the kind."""
    seeds: PositiveInt = 175
    """Seed problems of the domain that are the originals where the parent has no problems."""

    def opened_models(self) -> frozenset[str]:
        """The author."""
        return frozenset({self.model})

    def __call__(self, case: PromptsCase) -> pl.LazyFrame:
        """Originals, and rewritings until `count` are accepted or `max_attempts` are used up."""
        pool = known(case) or [
            Original(Problem(content_id(i.problem, 0), i.problem, i.level), i.reference)
            for i in case.domain.items("seeds", self.seeds, FROZEN)
        ]
        weights = informativeness(case.responses)
        intake = self._with_originals(case, pool)
        with case.models.open(self.model) as policy:
            while pool and (size := self.batch_size(intake)):
                rng = random.Random(seed_of(case.seed, "evolve", len(intake.rows)))
                drawn = weighted(rng, pool, weights, size)
                self.write([self._rewrite(case, rng, problem) for problem in drawn], policy, intake)
        return intake.table()

    def _with_originals(self, case: PromptsCase, pool: list[Original]) -> Intake:
        """An intake that has some originals, and turns the others away."""
        intake = self.intake(case)
        rng = random.Random(seed_of(case.seed, "evolve", "originals"))
        for (_, text, level, source), reference, author in sample(rng, pool, round(self.originals * self.count)):
            origin: Literal["seed", "model"] = "model" if source == "model" else "seed"
            intake.add(Item(text, level, reference), text, source=origin, model=author)
        for original in pool:
            intake.screen.add_problem(original.problem.id, original.problem.text)
        return intake

    def _rewrite(self, case: PromptsCase, rng: random.Random, problem: Problem) -> Draft:
        how: Literal["deeper", "broader"] = "deeper" if rng.random() < self.deeper else "broader"
        return Draft([problem], self.request(case.domain.mutate(problem.text, how), rng))


def known(case: PromptsCase) -> list[Original]:
    """The parent's usable problems, by id."""
    rows = case.prompts.filter(pl.col("error").is_null()).sort("id")
    columns = rows.select("id", "problem", "level", "source", "reference", "model").collect()
    return [Original(Problem(*row[:4]), *row[4:]) for row in columns.iter_rows()]


def informativeness(responses: pl.LazyFrame) -> dict[str, float]:
    """By prompt, max p − Σ p², p the shares of its answers among the responses that have one."""
    shares = agreement(responses).drop_nulls("answer")
    p = pl.col("share") / pl.col("share").sum().over("prompt_id")
    gaps = shares.with_columns(p=p).group_by("prompt_id").agg((pl.col("p").max() - pl.col("p").pow(2).sum()).round(9))
    return dict(gaps.sort("prompt_id").collect().iter_rows())


def weighted(rng: random.Random, pool: list[Original], weights: dict[str, float], size: int) -> list[Problem]:
    """Problems drawn in proportion to their weights, or alike where none has any."""
    own = [max(0.0, weights.get(original.problem.id, 0.0)) for original in pool]
    return [original.problem for original in rng.choices(pool, own if sum(own) else None, k=size)]
