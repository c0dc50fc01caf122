"""Filter: which responses are good enough to learn from. Every response is kept or dropped, with reason and margin.

The rules, in the order in which they apply; the first that objects is the reason:
- `error` it failed; `format` it has no answer, or was cut off; `short`, `long` in tokens; `unjudged` it has no reward;
- `judge/NAME` a judge that it must also pass (`require`) scored it too low; `no_judge/NAME` that judge has no score for
  it, because it did not run or could not be parsed;
- the strategy's own rule on the reward (`score`);
- `duplicate` of a better response to the same prompt, by text or by path (`distinct`); `rank` enough better ones for its
  prompt were kept;
- whatever the strategy adds.

"Better" is: higher reward, then higher score of the judge `rank_by` (by default the mean log-probability), then id.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import polars as pl
from pydantic import NonNegativeInt, PositiveInt

from tasks.core import tables
from tasks.core.roster import Models
from tasks.core.stage import ONLY, Opens, Overviews, Strategy, stage
from tasks.filter._cutoff import better_first
from tasks.filter._paths import path

NO_MARGIN = pl.lit(None, pl.Float64)
NO_MODELS = Models({})
"""For whoever calls a filter that opens none."""
ROUNDING = 1e-9
"""Added before a share of rows is rounded down: 0.29 of 100 is 28.999… as a float."""


@dataclass(frozen=True)
class FilterCase:
    """What a filter decides on: the round's tables, or those of some of its prompts."""

    prompts: pl.LazyFrame
    responses: pl.LazyFrame
    judgments: pl.LazyFrame
    models: Models = NO_MODELS
    overview: pl.DataFrame | None = None
    """What the filter must know of all prompts, where these are not all."""


class Filtering(Strategy):
    """Decides which responses are kept: calls `usable`, drops by a rule of its own (`drop`), then calls `best`."""

    per_prompt: PositiveInt = 1
    """Most responses kept a prompt."""
    distinct: Literal["text", "path"] = "text"
    """What makes two responses to a prompt duplicates: equal texts, or the equal list of equations by which RFT keeps only
    different reasoning paths (Yuan et al. 2023, arXiv:2308.01825); one without an equation is compared by its text."""
    rank_by: str | None = None
    """Judge that ranks responses of equal reward; null ranks by mean log-probability: the likeliest first."""
    require: dict[str, float] = {}
    """Minimum scores by other judges, as in `{self_judge: 0.5}`: a response that such a judge
    scored lower is dropped with the reason `judge/self_judge`, one that it did not score with `no_judge/self_judge`."""
    min_tokens: NonNegativeInt = 1
    """Fewest tokens of a response."""
    max_tokens: PositiveInt | None = None
    """Most tokens of a response; null has no limit."""
    complete_only: bool = True
    """Drop what was cut off at the engine's `max_tokens`."""

    def reads_logprobs_of(self) -> frozenset[str]:
        """The responses, where they rank those of equal reward."""
        return frozenset({"responses"} if self.rank_by is None else ())

    def __call__(self, case: FilterCase) -> pl.LazyFrame:
        """Every response with its `prompt_id`, `score`, `reason` (null keeps it) and `margin`; of the kept ones of a
        prompt the better one comes first.
        """
        raise NotImplementedError

    def usable(self, case: FilterCase) -> pl.LazyFrame:
        """Responses with their reward as `score` and what ranks equal ones as `tie_break`; dropped is what failed, has
        the wrong form or length, has no reward, or another judge refused.
        """
        tokens, cut = pl.col("tokens"), pl.lit(self.complete_only) & (pl.col("finish_reason") == "length")
        max_tokens = pl.lit(self.max_tokens, pl.Int64)
        return drop(
            self._scored(case),
            {
                "error": (pl.col("error").is_not_null(), NO_MARGIN),
                "format": (pl.col("answer").is_null() | cut, NO_MARGIN),
                "short": (tokens < self.min_tokens, self.min_tokens - tokens),
                "long": (tokens > max_tokens, tokens - max_tokens),
                "unjudged": (pl.col("score").is_null(), NO_MARGIN),
                **{name: rule for judge in self.require for name, rule in self._required(judge).items()},
            },
        )

    def best(self, rows: pl.LazyFrame) -> pl.LazyFrame:
        """Keeps the `per_prompt` best different responses of each prompt; `rank` misses by places."""
        candidate = pl.col("reason").is_null()
        # hashes are sorted with the rows and not texts, and compared for all columns together
        rows = drop_duplicates(better_first(rows.with_columns(text=self.identity()), within="prompt_id"))
        so_far = candidate.cum_sum()
        place = so_far - pl.when(pl.col("prompt").diff() != 0).then(so_far - candidate).forward_fill().fill_null(0)
        return drop(rows, {"rank": (place > self.per_prompt, place - self.per_prompt)})

    def identity(self) -> pl.Expr:
        """A hash of what makes responses to a prompt duplicates, see `distinct`."""
        response = pl.col("response")
        return (response if self.distinct == "text" else path(response)).hash()

    def _scored(self, case: FilterCase) -> pl.LazyFrame:
        scores = case.judgments.select("member", "reward", "score", id="response_id")
        rows = case.responses.join(scores.filter("reward").select("id", "score"), on="id", how="left")
        if self.rank_by is None:
            rows = rows.with_columns(tie_break=pl.col("mean_logprob").fill_nan(None))  # NaN would sort as the highest
        for judge, column in [(self.rank_by, "tie_break"), *((judge, f"by {judge}") for judge in self.require)]:
            if judge is not None:
                own = scores.filter(pl.col("member") == judge).select("id", pl.col("score").alias(column))
                rows = rows.join(own, on="id", how="left")
        return rows.with_columns(reason=pl.lit(None, pl.String), margin=NO_MARGIN)

    def _required(self, judge: str) -> dict[str, tuple[pl.Expr, pl.Expr]]:
        score, min_score = pl.col(f"by {judge}"), self.require[judge]
        return {
            f"judge/{judge}": (score < min_score, min_score - score),
            f"no_judge/{judge}": (score.is_null(), NO_MARGIN),
        }


def summaries(
    strategy: Filtering,
    prompts: pl.LazyFrame,
    responses: pl.LazyFrame,
    judgments: pl.LazyFrame,
    models: Models = NO_MODELS,
) -> dict[str, pl.LazyFrame]:
    """First pass over a piece: the filter's summary."""
    return {ONLY: strategy.summary(FilterCase(prompts, responses, judgments, models))}


@stage(outputs=[tables.filtered], first_pass=summaries)
def filter(
    strategy: Filtering,
    prompts: pl.LazyFrame,
    responses: pl.LazyFrame,
    judgments: pl.LazyFrame,
    models: Annotated[Models, Opens("parent", "base", "anchor", "grandparent")] = NO_MODELS,
    overviews: Overviews = None,
) -> pl.LazyFrame:
    """Every response, kept or dropped, by prompt; the kept ones of a prompt ranked from 1, the best."""
    case = FilterCase(prompts, responses, judgments, models, (overviews or {}).get(ONLY))
    rows = strategy(case).with_columns(kept=pl.col("reason").is_null())
    place = pl.col("kept").cum_sum().over(pl.col("prompt_id").hash())  # hashes: a third less time than the ids take
    rows = rows.with_columns(rank=pl.when("kept").then(place).cast(pl.Int32))
    return rows.select(tables.filtered.schema.names).sort("prompt_id", "id")


def drop(rows: pl.LazyFrame, rules: Mapping[str, tuple[pl.Expr, pl.Expr]]) -> pl.LazyFrame:
    """Rows that no rule dropped before get the first of these whose condition holds: reason to (condition, margin)."""
    reason, margin = pl.col("reason"), pl.col("margin")
    for name, (condition, missed_by) in rules.items():
        now = reason.is_null() & condition.fill_null(False)
        reason = pl.when(now).then(pl.lit(name)).otherwise(reason)
        margin = pl.when(now).then(missed_by).otherwise(margin)
    return rows.with_columns(reason=reason, margin=margin.cast(pl.Float64))


def drop_duplicates(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Drops what has the `text`, a hash, of an earlier response to its prompt; `rows` are sorted by prompt, better ones first."""
    rows = rows.with_columns(prompt=pl.col("prompt_id").rle_id())
    repeated = ~pl.struct("prompt", "text", pl.col("reason").is_null()).hash().is_first_distinct()
    return drop(rows, {"duplicate": (repeated, NO_MARGIN)})


def candidates(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Of the rows that no rule dropped, their level and what orders them: the summary of a filter that compares prompts."""
    return rows.filter(pl.col("reason").is_null()).select("level", "score", "tie_break", "id")


def with_overview(rows: pl.LazyFrame, overview: pl.DataFrame) -> pl.LazyFrame:
    """The rows with what an overview says of their ids; their order stays."""
    return rows.join(overview.lazy().drop("prompt_id"), on="id", how="left", maintain_order="left")
