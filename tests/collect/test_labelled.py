"""Sources of right and wrong answers: which rows, with which label and tag."""

from dataclasses import replace

import polars as pl
import pytest

from tasks.collect import CollectCase
from tasks.collect.labelled import Labelled
from tasks.collect.rationales import Rationales
from tasks.core import tables
from tasks.core.frames import frame

QUESTION = [{"role": "user", "content": "2+2?"}]
ANSWERS = {
    "right": ("4", {"score": 0.8, "verdict": "pass"}),
    "again": ("4", {"score": 0.8, "verdict": "pass"}),
    "wrong": ("5", {"score": 0.2, "verdict": "fail"}),
    "split": ("6", {"score": 0.5}),
    "mute": (None, {"score": 0.0, "verdict": "fail"}),
    "failed": (None, {"error": "time-out"}),
    "unjudged": ("7", {"error": "unreadable"}),
    "unseen": ("8", None),
}


@pytest.fixture
def case():
    responses = [
        {"id": name, "prompt_id": "p1", "response": f"Answer: {answer}", "answer": answer, "model": "m1",
         "error": "time-out" if name == "failed" else None}
        for name, (answer, _) in ANSWERS.items()
    ]  # fmt: skip
    judgments = [
        {"id": f"{name}-{judge}", "response_id": name, "prompt_id": "p1", "member": judge, "reward": judge == "votes"}
        | (given if judge == "votes" else {"score": 1.0, "verdict": "pass"})
        for name, (_, given) in ANSWERS.items()
        if given
        for judge in ("votes", "other")
    ]
    rows = {"prompts": [{"id": "p1", "prompt": QUESTION}], "responses": responses, "judgments": judgments}
    names = ("prompts", "responses", "judgments", "filtered", "critiques", "refinements", "pairs")
    frames = {name: frame(tables.TABLES[name], rows.get(name, ())) for name in names}
    empty = frame(tables.training)
    return CollectCase(**frames, parent_training=empty, anchor_training=None, grandparent_training=None,
                       new=empty.collect(), seed=1)  # fmt: skip


def labels(rows):
    return dict(rows.training.select("response_id", "label").collect().rows())


def test_the_label_is_the_reward_judges_verdict(case):
    assert labels(Labelled()(case)) == {"right": True, "again": True, "wrong": False}


@pytest.mark.parametrize(("min_reward", "true"), [(0.5, {"right", "again", "split"}), (0.9, set()), (0.0, None)])
def test_or_what_the_reward_says(case, min_reward, true):
    got = labels(Labelled(min_reward=min_reward)(case))
    assert set(got) == {"right", "again", "wrong", "split"}
    assert {name for name, label in got.items() if label} == (set(got) if true is None else true)


def test_a_row_has_its_prompt_as_group_and_the_reward(case):
    [row] = Labelled()(case).training.filter(pl.col("response_id") == "wrong").collect().to_dicts()
    assert (row["group"], row["reward"], row["source"], row["model"]) == ("p1", 0.2, "responses", "m1")
    assert row["prompt"] == QUESTION
    assert row["completion"] == [{"role": "assistant", "content": "Answer: 5"}]


def test_rationales_are_tagged_and_each_text_is_one(case):
    rows = Rationales()(case).training.collect()
    assert sorted(rows.select("response_id", "label", "tag").rows()) == [
        ("again", True, "[CORRECT RATIONALE]"), ("wrong", False, "[INCORRECT RATIONALE]"),
    ]  # fmt: skip
    assert not set(rows["id"]) & set(Labelled()(case).training.collect()["id"])
    assert rows["completion"].list.first().struct.field("content").sort().to_list() == ["Answer: 4", "Answer: 5"]


def test_the_tag_counts_as_tokens(tiny_model, case):
    from tasks.collect import _with_tokens

    rows = frame(tables.training, [{"prompt": QUESTION, "completion": [{"role": "assistant", "content": "4"}], "tag": tag}
                                   for tag in (None, "4 4 4")]).collect()  # fmt: skip
    plain, tagged = _with_tokens(rows, tiny_model, ["completion"])["tokens"]
    assert tagged >= plain + 3


def test_those_that_the_filter_kept_alone(case):
    kept = frame(tables.filtered, [{"id": name, "prompt_id": "p1", "kept": name == "wrong"} for name in ANSWERS])
    assert labels(Labelled(kept_only=True)(replace(case, filtered=kept))) == {"wrong": False}
