"""What pairings have in common: the best and the worst of some answers, all pairs of a prompt, other judges' scores."""

from collections.abc import Iterable

import polars as pl

from tasks.core.errors import UnknownName
from tasks.pair import PairCase

LIKELIEST = {"by": ["mean_logprob", "id"], "descending": [True, False], "nulls_last": True}
"""Order of equally good or bad answers: the likeliest first, then by id."""


def end(rows: pl.LazyFrame, side: str, best: bool) -> pl.LazyFrame:
    """The `side` of a pair (`<side>_id`, `<side>_score`): of each prompt the answer with the highest reward, or the lowest;
    of equals the first in the order that the rows have.
    """
    ordered = rows.sort("score", descending=best, maintain_order=True)
    first = ordered.unique("prompt_id", keep="first", maintain_order=True)
    return first.select("prompt_id", pl.col("id").alias(f"{side}_id"), pl.col("score").alias(f"{side}_score"))


def all_pairs(responses: pl.LazyFrame, min_margin: float) -> pl.LazyFrame:
    """Every two answers of a prompt whose rewards are at least so far apart; equal texts count once, as the better one."""
    best_first = responses.sort("score", "id", descending=[True, False])
    texts = best_first.unique(["prompt_id", "response"], keep="first", maintain_order=True)
    chosen = texts.select("prompt_id", chosen_id="id", chosen_score="score")
    rejected = texts.select("prompt_id", rejected_id="id", rejected_score="score")
    gap = pl.col("chosen_score") - pl.col("rejected_score")
    return chosen.join(rejected, on="prompt_id").filter(gap >= min_margin)


def with_texts(pairs: pl.LazyFrame, responses: pl.LazyFrame) -> pl.LazyFrame:
    """Pairs of responses with the texts of both sides and the digests of the models that wrote them."""
    for side in ("chosen", "rejected"):
        names = {"id": f"{side}_id", "response": side, "model": f"{side}_model"}
        pairs = pairs.join(responses.select(pl.col(c).alias(name) for c, name in names.items()), on=f"{side}_id")
    return pairs.with_columns(source=pl.lit("responses"))


def opinions(case: PairCase, judges: Iterable[str]) -> dict[str, pl.LazyFrame]:
    """Each judge's scores by response: `id` and `score`, without those that failed.

    Raises:
        UnknownName: when responses were judged, and not by a judge of that name.
    """
    known = case.judgments.select("member").unique().collect()["member"].drop_nulls().to_list()
    scores = {}
    for judge in judges:
        if known and judge not in known:
            raise UnknownName("judge", judge, known, "pair: of this round's judgments")
        own = case.judgments.filter(pl.col("member") == judge, pl.col("score").is_not_null())
        scores[judge] = own.select("score", id="response_id")
    return scores
