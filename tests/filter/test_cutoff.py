"""The line that a filter draws over all prompts: as the plain sort of all rows draws it, however few are in memory."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.filter import _cutoff
from tasks.filter._cutoff import better_first, cutoffs, in_room

SCHEMA = {"level": pl.Int32, "score": pl.Float64, "tie_break": pl.Float64, "id": pl.String}
numbers = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, float("inf"), -float("inf"), float("nan")]) | st.floats()
rows = st.tuples(
    st.sampled_from([None, 1, 2]), numbers, st.none() | numbers, st.text("ab\x00é", min_size=1, max_size=9)
)


def table(values) -> pl.DataFrame:
    """Rows with ids of their own, as a table's are."""
    return pl.DataFrame(list({row[3]: row for row in values}.values()), schema=SCHEMA, orient="row")


def plainly(frame: pl.DataFrame, places) -> dict[str, bool]:
    """Whether each id is in room, by the sort of everything."""
    ordered = better_first(frame.lazy()).collect()
    place, found = {}, {}
    for level, _, _, name in ordered.rows():
        place[level] = place.get(level, 0) + 1
        found[name] = place[level] <= places(ordered.filter(pl.col("level").eq_missing(level)).height)
    return found


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """So few rows are sorted at once that each digit is looked at."""
    monkeypatch.setattr(_cutoff, "FEW", 1)


@given(st.lists(rows, max_size=30), st.integers(1, 9), st.integers(0, 29))
def test_a_limit_a_level(values, limit, at):
    frame = table(values)
    lines = cutoffs(pl.concat([frame[:at], frame[at:]]).lazy(), pl.lit(limit))
    found = in_room(frame.lazy(), lines).collect()
    assert found["id"].equals(frame["id"])
    assert dict(found.select("id", "in_room").iter_rows()) == plainly(frame, lambda rows: min(rows, limit))


@given(st.lists(rows, min_size=1, max_size=30))
def test_a_share_of_all(values):
    frame = table(values).with_columns(level=pl.lit(0, pl.Int32))
    lines = cutoffs(frame.lazy(), pl.max_horizontal((pl.col("rows") * 0.5).floor(), 1))
    found = in_room(frame.lazy(), lines).collect()
    kept = plainly(frame, lambda rows: max(1, rows // 2))
    assert dict(found.select("id", "in_room").iter_rows()) == kept
    last = better_first(frame.lazy()).collect()["score"][sum(kept.values()) - 1]
    assert found["last"].eq_missing(last).all()


def test_a_level_without_candidates_has_room(monkeypatch):
    frame = table([(1, 0.5, None, "a")])
    found = in_room(frame.lazy(), cutoffs(frame.clear().lazy(), pl.lit(3))).collect()
    assert found.select("in_room", "last").row(0) == (True, None)


def test_many_equal_rows_are_told_apart_by_their_ids():
    """Votes have few values, so that most of a round may tie."""
    frame = pl.DataFrame({"id": [f"{n:016x}" for n in range(0, 40_000_000, 10_007)]})
    frame = frame.with_columns(level=pl.lit(1, pl.Int32), score=pl.lit(0.75), tie_break=pl.lit(None, pl.Float64))
    lines = cutoffs(frame.select(*SCHEMA).lazy(), pl.lit(1000))
    assert lines["last_id"].to_list() == [f"{999 * 10_007:016x}"]
