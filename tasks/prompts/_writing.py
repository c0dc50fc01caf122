"""What the strategies in which a model writes problems have in common."""

import random
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, TypeVar

from pydantic import Field, PositiveFloat, PositiveInt

from tasks.core.stage import Ability
from tasks.domains import Message
from tasks.engines import Policy, Request, Sampling, turns
from tasks.prompts import Screening
from tasks.prompts._screen import Intake, Problem

T = TypeVar("T")


class Draft(NamedTuple):
    """A request for one new problem, and the problems that it shows."""

    examples: list[Problem]
    request: Request


class Writing(Screening):
    """Has problems written in batches until enough of them are accepted."""

    needs: ClassVar[frozenset[Ability]] = frozenset({"samples"})

    count: PositiveInt = 700
    """How many problems to accept; writing stops as soon as there are so many."""
    max_attempts: PositiveInt = 4
    """Problems written at most, as a multiple of `count`."""
    batch: PositiveInt = 256
    """Problems written at a time; the next batch sees what this one added to the pool."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature of the author."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus that the author samples from."""
    max_tokens: PositiveInt = 128
    """Longest problem, in tokens."""

    def batch_size(self, intake: Intake) -> int:
        """How many problems to write next; 0 when there are enough, or no attempts left."""
        return min(self.batch, self.count - len(intake.accepted), self.max_attempts * self.count - len(intake.rows))

    def request(self, messages: Sequence[Message], rng: random.Random) -> Request:
        """Asks the author."""
        sampling = Sampling(self.temperature, self.top_p, max_tokens=self.max_tokens)
        return Request(turns(messages), sampling, rng.getrandbits(63))

    def write(self, batch: Sequence[Draft], policy: Policy, intake: Intake) -> None:
        """Has a batch written, and screens it in the order of its requests."""
        completions = dict(policy.sample([draft.request for draft in batch]))
        for index, draft in enumerate(batch):
            screen(draft, completions[index].text, completions[index].error, policy.digest, intake)


def screen(draft: Draft, text: str, error: str | None, author: str, intake: Intake) -> None:
    """Adds what was written, or why nothing was."""
    item = None if error else intake.domain.parse(text)
    reason = f"failed: {error}" if error else None
    intake.add(item, text, reason, source="model", parents=[p.id for p in draft.examples], model=author)


def few_shot(
    rng: random.Random, people: list[Problem], models: list[Problem], count: int, model_count: int
) -> list[Problem]:
    """Up to `count` examples in random order, at most `model_count` of them of those that models wrote."""
    from_model = sample(rng, models, min(model_count, count))
    examples = sample(rng, people, count - len(from_model)) + from_model
    rng.shuffle(examples)
    return examples


def by_source(pool: list[Problem]) -> tuple[list[Problem], list[Problem]]:
    """The problems that people wrote, and those that models wrote."""
    return [p for p in pool if p.source != "model"], [p for p in pool if p.source == "model"]


def sample(rng: random.Random, pool: list[T], count: int) -> list[T]:
    """So many of a pool, or all that there are."""
    return rng.sample(pool, min(count, len(pool)))
