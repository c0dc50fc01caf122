"""Answers to criticise, and rows of critiques and refinements."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from tasks.core import frames, tables
from tasks.core.ids import content_id
from tasks.core.stage import Result
from tasks.critique import CritiqueCase
from tasks.domains import Domain, Message
from tasks.engines import Completion, Policy

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Attempt:
    """An answer to criticise, beside the answer that its prompt should have."""

    response_id: str
    prompt_id: str
    problem: str
    response: str
    target: str | None
    """The answer of the prompt's best kept response; None without one."""
    correct: bool
    """Whether the response's answer is right."""


def usable(case: CritiqueCase) -> pl.LazyFrame:
    """Every response with an answer that was not cut off; equal texts of a prompt once, the first by id."""
    whole = pl.col("error").is_null() & pl.col("finish_reason").ne_missing("length")
    answered = case.responses.filter(pl.col("answer").is_not_null() & whole).sort("id")
    return answered.unique(["prompt_id", "response"], keep="first", maintain_order=True)


def answers(case: CritiqueCase) -> list[Attempt]:
    """Every usable answer to a prompt that has a target; correct is what equals it."""
    targets = case.targets.select("prompt_id", "problem", "target")
    rows = usable(case).join(targets, on="prompt_id").sort("id")
    columns = rows.select("id", "prompt_id", "problem", "response", "target", pl.col("answer") == pl.col("target"))
    return [Attempt(*row) for row in columns.collect().iter_rows()]


def result(critiques: Sequence[Row], refinements: Sequence[Row], metrics: dict[str, float]) -> Result:
    """Both tables."""
    rows = {"critiques": critiques, "refinements": refinements}
    return Result({name: frames.frame(tables.TABLES[name], own) for name, own in rows.items()}, metrics)


def critique(attempt: Attempt, chat: Sequence[Message], text: str, model: str | None) -> Row:
    """A critique of an answer, not kept and not yet refined."""
    return {
        "id": content_id("critique", attempt.response_id, model, text),
        "response_id": attempt.response_id,
        "prompt_id": attempt.prompt_id,
        "prompt": chat,
        "critique": text,
        "wrong_step": None,
        "verdict": None,
        "target": attempt.target,
        "refinements": 0,
        "successes": 0,
        "kept": False,
        "model": model,
        "error": None,
    }


def refinement(
    policy: Policy, domain: Domain, attempt: Attempt, critique: Row, sample: int, completion: Completion
) -> Row:
    """An answer that follows a critique; a success when it is the target. One that failed, was cut off or has no answer is
    an error and neither right nor wrong.
    """
    error = completion.error or ("cut off" if completion.finish_reason == "length" else None)
    answer = None if error else domain.answer(completion.text)
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
        "error": error or ("no answer" if answer is None else None),
    }


def tallied(critique: Row, refined: Row) -> Row:
    """The critique with how its one refinement did."""
    counted = refined["success"] is not None
    return critique | {"refinements": int(counted), "successes": int(bool(refined["success"]))}
