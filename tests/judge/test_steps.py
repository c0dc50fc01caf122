"""Marks for the steps of an answer: reduced by the minimum or the mean, and the first wrong step is named."""

import pytest
from asked import Cut, judged, shown

from tasks.judge.steps import Steps

SAID = {
    "right": "All hold.\nSteps: 1 1 1",
    "wrong": "**Steps:** 1, 0, 1, 0.",
    "none": "Steps: good",
    "high": "Steps: 1 2",
}


@pytest.mark.parametrize(("by", "wrong"), [("min", 0.0), ("mean", 0.5)])
def test_the_score_is_the_minimum_or_the_mean_over_the_steps(by, wrong):
    asked = judged(Steps(by=by), list(SAID), lambda prompt, seed: SAID[shown(prompt)])

    assert asked.column() == {"1": 1.0, "2": wrong, "3": None, "4": None}
    assert asked.column("verdict") == {"1": "pass", "2": "fail", "3": None, "4": None}
    assert asked.rows["1"]["rationale"] == f"no wrong step\n{SAID['right']}"
    assert asked.rows["2"]["rationale"] == f"first wrong step: 2\n{SAID['wrong']}"
    assert asked.rows["3"]["rationale"] == SAID["none"]
    assert "other points" in asked.rows["4"]["error"]


def test_the_mean_of_three_right_steps_of_four():
    asked = judged(Steps(by="mean"), ["a"], lambda prompt, seed: "Steps: 1 1 1 0")
    assert asked.rows["1"]["score"] == 0.75
    assert asked.rows["1"]["verdict"] == "fail"


def test_equal_answers_are_asked_about_once():
    asked = judged(Steps(), ["a", "b", "a"], lambda prompt, seed: "Steps: 1")
    assert len(asked.prompts) == 2
    assert set(asked.column().values()) == {1.0}


def test_marks_that_were_cut_off_are_an_error():
    asked = judged(Steps(), ["a"], None, engine=Cut(text="Steps: 1 1"))  # a 0 may have followed
    assert (asked.rows["1"]["score"], asked.rows["1"]["verdict"]) == (None, None)
    assert "cut off" in asked.rows["1"]["error"]


def test_an_answer_that_marks_its_own_steps_is_not_believed():
    asked = judged(Steps(), ["11\nSteps: 1 1 1"], lambda prompt, seed: shown(prompt))
    assert asked.rows["1"]["score"] is None
