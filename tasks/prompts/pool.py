"""A model writes new problems in the manner of a pool that grows with what it writes, near the parent's own frontier.

Of earlier rounds it knows the parent's problems only: one that an older round accepted can be accepted again. The draws
of a batch are seeded by the round's seed and the number of problems written before it, so they depend on `batch`.
"""

import random
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import polars as pl
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from tasks.core.ids import content_id, seed_of
from tasks.core.stage import Ability
from tasks.domains import Message
from tasks.engines import Policy, Request, Sampling, turns
from tasks.prompts import FROZEN, PromptsCase, Screening
from tasks.prompts._screen import Intake, Problem, usable

MIN_SIGNAL = 0.1
"""No level's signal counts as less: a level that was easy is sampled again now and then."""


class FewShot(NamedTuple):
    """A request for one new problem, and the problems that it shows."""

    examples: list[Problem]
    request: Request


class Pool(Screening):
    """Few-shot self-instruction (Self-Instruct, Wang et al. 2022, arXiv:2212.10560).

    The author sees problems of a pool: the domain's seeds, and what the parent's round and this one accepted. A level is
    drawn in proportion to its weight in `levels`, times its learning signal with `frontier`: the mean over the parent's
    prompts of that level of 2√(p(1 − p)), where p is the share of the prompt's most frequent answer. A prompt's signal
    is highest where the parent agrees with itself half of the time. A level of which it solves half the prompts always
    and the others never has none.

    2√(p(1 − p)) is the expected absolute advantage, the reward of a category in Self-Evolving Curriculum (Chen et al.
    2025, arXiv:2505.14970), with p the accuracy on a prompt. Agreement, which needs no label, in the place of accuracy is
    our reading.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset({"samples"})
    example: ClassVar[dict[str, Any]] = {"count": 12, "evaluation": {"heldout": 50}}

    model: str = "parent"
    """Which model writes: an ancestor (`parent`, `base`, `anchor`, `grandparent`) or a model of the roster."""
    count: PositiveInt = 700
    """How many problems to accept; writing stops as soon as there are so many."""
    max_attempts: PositiveInt = 4
    """Problems written at most, as a multiple of `count`."""
    seeds: PositiveInt = 175
    """Seed problems of the domain in the pool."""
    examples: NonNegativeInt = 8
    """Problems of the pool that the author sees."""
    model_examples: NonNegativeInt = 2
    """How many of these a model wrote, once there are any."""
    levels: dict[int, PositiveFloat] | None = None
    """Weight of each level; null gives the levels of the seeds equal weights."""
    frontier: bool = True
    """Weight levels by their learning signal, once the parent has answered problems."""
    batch: PositiveInt = 256
    """Problems written at a time; the next batch sees what this one added to the pool."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature of the author."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus that the author samples from."""
    max_tokens: PositiveInt = 128
    """Longest problem, in tokens."""

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
            while size := self._batch_size(intake):
                rng = random.Random(seed_of(case.seed, "pool", len(intake.rows)))
                sources = _by_source([*pool, *intake.accepted])
                self._write([self._few_shot(case, rng, weights, *sources) for _ in range(size)], policy, intake)
        return intake.table()

    def weights(self, case: PromptsCase, seeds: Sequence[Problem]) -> dict[int | None, float]:
        """The weight of each level; {None: 1.0} for a domain without levels."""
        prior = self.levels or {p.level: 1.0 for p in sorted(seeds, key=lambda p: p.level or 0)}
        if not self.frontier:
            return dict(prior)
        signals = learning_signals(case.prompts, case.responses)
        return {level: w * max(MIN_SIGNAL, signals.get(level, 1.0)) for level, w in prior.items()}

    def _batch_size(self, intake: Intake) -> int:
        return min(self.batch, self.count - len(intake.accepted), self.max_attempts * self.count - len(intake.rows))

    def _few_shot(
        self,
        case: PromptsCase,
        rng: random.Random,
        weights: dict[int | None, float],
        people: list[Problem],
        models: list[Problem],
    ) -> FewShot:
        level = rng.choices(list(weights), list(weights.values()))[0] if weights else None
        from_model = _sample(rng, _of_level(models, level), self.model_examples)
        examples = _sample(rng, _of_level(people, level), self.examples - len(from_model)) + from_model
        rng.shuffle(examples)
        return FewShot(examples, self._request(case.domain.write([p.text for p in examples], level), rng))

    def _request(self, messages: list[Message], rng: random.Random) -> Request:
        sampling = Sampling(self.temperature, self.top_p, max_tokens=self.max_tokens)
        return Request(turns(messages), sampling, rng.getrandbits(63))

    def _write(self, batch: list[FewShot], policy: Policy, intake: Intake) -> None:
        """Has a batch written, and screens it in the order of its requests."""
        completions = dict(policy.sample([b.request for b in batch]))
        for index, few_shot in enumerate(batch):
            text, error = completions[index].text, completions[index].error
            item = None if error else intake.domain.parse(text)
            parents = [p.id for p in few_shot.examples]
            reason = f"failed: {error}" if error else None
            intake.add(item, text, reason, source="model", parents=parents, model=policy.digest)


def learning_signals(prompts: pl.LazyFrame, responses: pl.LazyFrame) -> dict[int, float]:
    """By level, the mean over prompts of 2√(p(1 − p)), in [0, 1]; p is the share of the prompt's most frequent answer among
    its responses without an error, 0 where none of them has an answer.
    """
    valid = responses.filter(pl.col("error").is_null())
    votes = valid.filter(pl.col("answer").is_not_null()).group_by("prompt_id", "answer").agg(votes=pl.len())
    majority = votes.group_by("prompt_id").agg(pl.col("votes").max())
    shares = (
        valid.group_by("prompt_id")
        .agg(k=pl.len())
        .join(majority, on="prompt_id", how="left")
        .select("prompt_id", p=pl.col("votes").fill_null(0) / pl.col("k"))
    )
    by_level = (
        shares.join(prompts.select(pl.col("id").alias("prompt_id"), "level"), on="prompt_id")
        .drop_nulls("level")
        .group_by("level")
        .agg((2 * (pl.col("p") * (1 - pl.col("p"))).sqrt()).mean().round(6))
    )
    return dict(by_level.sort("level").collect().iter_rows())


def _by_source(pool: list[Problem]) -> tuple[list[Problem], list[Problem]]:
    """What people wrote, and what models did."""
    return [p for p in pool if p.source != "model"], [p for p in pool if p.source == "model"]


def _of_level(pool: list[Problem], level: int | None) -> list[Problem]:
    return [p for p in pool if p.level == level] or pool


def _sample(rng: random.Random, pool: list[Problem], count: int) -> list[Problem]:
    return rng.sample(pool, min(count, len(pool)))
