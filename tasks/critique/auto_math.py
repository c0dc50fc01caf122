"""Critiques of the model's own wrong answers, kept when answers that read them come out right often enough."""

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field, NonNegativeInt, PositiveInt

from tasks.core.ids import seed_of
from tasks.core.stage import Ability, Result
from tasks.critique import CritiqueCase, Critiquing
from tasks.critique._rows import Attempt, Row, answers, critique, refinement, result
from tasks.domains import Domain, Message
from tasks.engines import Completion, Policy, Sampling, ask


class AutoMathCritique(Critiquing):
    """Writes one greedy critique of each wrong answer and several refinements of each critique, and keeps a critique when
    enough of its refinements are correct: the loop of AutoMathCritique (Xi et al. 2024, arXiv:2411.16579).

    No label is needed. Correct is an answer that equals its prompt's target, the one that the filter likes best;
    wrong is one that differs. A response that was cut off or has no answer is neither, and so is every one whose
    prompt has no target. A critique that passes a wrong answer, or cannot be read, is not refined. Success is the
    share of a critique's refinements whose answer is the target, among those that have an answer. That a critique
    needs a success of 0.3 is our reading. So is criticising correct answers too, kept when the critique passes them:
    a critic that is shown wrong answers alone learns to call everything wrong.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset({"samples"})

    model: str = "parent"
    """Name of the model that criticises and refines."""
    per_prompt: PositiveInt = 1
    """Most wrong answers criticised a prompt; each text once."""
    correct_share: float = Field(0.5, ge=0)
    """Correct answers to criticise, as a share of the wrong ones; at most one a prompt."""
    limit: NonNegativeInt = 400
    """Most wrong answers criticised a round, drawn by seed."""
    refinements: PositiveInt = 4
    """Refinements a critique."""
    temperature: float = Field(1.0, ge=0)
    """Of the refinements."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus of the refinements."""
    min_success: float = Field(0.3, gt=0, le=1)
    """Smallest share of successful refinements with which a critique is kept."""
    max_tokens: PositiveInt = 256
    """Longest critique or refinement."""

    def opened_models(self) -> frozenset[str]:
        """The one `model`."""
        return frozenset({self.model})

    def __call__(self, case: CritiqueCase) -> Result:
        """Metrics: `critique_wrong` (wrong answers criticised), `critique_passed_wrong` and `critique_passed_correct`
        (of these and of the correct ones, the share that the critic passed), `refinement_errors`.
        """
        attempts = self.attempts(case)
        if not attempts:
            return result([], [], rates([], [], []))
        with case.models.open(self.model) as policy:
            critiques = self._criticise(policy, case.domain, attempts)
            refinements = self._refine(policy, case, attempts, critiques)
        self._keep(attempts, critiques, refinements)
        return result(critiques, refinements, rates(attempts, critiques, refinements))

    def attempts(self, case: CritiqueCase) -> list[Attempt]:
        """The answers to criticise: wrong ones up to the limits, then correct ones, each drawn by seed."""
        rows = answers(case)
        rows.sort(key=lambda a: (seed_of("critique", case.seed, a.response_id), a.response_id))
        wrong = _first_per_prompt([a for a in rows if not a.correct], self.per_prompt)[: self.limit]
        correct = _first_per_prompt([a for a in rows if a.correct], 1)
        return wrong + correct[: round(self.correct_share * len(wrong))]

    def _criticise(self, policy: Policy, domain: Domain, attempts: Sequence[Attempt]) -> list[Row]:
        chats = [domain.criticise(a.problem, a.response) for a in attempts]
        sampling = Sampling(temperature=0.0, max_tokens=self.max_tokens)
        completions = ask(policy, chats, sampling, [0] * len(chats))
        return [_critique(policy, domain, *row) for row in zip(attempts, chats, completions, strict=True)]

    def _refine(
        self, policy: Policy, case: CritiqueCase, attempts: Sequence[Attempt], critiques: Sequence[Row]
    ) -> list[Row]:
        pairs = [(a, c) for a, c in zip(attempts, critiques, strict=True) if not a.correct and c["verdict"] == "fail"]
        draws = [(a, c, sample) for a, c in pairs for sample in range(self.refinements)]
        chats = [case.domain.refine(a.problem, a.response, c["critique"]) for a, c, _ in draws]
        seeds = [seed_of(case.seed, "refine", c["id"], sample) for _, c, sample in draws]
        sampling = Sampling(self.temperature, self.top_p, max_tokens=self.max_tokens)
        completions = ask(policy, chats, sampling, seeds)
        return [
            refinement(policy, case.domain, *draw, completion)
            for draw, completion in zip(draws, completions, strict=True)
        ]

    def _keep(self, attempts: Sequence[Attempt], critiques: Sequence[Row], refinements: Sequence[Row]) -> None:
        """Writes into each critique how its refinements did, and whether it is kept."""
        outcomes: dict[str, list[bool]] = {c["id"]: [] for c in critiques}
        for row in refinements:
            if row["success"] is not None:
                outcomes[row["critique_id"]].append(row["success"])
        for attempt, row in zip(attempts, critiques, strict=True):
            successes = outcomes[row["id"]]
            enough = bool(successes) and sum(successes) / len(successes) >= self.min_success
            kept = row["verdict"] == "pass" if attempt.correct else enough
            row.update(refinements=len(successes), successes=sum(successes), kept=kept)


def rates(attempts: Sequence[Attempt], critiques: Sequence[Row], refinements: Sequence[Row]) -> dict[str, float]:
    """How the critic and the refiner did."""
    verdicts = [(a.correct, c["verdict"]) for a, c in zip(attempts, critiques, strict=True) if c["verdict"]]
    wrong = [verdict == "pass" for correct, verdict in verdicts if not correct]
    correct = [verdict == "pass" for correct, verdict in verdicts if correct]
    return {
        "critique_wrong": float(sum(not a.correct for a in attempts)),
        "critique_passed_wrong": sum(wrong) / len(wrong) if wrong else 0.0,
        "critique_passed_correct": sum(correct) / len(correct) if correct else 0.0,
        "refinement_errors": float(sum(r["error"] is not None for r in refinements)),
    }


def _first_per_prompt(attempts: Sequence[Attempt], count: int) -> list[Attempt]:
    """The first so many of each prompt."""
    places: Counter[str] = Counter()
    first = []
    for attempt in attempts:
        places[attempt.prompt_id] += 1
        if places[attempt.prompt_id] <= count:
            first.append(attempt)
    return first


def _critique(policy: Policy, domain: Domain, attempt: Attempt, chat: list[Message], completion: Completion) -> Row:
    verdict = domain.critic_verdict(completion.text)
    error = completion.error or verdict.error or ("no verdict" if verdict.passed is None else None)
    read = {"wrong_step": verdict.wrong_step, "verdict": "pass" if verdict.passed else "fail"} if not error else {}
    return critique(attempt, chat, completion.text, policy.digest) | read | {"error": error}
