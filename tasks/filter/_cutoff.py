"""The last of the best: where a filter that compares prompts draws the line, in memory that does not grow with their number.

Rows have `level`, `score`, `tie_break` and `id`, and are in the order of `better_first`. The one at a given place of a level is
found as radix sort would: the rows of each level are counted by 16 bits of the score, only those at the bits in which the place
is are counted by the next 16, and so on through score, tie break and id, until few enough are left to be sorted.
"""

from collections.abc import Iterator

import polars as pl

FEW = 2**19
"""Rows that are sorted in memory."""
ORDERED = ("level", "score", "tie_break", "id")
BITS, SIGN = 16, 2**63
CHARACTERS = 4
"""Of an id, at a time: as many as 16 bits of a hash are."""


def cutoffs(rows: pl.LazyFrame, room: pl.Expr) -> pl.DataFrame:
    """`level`, and as `last`, `last_tie_break` and `last_id` the score, tie break and id of its last row in room; of its last row,
    where all are.

    `rows` are read several times, a batch at a time. `room` is calculated from `rows`, the number of rows of a level.
    """
    counts = rows.group_by("level").agg(rows=pl.len().cast(pl.Int64)).collect(engine="streaming")
    cut = counts.with_columns(place=pl.min_horizontal(room.cast(pl.Int64), "rows")).sort("level")
    # `place` counts from 1 among the rows of a level that agree with it in all digits so far
    known, digits = ["level"], _digits()
    while cut["rows"].sum() > FEW and cut["rows"].max() > 1:  # type: ignore[operator]
        digit = next(digits).alias(f"digit {len(known)}")
        own = _agreeing(rows, cut, known).with_columns(digit)
        known.append(digit.meta.output_name())
        counts = own.group_by(known).agg(rows=pl.len().cast(pl.Int64)).collect(engine="streaming")
        better = pl.col("rows").cum_sum().over("level") - pl.col("rows")
        found = counts.sort(known, nulls_last=True).with_columns(better=better)
        found = found.join(cut.select(*known[:-1], "place"), on=known[:-1], nulls_equal=True)
        is_there = pl.col("place").is_between(pl.col("better") + 1, pl.col("better") + pl.col("rows"))
        cut = found.filter(is_there).select(*known, "rows", place=pl.col("place") - pl.col("better")).sort("level")
    copied = pl.concat_str("id", pl.lit(""))  # else each row keeps the ids of its whole batch in memory
    left = _agreeing(rows, cut, known).select(ORDERED).with_columns(id=copied).collect(engine="streaming")
    places = cut.lazy().select("level", "place")
    left = better_first(left.lazy(), within="level").join(places, on="level", nulls_equal=True, maintain_order="left")
    last = left.filter(pl.int_range(1, pl.len() + 1).over("level") == pl.col("place"))
    return last.select("level", last="score", last_tie_break="tie_break", last_id="id").collect()


def in_room(rows: pl.LazyFrame, cutoffs: pl.DataFrame) -> pl.LazyFrame:
    """The rows in their order, with `in_room` and `last`, the score of the last one of their level that is in room."""
    rows = rows.join(cutoffs.lazy(), on="level", how="left", nulls_equal=True, maintain_order="left")
    score, tie, last, last_tie = (pl.col(name) for name in ("score", "tie_break", "last", "last_tie_break"))
    level_on = score.eq_missing(last)
    above = (score > last) | level_on & ((tie > last_tie) | tie.is_not_null() & last_tie.is_null()).fill_null(False)
    same = level_on & tie.eq_missing(last_tie) & (pl.col("id") <= pl.col("last_id"))
    return rows.with_columns(in_room=pl.col("last_id").is_null() | above | same).drop("last_tie_break", "last_id")


def better_first(rows: pl.LazyFrame, *, within: str | None = None) -> pl.LazyFrame:
    """Sorted by reward, then tie break, both highest first, then id; where `within` names a column, by that first."""
    by, down = ["score", "tie_break", "id"], [True, True, False]
    return rows.sort(*([within] if within else []), *by, descending=[False] * bool(within) + down, nulls_last=True)


def _agreeing(rows: pl.LazyFrame, cut: pl.DataFrame, known: list[str]) -> pl.LazyFrame:
    """The rows that agree with a level's place in the digits that are known of it."""
    digits = zip(known[1:], _digits(), strict=False)
    own = rows.with_columns(digit.alias(name) for name, digit in digits)
    return own.join(cut.lazy().select(known), on=known, how="semi", nulls_equal=True)


def _digits() -> Iterator[pl.Expr]:
    """What the order goes by, a digit at a time, the better ones smaller."""
    for column in ("score", "tie_break"):
        for shift in range(64 - BITS, -1, -BITS):
            yield (_falling(pl.col(column)) // 2**shift) % 2**BITS
    start = 0
    while True:
        yield pl.col("id").str.slice(start, CHARACTERS)
        start += CHARACTERS


def _falling(value: pl.Expr) -> pl.Expr:
    """A float as a whole number of 64 bits, in the opposite order; null is the largest, NaN the smallest."""
    one_nan, one_zero = pl.lit(float("nan")), pl.lit(0.0)  # of each, floats have several
    value = pl.when(value.is_nan()).then(one_nan).when(value == 0).then(one_zero).otherwise(value)
    bits = value.reinterpret(dtype=pl.UInt64)
    rising = pl.when(bits >= SIGN).then(~bits).otherwise(bits ^ pl.lit(SIGN, pl.UInt64))
    return (~rising).fill_null(2**64 - 1)
