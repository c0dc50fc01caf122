"""Every answer gets a second turn, without being told whether it is wrong."""

from typing import ClassVar

from pydantic import Field, NonNegativeFloat, PositiveInt

from tasks.core.ids import seed_of
from tasks.core.stage import Ability, Result
from tasks.critique import CritiqueCase, Critiquing
from tasks.critique._rows import Attempt, answers, critique, refinement, result, tallied
from tasks.engines import Sampling, ask


class TwoTurn(Critiquing):
    """Has every answer, right or wrong, looked over and written again in a second turn (`Domain.retry`), as self-correction
    learning does (SCL, He et al. 2024, arXiv:2410.04055). The pairing `two_turn` learns from answers that turn right or
    wrong.

    Right is what equals the target. A second turn without an answer is an error and not wrong, unlike in the published
    code. No critique is written: the row of `critiques` holds the second turn's chat and an empty text, and is never
    kept. A second turn saw its first answer, so it says `hinted`.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset({"samples"})

    model: str = "parent"
    """Name of the model that answers again."""
    temperature: NonNegativeFloat = 0.7
    """Of the second turn, as in the released script."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus of the second turn."""
    max_tokens: PositiveInt = 256
    """Longest second turn, in tokens."""

    def opened_models(self) -> frozenset[str]:
        """The one `model`."""
        return frozenset({self.model})

    def __call__(self, case: CritiqueCase) -> Result:
        """Metrics: `turned_right` (wrong first turns of which the second is right), `turned_wrong` (the reverse), as counts,
        and `turn_errors`.
        """
        attempts = answers(case)
        if not attempts:
            return result([], [], dict.fromkeys(("turned_right", "turned_wrong", "turn_errors"), 0.0))
        chats = [case.domain.retry(a.problem, a.response) for a in attempts]
        seeds = [seed_of(case.seed, "two_turn", a.response_id) for a in attempts]
        sampling = Sampling(self.temperature, self.top_p, max_tokens=self.max_tokens)
        with case.models.open(self.model) as policy:
            first = [critique(a, chat, "", policy.digest) for a, chat in zip(attempts, chats, strict=True)]
            turns = zip(attempts, first, ask(policy, chats, sampling, seeds), strict=True)
            second = [refinement(policy, case.domain, a, c, 0, completion) for a, c, completion in turns]
        turned = [(a, r["success"]) for a, r in zip(attempts, second, strict=True)]
        metrics = counts(turned) | {"turn_errors": float(sum(r["error"] is not None for r in second))}
        return result([tallied(c, r) for c, r in zip(first, second, strict=True)], second, metrics)


def counts(turned: list[tuple[Attempt, bool | None]]) -> dict[str, float]:
    """How many answers turned right, and how many wrong."""
    return {
        "turned_right": float(sum(success is True and not first.correct for first, success in turned)),
        "turned_wrong": float(sum(success is False and first.correct for first, success in turned)),
    }
