"""Rows reach trainers from files that are mapped into memory, and stay there whatever trainers make of them."""

import polars as pl
import pyarrow as pa
import pytest
from datasets import Dataset

from tasks.training import rows as module
from tasks.training.rows import lengths, on_disk, with_columns, with_last
from tasks.training.weighted import dataset
from tasks.training.weights import load

pytestmark = pytest.mark.xdist_group("trl")
FRAME = pl.DataFrame({"n": range(12), "ids": [[n] * (n % 5) for n in range(12)]})


def test_rows_come_back_in_their_order_and_what_lay_there_is_gone(tmp_path):
    on_disk([FRAME], tmp_path / "rows")
    rows = on_disk(FRAME[:7].iter_slices(3), tmp_path / "rows")
    assert rows.to_list() == FRAME[:7].to_dicts()
    with pytest.raises(ValueError, match="no rows"):
        on_disk([], tmp_path / "rows")


def test_lengths_and_columns_follow_the_order_of_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PIECE", 5)
    rows = on_disk(FRAME.iter_slices(4), tmp_path / "rows").select([3, 9, 0, 11, 4, 7, 2, 1])
    assert lengths(rows, "ids") == [3, 4, 0, 1, 4, 2, 2, 1]
    pieces = []
    more = with_columns(rows, lambda some: {"twice": [pieces.append(len(some["n"])) or 2 * n for n in some["n"]]}, 2)
    assert more["twice"][:] == [6, 18, 0, 22, 8, 14, 4, 2]
    assert set(pieces) == {4}, "a reference is asked for whole pieces"
    assert with_last(more, "twice", -1)["twice"][:] == [6, 18, 0, 22, 8, 14, 4, -1]


def test_what_trainers_hold_does_not_grow_with_the_rows(tmp_path, embedded_model):
    """Neither as tokens, nor as the log-probabilities that are made of them."""
    tokenizer = load(embedded_model)[1]
    turn = [{"role": "user", "content": "How many pens? " * 40}]
    table = pl.DataFrame({"prompt": [turn] * 5_000, "completion": [turn] * 5_000})
    before = pa.total_allocated_bytes()
    rows = dataset(table, tmp_path / "rows", tokenizer)
    scored = with_columns(rows, lambda some: {"old": [[0.5] * 400 for _ in some["labels"]]}, 48)
    assert len(scored) == 5_000 and isinstance(scored, Dataset)
    assert scored.data.nbytes > 2 * 10**7
    assert pa.total_allocated_bytes() - before < 5 * 10**6
    assert {file["filename"].startswith(str(tmp_path)) for file in scored.cache_files} == {True}
