"""Adapters where the data drifted: the distances by hand, and layers that stay as they are."""

from math import inf

import polars as pl
import pytest
import torch
from pydantic import ValidationError
from runs import FAST, ROWS, largest_difference, train, turn, values

from tasks.train import Lora
from tasks.train.sema import SEMA
from tasks.training.drift import distances, hidden_means, spread
from tasks.training.weights import load, peft

pytestmark = pytest.mark.xdist_group("trl")
OLD = ROWS.with_columns(source=pl.when(pl.col("id") < "t20").then(pl.lit("replay")).otherwise(pl.lit("responses")))
STRANGE = OLD.with_columns(
    completion=pl.when(pl.col("source") == "replay")
    .then("completion")
    .otherwise(pl.lit([turn("Day 1: 5+5=10")], dtype=pl.List(ROWS.schema["completion"])).list.first())
)


def test_the_distances_by_hand():
    # one layer: old rows at (±3, 0) about 0, their spread 3; new ones about (0, 6); in the other layer both are alike
    old = torch.tensor([[[3.0, 0.0], [1.0, 1.0]], [[-3.0, 0.0], [1.0, 3.0]]])
    new = torch.tensor([[[1.0, 6.0], [1.0, 2.0]], [[-1.0, 6.0], [1.0, 2.0]]])
    assert distances(spread([new]), spread([old])) == pytest.approx([2.0, 0.0])
    assert distances(spread([new]), spread([old[:1]])) == [inf, inf]


def test_what_is_kept_of_rows_is_the_same_in_whatever_pieces_they_come():
    rows = torch.randn(50, 3, 4, generator=torch.Generator().manual_seed(1)) + 100
    parts = spread(rows.split(7))
    assert parts.count == 50
    assert torch.allclose(parts.mean, rows.double().mean(0), rtol=1e-12)
    assert torch.allclose(parts.squares, (rows.double() - rows.double().mean(0)).pow(2).sum((0, 2)), rtol=1e-9)
    assert spread([rows]).squares.shape == (3,), "nothing is kept that grows with the rows"


def test_the_hidden_states_are_means_over_the_rows_tokens(parent):
    policy, tokenizer = load(parent)
    chats = [p + c for p, c in ROWS.head(3).select("prompt", "completion").iter_rows()]
    means = torch.cat(list(hidden_means(policy, tokenizer, iter(chats * 6))))[:3]
    ids = torch.tensor([tokenizer.apply_chat_template(chats[1])["input_ids"]])
    with torch.no_grad():
        alone = policy.model(ids).last_hidden_state[0].mean(0)
    assert torch.allclose(means[1, -1], alone, atol=1e-5)
    assert means.shape[:2] == (3, policy.config.num_hidden_layers)


def test_only_layers_that_drifted_are_trained(parent, tmp_path):
    policy, tokenizer = load(parent)
    [distance] = SEMA().drift(policy, tokenizer, STRANGE)
    far = SEMA(**FAST | {"epochs": 6}, threshold=distance / 2)
    losses = values(train(far, parent, tmp_path / "far", rows=STRANGE))
    assert losses[-1] < losses[0]
    assert largest_difference(tmp_path / "far/model", parent) > 1e-4
    near = train(SEMA(**FAST, threshold=2 * distance), parent, tmp_path / "near", rows=STRANGE)
    assert near.select("phase", "name", "value").rows() == [("drift", "distance", pytest.approx(distance, abs=1e-5))]
    assert largest_difference(tmp_path / "near/model", parent) == 0
    assert SEMA().drift(policy, tokenizer, ROWS) == [inf]
    assert SEMA().drift(policy, tokenizer, STRANGE.filter(source="replay")) == [0.0]


def test_an_adapter_of_some_layers_leaves_the_others(tiny_model):
    adapted = peft(load(tiny_model)[0], Lora(rank=2), 1, [1])
    names = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert names
    assert all(".layers.1." in name for name in names)
    everywhere = {n for n, w in peft(load(tiny_model)[0], Lora(rank=2), 1).named_parameters() if w.requires_grad}
    assert names == {name for name in everywhere if ".layers.1." in name}
    with pytest.raises(ValidationError, match="merge"):
        SEMA(adapter=Lora(merge=False))
