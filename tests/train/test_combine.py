"""Checkpoints that are combined: by hand, and never worse than the last one on the rows that were held out."""

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError
from runs import FAST, ROWS, contents, train, values

from tasks.train import Lora
from tasks.train.combine import Combine, split
from tasks.training.combining import coefficients, combined, search

pytestmark = pytest.mark.xdist_group("trl")


def test_a_combination_by_hand():
    parts = coefficients(np.array([0.5, -0.25]))
    assert parts.tolist() == [0.5, -0.25, 0.75]
    checkpoints = [{"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([4.0, 0.0])}, {"a": torch.tensor([0.0, 4.0])}]
    assert combined(checkpoints, parts)["a"].tolist() == pytest.approx([-0.5, 4.0], abs=1e-6)


def test_the_search_finds_the_minimum_and_is_never_worse_than_the_last():
    # the loss is least at (0.4, −0.2, 0.8)
    parts = search(lambda x: float((x[0] - 0.4) ** 2 + (x[1] + 0.2) ** 2), 3, 1.0, 60, 0)
    assert parts.tolist() == pytest.approx([0.4, -0.2, 0.8], abs=1e-2)
    assert search(lambda x: float(1 - x[-1] if x[-1] < 1 else x[-1] - 1), 4, 1.0, 1, 0).tolist() == [0, 0, 0, 1]
    assert search(lambda x: 0.0, 1, 1.0, 1, 0).tolist() == [1]
    assert (search(np.sum, 3, 1.0, 2, 7) == search(np.sum, 3, 1.0, 2, 7)).all()


def test_held_out_rows_are_drawn_by_id():
    rows, held_out = split(ROWS, 0.1, 1)
    assert (len(rows), len(held_out)) == (len(ROWS) - 4, 4)
    again = split(ROWS[::-1], 0.1, 1)[1]
    assert held_out["id"].to_list() == again["id"].to_list()
    assert held_out["id"].to_list() != split(ROWS, 0.1, 2)[1]["id"].to_list()
    assert [len(part) for part in split(ROWS.head(1), 0.5, 1)] == [1, 0]


def test_the_combination_is_not_worse_and_an_interrupted_run_finds_the_same(parent, tmp_path, stopped_halfway):
    strategy = Combine(**FAST, held_out=0.2, generations=1)
    calm = train(strategy, parent, tmp_path / "calm")
    before, after = values(calm, "held_out", "combine")
    assert after <= before
    assert values(calm)[-1] < values(calm)[0]
    with stopped_halfway(), pytest.raises(KeyboardInterrupt):
        train(strategy, parent, tmp_path / "stopped")
    assert calm.equals(train(strategy, parent, tmp_path / "stopped"))
    assert contents(tmp_path / "calm/model") == contents(tmp_path / "stopped/model")


def test_held_out_rows_without_a_token_to_learn_do_not_count(parent, tmp_path):
    from tasks.training.combining import held_out_loss
    from tasks.training.weights import load

    whole = pl.lit([{"start": 0, "end": 999}], dtype=ROWS.schema["mask"])
    masked = ROWS.with_columns(mask=pl.when(pl.col("id") < "t08").then(whole))
    policy, tokenizer = load(parent)

    def loss(held_out):
        work = tmp_path / str(len(held_out))
        return held_out_loss(Combine(batch=4).row_trainer(policy, tokenizer, ROWS, work, 1, held_out=held_out)[0])

    assert loss(masked[4:12]) == pytest.approx(loss(ROWS[8:12]), abs=1e-6)


def test_of_a_single_row_none_is_held_out(parent, tmp_path):
    assert set(train(Combine(**FAST), parent, tmp_path, rows=ROWS.head(1))["phase"]) == {"sft"}
    with pytest.raises(ValidationError, match="adapter"):
        Combine(adapter=Lora())
