"""Critiques of the model's own wrong answers, kept when answers that read them come out right often enough."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import polars as pl
from pydantic import Field, NonNegativeInt, PositiveInt

from tasks.core import frames, tables
from tasks.core.ids import content_id, seed_of
from tasks.core.stage import Ability, Result
from tasks.critique import CritiqueCase, Critiquing
from tasks.domains import Domain, Message
from tasks.engines import Completion, Policy, Sampling, ask

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Attempt:
    """An answer to criticise, beside the answer that its prompt should have."""

    response_id: str
    prompt_id: str
    problem: str
    response: str
    target: str
    correct: bool


class AutoMathCritique(Critiquing):
    """The loop of AutoMathCritique (Xi et al. 2024, arXiv:2411.16579): each wrong answer gets one greedy critique, each
    critique several refinements, and a critique is kept when enough of these are correct.

    No label is needed. Correct is an answer that equals its prompt's target, the one that the filter likes best; wrong
    is one that differs. A response without an answer is neither, and so is every one whose prompt has no target. A
    critique that passes a wrong answer, or cannot be read, is not refined. Success is the share of a critique's
    refinements whose answer is the target, among those that have an answer. That a critique needs a success of 0.3 is
    our reading. So is criticising correct answers too, kept when the critique passes them: a critic that is shown wrong
    answers alone learns to call everything wrong.
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
            return _result([], [], rates([], [], []))
        with case.models.open(self.model) as policy:
            critiques = self._criticise(policy, case.domain, attempts)
            refinements = self._refine(policy, case, attempts, critiques)
        self._keep(attempts, critiques, refinements)
        return _result(critiques, refinements, rates(attempts, critiques, refinements))

    def attempts(self, case: CritiqueCase) -> list[Attempt]:
        """The answers to criticise: wrong ones up to the limits, then correct ones, each drawn by seed."""
        rows = _answers(case)
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
            _refinement(policy, case.domain, *draw, completion)
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


def _answers(case: CritiqueCase) -> list[Attempt]:
    """Every answer to a prompt that has a target; equal texts of a prompt once, the first by id."""
    answered = case.responses.filter(pl.col("answer").is_not_null() & pl.col("error").is_null())
    targets = case.targets.select("prompt_id", "problem", "target")
    rows = answered.join(targets, on="prompt_id").sort("id").collect()
    rows = rows.unique(["prompt_id", "response"], keep="first", maintain_order=True)
    columns = rows.select("id", "prompt_id", "problem", "response", "target", pl.col("answer") == pl.col("target"))
    return [Attempt(*row) for row in columns.iter_rows()]


def _first_per_prompt(attempts: Sequence[Attempt], count: int) -> list[Attempt]:
    """The first so many of each prompt."""
    places: Counter[str] = Counter()
    first = []
    for attempt in attempts:
        places[attempt.prompt_id] += 1
        if places[attempt.prompt_id] <= count:
            first.append(attempt)
    return first


def _result(critiques: Sequence[Row], refinements: Sequence[Row], metrics: dict[str, float]) -> Result:
    rows = {"critiques": critiques, "refinements": refinements}
    return Result({name: frames.frame(tables.TABLES[name], own) for name, own in rows.items()}, metrics)


def _critique(policy: Policy, domain: Domain, attempt: Attempt, chat: list[Message], completion: Completion) -> Row:
    verdict = domain.critic_verdict(completion.text)
    error = completion.error or verdict.error or ("no verdict" if verdict.passed is None else None)
    return {
        "id": content_id("critique", attempt.response_id, policy.digest, completion.text),
        "response_id": attempt.response_id,
        "prompt_id": attempt.prompt_id,
        "prompt": chat,
        "critique": completion.text,
        "wrong_step": None if error else verdict.wrong_step,
        "verdict": None if error else "pass" if verdict.passed else "fail",
        "target": attempt.target,
        "refinements": 0,
        "successes": 0,
        "kept": False,
        "model": policy.digest,
        "error": error,
    }


def _refinement(
    policy: Policy, domain: Domain, attempt: Attempt, critique: Row, sample: int, completion: Completion
) -> Row:
    answer = None if completion.error else domain.answer(completion.text)
    tokens, logprob = completion.tokens, completion.logprob
    return {
        "id": content_id("refinement", critique["id"], sample, completion.text),
        "critique_id": critique["id"],
        "response_id": attempt.response_id,
        "prompt_id": attempt.prompt_id,
        "sample": sample,
        "response": completion.text,
        "answer": answer,
        "success": None if answer is None else answer == attempt.target,
        "mean_logprob": logprob / tokens if logprob is not None and tokens else None,
        "hinted": True,
        "model": policy.digest,
        "error": completion.error or (None if answer is not None else "no answer"),
    }
