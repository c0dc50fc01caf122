"""Critiques of the model's own wrong answers, kept when answers that read them come out right often enough."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
from pydantic import Field, NonNegativeInt, PositiveInt

from tasks import tables
from tasks.domains import Domain, Message
from tasks.engines import Completion, Engine, Policy, Sampling, ask
from tasks.stage import Result, Strategy, content_id, seed_of

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Attempt:
    """An answer to criticise, beside the answer that its prompt should have."""

    response_id: str
    prompt_id: str
    problem: str
    response: str
    target: str
    right: bool


class AutoMathCritique(Strategy):
    """The loop of AutoMathCritique (Xi et al. 2024, arXiv:2411.16579): each wrong answer gets one greedy critique, each
    critique several refinements, and a critique is kept when enough of these are right.

    What is right needs no label: a prompt's target is the answer of its response of highest reward, where that reward
    is at least `least`. Wrong is an answer that differs from the target; a response without an answer is neither. A
    critique that passes a wrong answer, or cannot be read, is not refined. Success is the share of a critique's
    refinements whose answer is the target, among those that have an answer. That a critique needs a success of 0.3 is
    our reading; so is criticising some right answers too, kept when the critique passes them: a critic that is shown
    wrong answers alone learns to call everything wrong.
    """

    needs: ClassVar = frozenset({"samples"})

    least: float = 0.4
    """Smallest reward, in the reward judge's units, at which a prompt's best answer is taken as its target."""
    per_prompt: PositiveInt = 1
    """At most so many wrong answers a prompt; each text once."""
    right: float = Field(0.5, ge=0)
    """Right answers to criticise, as a share of the wrong ones; at most one a prompt."""
    limit: NonNegativeInt = 400
    """At most so many wrong answers a round, drawn by seed."""
    refinements: PositiveInt = 4
    """Refinements a critique."""
    temperature: float = Field(1.0, ge=0)
    """Of the refinements."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus of the refinements."""
    least_success: float = Field(0.3, gt=0, le=1)
    """Smallest share of successful refinements with which a critique is kept."""
    max_tokens: PositiveInt = 256
    """Longest critique or refinement."""

    def __call__(
        self,
        prompts: pl.LazyFrame,
        responses: pl.LazyFrame,
        judgments: pl.LazyFrame,
        engine: Engine,
        model: Path,
        domain: Domain,
        seed: int,
        cache: Path,
    ) -> Result:
        """Metrics: `critique_targets` (prompts with a target), `critique_wrong` (wrong answers criticised),
        `critique_passed_wrong` and `critique_passed_right` (of these and of the right ones, the share that the critic
        passed), `refinement_errors`.
        """
        targets = self.targets(prompts, responses, judgments)
        attempts = self.attempts(targets, responses, seed)
        metrics = {"critique_targets": float(len(targets))}
        if not attempts:
            return self._result([], [], metrics | rates([], [], []))
        with engine.open(model, cache) as policy:
            critiques = self._criticise(policy, domain, attempts)
            refinements = self._refine(policy, domain, attempts, critiques, seed)
        self._keep(attempts, critiques, refinements)
        return self._result(critiques, refinements, metrics | rates(attempts, critiques, refinements))

    def targets(self, prompts: pl.LazyFrame, responses: pl.LazyFrame, judgments: pl.LazyFrame) -> pl.DataFrame:
        """prompt_id, problem, target: of each prompt whose best answer has enough reward (ties: the first id)."""
        rewards = judgments.filter(pl.col("reward") & (pl.col("score") >= self.least)).select("response_id", "score")
        answered = responses.filter(pl.col("answer").is_not_null() & pl.col("error").is_null())
        scored = answered.join(rewards, left_on="id", right_on="response_id")
        best = scored.sort(["prompt_id", "score", "id"], descending=[False, True, False])
        best = best.unique("prompt_id", keep="first", maintain_order=True)
        asked = prompts.filter(pl.col("error").is_null()).select(pl.col("id").alias("prompt_id"), "problem")
        found = best.select("prompt_id", pl.col("answer").alias("target")).join(asked, on="prompt_id")
        return found.sort("prompt_id").collect()

    def attempts(self, targets: pl.DataFrame, responses: pl.LazyFrame, seed: int) -> list[Attempt]:
        """The answers to criticise: wrong ones up to the limits, then right ones, each drawn by seed."""
        answered = responses.filter(pl.col("answer").is_not_null() & pl.col("error").is_null())
        known = answered.join(targets.lazy(), on="prompt_id").sort("id").collect()
        known = known.unique(["prompt_id", "response"], keep="first", maintain_order=True)
        found = [
            Attempt(r["id"], r["prompt_id"], r["problem"], r["response"], r["target"], r["answer"] == r["target"])
            for r in known.iter_rows(named=True)
        ]
        order = sorted(found, key=lambda a: (seed_of("critique", seed, a.response_id), a.response_id))
        wrong = _few([a for a in order if not a.right], self.per_prompt)[: self.limit]
        return wrong + _few([a for a in order if a.right], 1)[: round(self.right * len(wrong))]

    def _criticise(self, policy: Policy, domain: Domain, attempts: Sequence[Attempt]) -> list[Row]:
        chats = [domain.criticise(a.problem, a.response) for a in attempts]
        how = Sampling(temperature=0.0, max_tokens=self.max_tokens)
        notes = ask(policy, chats, how, [0] * len(chats))
        return [
            _critique(policy, domain, *row) | {"refinements": 0, "successes": 0, "kept": False}
            for row in zip(attempts, chats, notes, strict=True)
        ]

    def _refine(
        self, policy: Policy, domain: Domain, attempts: Sequence[Attempt], critiques: Sequence[Row], seed: int
    ) -> list[Row]:
        pairs = zip(attempts, critiques, strict=True)
        wanted = [(a, c, k) for a, c in pairs if useful(a, c) for k in range(self.refinements)]
        chats = [domain.refine(a.problem, a.response, c["critique"]) for a, c, _ in wanted]
        seeds = [seed_of(seed, "refine", c["id"], k) for _, c, k in wanted]
        how = Sampling(self.temperature, self.top_p, max_tokens=self.max_tokens)
        completions = ask(policy, chats, how, seeds)
        return [_refinement(policy, domain, a, c, k, done) for (a, c, k), done in zip(wanted, completions, strict=True)]

    def _keep(self, attempts: Sequence[Attempt], critiques: Sequence[Row], refinements: Sequence[Row]) -> None:
        """Writes into each critique how its refinements did, and whether it is kept."""
        outcomes: dict[str, list[bool]] = {c["id"]: [] for c in critiques}
        for row in refinements:
            if row["success"] is not None:
                outcomes[row["critique_id"]].append(row["success"])
        for attempt, row in zip(attempts, critiques, strict=True):
            done = outcomes[row["id"]]
            enough = bool(done) and sum(done) / len(done) >= self.least_success
            kept = row["verdict"] == "pass" if attempt.right else enough
            row.update(refinements=len(done), successes=sum(done), kept=kept)

    def _result(self, critiques: list[Row], refinements: list[Row], metrics: dict[str, float]) -> Result:
        frames = {
            "critiques": tables.frame(tables.critiques, critiques).sort("id"),
            "refinements": tables.frame(tables.refinements, refinements).sort("id"),
        }
        return Result(frames, metrics)


def useful(attempt: Attempt, critique: Row) -> bool:
    """Whether a critique is worth refining by: it is of a wrong answer, and says so."""
    return not attempt.right and critique["verdict"] == "fail"


def rates(attempts: Sequence[Attempt], critiques: Sequence[Row], refinements: Sequence[Row]) -> dict[str, float]:
    """How the critic and the refiner did."""
    said = [(a.right, c["verdict"]) for a, c in zip(attempts, critiques, strict=True) if c["verdict"]]
    wrong = [verdict == "pass" for right, verdict in said if not right]
    right = [verdict == "pass" for right, verdict in said if right]
    return {
        "critique_wrong": float(sum(not a.right for a in attempts)),
        "critique_passed_wrong": sum(wrong) / len(wrong) if wrong else 0.0,
        "critique_passed_right": sum(right) / len(right) if right else 0.0,
        "refinement_errors": float(sum(r["error"] is not None for r in refinements)),
    }


def _few(attempts: Sequence[Attempt], most: int) -> list[Attempt]:
    """The first so many of each prompt."""
    seen: dict[str, int] = {}
    taken = []
    for attempt in attempts:
        seen[attempt.prompt_id] = seen.get(attempt.prompt_id, 0) + 1
        if seen[attempt.prompt_id] <= most:
            taken.append(attempt)
    return taken


def _critique(policy: Policy, domain: Domain, attempt: Attempt, chat: list[Message], note: Completion) -> Row:
    verdict = domain.verdict(note.text)
    error = note.error or verdict.error or ("no verdict" if verdict.passed is None else None)
    return {
        "id": content_id("critique", attempt.response_id, policy.digest, note.text),
        "response_id": attempt.response_id,
        "prompt_id": attempt.prompt_id,
        "prompt": chat,
        "critique": note.text,
        "wrong_step": None if error else verdict.wrong_step,
        "verdict": None if error else "pass" if verdict.passed else "fail",
        "target": attempt.target,
        "model": policy.digest,
        "error": error,
    }


def _refinement(policy: Policy, domain: Domain, attempt: Attempt, critique: Row, sample: int, done: Completion) -> Row:
    answer = None if done.error else domain.answer(done.text)
    return {
        "id": content_id("refinement", critique["id"], sample, done.text),
        "critique_id": critique["id"],
        "response_id": attempt.response_id,
        "prompt_id": attempt.prompt_id,
        "sample": sample,
        "response": done.text,
        "answer": answer,
        "success": None if answer is None else answer == attempt.target,
        "mean_logprob": done.logprob / done.tokens if done.logprob is not None and done.tokens else None,
        "hinted": True,
        "model": policy.digest,
        "error": done.error or (None if answer is not None else "no answer"),
    }
