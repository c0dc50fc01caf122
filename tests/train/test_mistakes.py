"""Mistake tuning: the tag is learnt, and no wrong answer without one."""

import polars as pl
import pytest
from runs import FAST, ROWS, train, values

from tasks.collect.rationales import CORRECT, INCORRECT
from tasks.core.errors import ParamsError
from tasks.train.mistakes import MistakeTuning
from tasks.train.sft import SFT
from tasks.training.weights import load

pytestmark = pytest.mark.xdist_group("trl")
LABELLED = ROWS.with_columns(label=pl.col("id") < "t20")
TAGGED = LABELLED.with_columns(tag=pl.when("label").then(pl.lit(CORRECT)).otherwise(pl.lit(INCORRECT)))


def test_both_tags_are_learnt(parent, tmp_path):
    losses = values(train(MistakeTuning(**FAST | {"epochs": 6}), parent, tmp_path, rows=TAGGED))
    assert losses[-1] < 0.5 * losses[0]
    policy, tokenizer = load(parent)
    trainer, _ = MistakeTuning().row_trainer(policy, tokenizer, TAGGED, tmp_path / "work2", 1)
    texts = {tokenizer.decode([n for n in labels if n != -100]) for labels in trainer.train_dataset["labels"]}
    assert all(CORRECT in text or INCORRECT in text for text in texts)
    assert len(texts) == 2


def test_a_wrong_answer_without_a_tag_is_an_error_that_names_the_source(parent, tmp_path):
    with pytest.raises(ParamsError, match=r"(?s)collect\.mine.*rationales"):
        train(MistakeTuning(**FAST), parent, tmp_path, rows=LABELLED.with_columns(member=pl.lit("mine")))
    assert MistakeTuning.used_columns - SFT.used_columns == {"training.label"}
