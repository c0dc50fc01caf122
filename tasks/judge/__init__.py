"""Judge: a panel scores every response; the score of one of them is the round's reward.

A member gives `response_id, prompt_id, score, verdict, rationale, error` for each response; the stage adds what is the
same for all. Members see only responses that came back. One that failed gets a row with an error from each member, and
so does what a member could not read: neither is ever a fail.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import polars as pl
from pydantic import model_validator

from tasks import tables
from tasks.domains import Domain, Verdict
from tasks.engines import Engine, Policy
from tasks.errors import suggest
from tasks.stage import Panel, stage

COLUMNS = ("response_id", "prompt_id", "score", "verdict", "rationale", "error")
ORPHAN = Verdict(None, error="its prompt is not in the table of prompts")
OPINION = pl.Struct({"score": pl.Float64, "verdict": pl.String, "rationale": pl.String, "error": pl.String})


class Judge(Panel):
    """Judges by name, and which of them gives the reward. All but that one are there for comparison."""

    reward: str
    """The member whose score filters, pairs and trains."""

    @model_validator(mode="after")
    def _is_member(self) -> "Judge":
        if self.reward not in self.panel:
            raise ValueError(
                f"reward is {self.reward!r}, which is not in the panel; {suggest(self.reward, self.panel)}"
            )
        return self


@dataclass(frozen=True)
class Case:
    """What a member of the panel is given."""

    prompts: pl.LazyFrame
    responses: pl.LazyFrame
    """Those that came back."""
    policy: Policy | None
    """The parent's model, for members that need an engine."""
    domain: Domain
    seed: int
    open: Callable[[Engine, Path], AbstractContextManager[Policy]]
    """Opens another model. Members that need no engine are called when the parent's is closed."""

    def asked(self) -> pl.LazyFrame:
        """The responses with their `problem` and `reference`."""
        asked = self.prompts.select(pl.col("id").alias("prompt_id"), "problem", "reference")
        return self.responses.join(asked, on="prompt_id", how="left")


@stage(outputs=[tables.judgments])
def judge(
    params: Judge,
    prompts: pl.LazyFrame,
    responses: pl.LazyFrame,
    parent_model: Path,
    engine: Engine,
    domain: Domain,
    seed: int,
    cache: Path,
) -> pl.LazyFrame:
    """Every member's judgment of every response. The model is loaded only when a member asks it something."""
    failed = pl.col("error").is_not_null() | pl.col("response").is_null()

    def opened(other: Engine, model: Path) -> AbstractContextManager[Policy]:
        return engine.instead(other).open(model, cache)

    case = Case(prompts, responses.filter(~failed), None, domain, seed, opened)
    asking = [name for name, member in params.panel.items() if member.needs]
    opinions = {}
    with engine.open(parent_model, cache) if asking else nullcontext() as policy:
        opinions |= {name: params.panel[name](replace(case, policy=policy)) for name in asking}
    opinions |= {name: member(case) for name, member in params.panel.items() if name not in asking}
    unjudged = opinion(responses.filter(failed), None, "no response: " + pl.col("error").fill_null("nothing came back"))
    rows = [pl.concat([opinions[n].select(COLUMNS), unjudged]).with_columns(judge=pl.lit(n)) for n in sorted(opinions)]
    return _settled(pl.concat(rows).sort("judge", "prompt_id", "response_id"), params.reward)


def _settled(rows: pl.LazyFrame, reward: str) -> pl.LazyFrame:
    """Ids, the reward's mark, and an error wherever there is no finite score."""
    finite = pl.col("score").is_finite().fill_null(False)
    good = finite & pl.col("error").is_null()
    why = pl.when(pl.col("score").is_null()).then(pl.lit("no score")).otherwise(pl.lit("score is not finite"))
    return rows.with_columns(
        tables.ids("response_id", "judge"),
        reward=pl.col("judge") == reward,
        score=pl.when(good).then("score"),
        verdict=pl.when(good).then("verdict"),
        error=pl.when(~good).then(pl.coalesce("error", why)),
    )


def opinion(
    responses: pl.LazyFrame, score: pl.Expr | None, error: pl.Expr | str, verdict: pl.Expr | None = None
) -> pl.LazyFrame:
    """A member's rows from expressions over the responses; `error` is said where the score is null."""
    score = pl.lit(None, pl.Float64) if score is None else score.cast(pl.Float64)
    none = pl.lit(None, pl.String)
    text = pl.lit(error) if isinstance(error, str) else error
    return responses.select(
        pl.col("id").alias("response_id"),
        "prompt_id",
        score=score,
        verdict=none if verdict is None else verdict,
        rationale=none,
        error=pl.when(score.is_null()).then(text),
    )


def graded(verdicts: Sequence[Verdict], rationale: str | None = None) -> dict[str, Any]:
    """One opinion from the verdicts that could be read: their mean grade, and pass or fail as most of them say (none
    in a tie, or where they only grade). When none could be read it is the first one's error.
    """
    grades = [g for v in verdicts if (g := grade(v)) is not None]
    if not grades:
        why = next((v.error for v in verdicts if v.error), "no verdict")
        return {"score": None, "verdict": None, "rationale": rationale, "error": why}
    passed = [1 if v.passed else -1 for v in verdicts if v.error is None and v.passed is not None]
    verdict = None if sum(passed) == 0 else "pass" if sum(passed) > 0 else "fail"
    return {"score": fmean(grades), "verdict": verdict, "rationale": rationale, "error": None}


def grade(verdict: Verdict) -> float | None:
    """The grade of a verdict, in [0, 1]; None when it is an error."""
    if verdict.error is not None or verdict.score is not None:
        return None if verdict.error is not None else verdict.score
    return None if verdict.passed is None else float(verdict.passed)
