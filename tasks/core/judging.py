"""Judges: what they are called with, and how opinions are made. `judge` runs them, `evaluate` measures them.

A judge gives one row a response: `response_id, prompt_id, score, verdict, rationale, error`. What it cannot read is a row
with an error, never a fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, ClassVar, TypedDict

import polars as pl

from tasks.core.roster import Models
from tasks.core.stage import Strategy

if TYPE_CHECKING:
    from tasks.domains import Domain, Verdict
    from tasks.engines import Policy

COLUMNS = ("response_id", "prompt_id", "score", "verdict", "rationale", "error")
"""Columns of a judge's frame."""
OPINION = pl.Struct({"score": pl.Float64, "verdict": pl.String, "rationale": pl.String, "error": pl.String})


class Opinion(TypedDict):
    """What a judge says of one response: a score or an error."""

    score: float | None
    verdict: str | None
    """`pass`, `fail` or None."""
    rationale: str | None
    error: str | None


@dataclass(frozen=True)
class JudgeCase:
    """What a judge is called with."""

    prompts: pl.LazyFrame
    responses: pl.LazyFrame
    """Responses without an error."""
    models: Models
    domain: Domain
    seed: int
    model: str = "parent"
    """Name of the model that wrote the responses."""
    overview: pl.DataFrame | None = None
    """What the judge must know of all prompts, where these are not all."""

    def with_problems(self) -> pl.LazyFrame:
        """The responses with their `problem` and `reference`, null where the prompt is missing."""
        problems = self.prompts.select(pl.col("id").alias("prompt_id"), "problem", "reference")
        return self.responses.join(problems, on="prompt_id", how="left")

    def open(self, name: str = "parent") -> AbstractContextManager[Policy]:
        """Opens a model by name; `parent` is whichever wrote the responses."""
        return self.models.open(self.model if name == "parent" else name)


class Judging(Strategy):
    """A judge."""

    auditable: ClassVar[bool] = False
    """Whether gold answers show how good it is: it judges each response by itself, whoever wrote it."""
    reserved_names: ClassVar[frozenset[str]] = frozenset({"critic", "eval", "validation_eval"})
    """Names that no member may have: measures of the evaluation such as `eval_errors` would have two meanings."""

    def __call__(self, case: JudgeCase) -> pl.LazyFrame:
        """An opinion of each response, in `COLUMNS`; a response without a row was not judged."""
        raise NotImplementedError


def opinion(
    responses: pl.LazyFrame, score: pl.Expr | None, error: pl.Expr | str, verdict: pl.Expr | None = None
) -> pl.LazyFrame:
    """A judge's frame from expressions over the responses; `error` is the reason where the score is null."""
    score = pl.lit(None, pl.Float64) if score is None else score.cast(pl.Float64)
    none = pl.lit(None, pl.String)
    reason = pl.lit(error) if isinstance(error, str) else error
    return responses.select(
        pl.col("id").alias("response_id"),
        "prompt_id",
        score=score,
        verdict=none if verdict is None else verdict,
        rationale=none,
        error=pl.when(score.is_null()).then(reason),
    )


def finite(opinions: pl.LazyFrame) -> pl.LazyFrame:
    """The same rows, with an error wherever there is no finite score."""
    valid = pl.col("score").is_finite().fill_null(False) & pl.col("error").is_null()
    reason = pl.when(pl.col("score").is_null()).then(pl.lit("no score")).otherwise(pl.lit("score is not finite"))
    return opinions.with_columns(
        score=pl.when(valid).then("score"),
        verdict=pl.when(valid).then("verdict"),
        error=pl.when(~valid).then(pl.coalesce("error", reason)),
    )


def failure(error: str, rationale: str | None = None) -> Opinion:
    """No opinion, and why."""
    return {"score": None, "verdict": None, "rationale": rationale, "error": error}


ORPHAN = failure("its prompt is not in the table of prompts")


def graded(verdicts: Sequence[Verdict], rationale: str | None = None) -> Opinion:
    """One opinion from several verdicts: the mean grade of those that could be read, and pass or fail as most of them say
    (none in a tie, or where they only grade). Where none could be read it is the first one's error.
    """
    grades = [g for v in verdicts if (g := grade(v)) is not None]
    if not grades:
        return failure(next((v.error for v in verdicts if v.error), "no verdict"), rationale)
    votes = [1 if v.passed else -1 for v in verdicts if v.error is None and v.passed is not None]
    verdict = None if sum(votes) == 0 else "pass" if sum(votes) > 0 else "fail"
    return {"score": fmean(grades), "verdict": verdict, "rationale": rationale, "error": None}


def grade(verdict: Verdict) -> float | None:
    """The grade of a verdict, in [0, 1]; None when it is an error."""
    if verdict.error is not None or verdict.score is not None:
        return None if verdict.error is not None else verdict.score
    return None if verdict.passed is None else float(verdict.passed)
