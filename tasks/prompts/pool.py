"""The parent writes new problems in the manner of a pool that grows with what it writes, near its own frontier.

Of earlier rounds it knows the parent's problems only: one that an older round accepted can be accepted again. The draws
of a batch are seeded by the round's seed and the number of problems that have arrived, so they depend on `batch`.
"""

import random
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import polars as pl
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from tasks.domains import Message
from tasks.engines import Policy, Request, Sampling, turns
from tasks.prompts import FROZEN, Case, Desk, Known, Screening
from tasks.stage import content_id, seed_of

LEAST_WEIGHT = 0.1
"""No level's weight falls below this share: a level that was found easy is asked for again now and then."""


class Wish(NamedTuple):
    """One problem to be written."""

    level: int | None
    shown: list[Known]
    request: Request


class Pool(Screening):
    """Few-shot self-instruction (Self-Instruct, Wang et al. 2022, arXiv:2212.10560).

    The author is shown problems of a pool: the domain's seeds, and what the parent's round and this one accepted. A
    level is drawn in proportion to its weight in `levels`, times 2√(a(1 − a)) with `frontier`, where a is the mean
    share of the majority answer among the parent's responses of that level: highest where the parent agrees with
    itself half of the time. The curve is the expected learning signal of Self-Evolving Curriculum (Chen et al. 2025,
    arXiv:2505.14970); putting agreement, which needs no label, in the place of accuracy is our reading.
    """

    needs: ClassVar[frozenset[Literal["samples", "scores"]]] = frozenset({"samples"})
    example: ClassVar[dict[str, Any]] = {"count": 12, "evaluation": {"heldout": 50}}

    count: PositiveInt = 700
    """Problems wanted; writing stops as soon as so many are accepted."""
    tries: PositiveInt = 4
    """Problems written at most, as a multiple of `count`."""
    seeds: PositiveInt = 175
    """Seed problems of the domain in the pool."""
    examples: NonNegativeInt = 8
    """Problems of the pool that the author is shown."""
    written: NonNegativeInt = 2
    """How many of these a model wrote, once there are any."""
    levels: dict[int, PositiveFloat] | None = None
    """Weight of each level; null gives the levels of the seeds equal weights."""
    frontier: bool = True
    """Weight levels by how near the parent's frontier they are, once the parent has answered problems."""
    batch: PositiveInt = 256
    """Problems written at a time; the next batch sees what this one added to the pool."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature of the author."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus that the author samples from."""
    max_tokens: PositiveInt = 128
    """Longest problem, in tokens."""

    def __call__(self, case: Case) -> pl.LazyFrame:
        """Has problems written until `count` are accepted or `tries` are used up."""
        items = case.domain.items("seeds", self.seeds, FROZEN)
        seeds = [Known(content_id(i.problem, 0), i.problem, i.level) for i in items]
        old = _accepted(case.prompts)
        desk, weights = self.desk(case, [*seeds, *old]), self.weights(case, seeds)
        with case.policy() as policy:
            while wanted := self._wanted(desk):
                rng = random.Random(seed_of(case.seed, "pool", len(desk.rows)))
                pool = (seeds, [*old, *desk.accepted])
                self._write([self._wish(case, rng, weights, pool) for _ in range(wanted)], policy, desk)
        return desk.table()

    def weights(self, case: Case, seeds: Sequence[Known]) -> dict[int | None, float]:
        """The weight of each level; {None: 1.0} for a domain without levels."""
        prior = self.levels or {k.level: 1.0 for k in sorted(seeds, key=lambda k: k.level or 0)}
        if not self.frontier:
            return dict(prior)
        agreed = agreement(case.prompts, case.responses)
        return {level: w * nearness(agreed.get(level)) for level, w in prior.items()}

    def _wanted(self, desk: Desk) -> int:
        return min(self.batch, self.count - len(desk.accepted), self.tries * self.count - len(desk.rows))

    def _wish(
        self, case: Case, rng: random.Random, weights: dict[int | None, float], pool: tuple[list[Known], list[Known]]
    ) -> Wish:
        level = rng.choices(list(weights), list(weights.values()))[0] if weights else None
        ours, models = (_of_level(part, level) for part in pool)
        written = _draw(rng, models, self.written)
        shown = _draw(rng, ours, self.examples - len(written)) + written
        rng.shuffle(shown)
        return Wish(level, shown, self._request(case.domain.write([k.problem for k in shown], level), rng))

    def _request(self, messages: list[Message], rng: random.Random) -> Request:
        sampling = Sampling(self.temperature, self.top_p, max_tokens=self.max_tokens)
        return Request(turns(messages), sampling, rng.getrandbits(63))

    def _write(self, wishes: list[Wish], policy: Policy, desk: Desk) -> None:
        """Has a batch written, and puts it on the desk in the order of the wishes."""
        came = dict(policy.sample([w.request for w in wishes]))
        for index, wish in enumerate(wishes):
            text, error = came[index].text, came[index].error
            origin = {"source": "model", "parents": [k.id for k in wish.shown], "model": policy.digest}
            item = None if error else desk.domain.parse(text)
            desk.take(item, text, f"failed: {error}" if error else None, **origin)


def nearness(agreed: float | None) -> float:
    """2√(a(1 − a)): 1 where half agree, and where nothing is known; never below 0.1."""
    return 1.0 if agreed is None else max(LEAST_WEIGHT, 2 * (agreed * (1 - agreed)) ** 0.5)


def agreement(prompts: pl.LazyFrame, responses: pl.LazyFrame) -> dict[int, float]:
    """By level, the mean over prompts of the share of the most frequent answer among all answers that came back."""
    came = responses.filter(pl.col("error").is_null())
    votes = came.filter(pl.col("answer").is_not_null()).group_by("prompt_id", "answer").agg(votes=pl.len())
    most = votes.group_by("prompt_id").agg(pl.col("votes").max())
    share = came.group_by("prompt_id").agg(k=pl.len()).join(most, on="prompt_id", how="left")
    by_level = (
        share.join(prompts.select(pl.col("id").alias("prompt_id"), "level"), on="prompt_id")
        .drop_nulls("level")
        .group_by("level")
        .agg(a=(pl.col("votes").fill_null(0) / pl.col("k")).mean().round(6))
    )
    return dict(by_level.sort("level").collect().iter_rows())


def _accepted(prompts: pl.LazyFrame) -> list[Known]:
    rows = prompts.filter(pl.col("error").is_null()).select("id", "problem", "level").sort("id").collect()
    return [Known(*row) for row in rows.iter_rows()]


def _of_level(pool: list[Known], level: int | None) -> list[Known]:
    return [k for k in pool if k.level == level] or pool


def _draw(rng: random.Random, pool: list[Known], count: int) -> list[Known]:
    return rng.sample(pool, min(count, len(pool)))
