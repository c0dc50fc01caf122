"""A right answer with a wrong step loses λ; the judge is asked about right answers alone."""

import pytest
from asked import judged, shown

from tasks.domains.chat import Chat
from tasks.engines.fake import Fake
from tasks.judge.flawed import Flawed

SAID = {"sound 11": "Verdict: correct", "lucky 11": "Step 1: wrong\nVerdict: wrong", "odd 11": "Who knows"}
RESPONSES = [*SAID, "so 12", "no number"]


@pytest.mark.parametrize(("penalty", "flawed"), [(1.0, 0.5), (2.0, 0.0), (0.5, 0.75), (0.0, 1.0)])
def test_a_flawed_positive_loses_the_penalty(penalty, flawed):
    asked = judged(Flawed(penalty=penalty), RESPONSES, lambda prompt, seed: SAID[shown(prompt)])
    assert asked.column() == {"1": 1.0, "2": flawed, "3": None, "4": 0.0, "5": None}
    assert asked.column("verdict") == {"1": "pass", "2": None, "3": None, "4": "fail", "5": None}
    assert asked.rows["2"]["rationale"] == SAID["lucky 11"]
    assert "number" in asked.rows["5"]["error"]
    assert {shown(p) for p in asked.prompts} == set(SAID)


def test_several_judgments_are_averaged_before_an_answer_is_called_flawed():
    replies = iter([*["Verdict: wrong"] * 2, *["Verdict: correct"] * 3, "Verdict: wrong"])
    asked = judged(Flawed(samples=3, temperature=1.0), ["a 11", "b 11"], lambda prompt, seed: next(replies))
    assert asked.column() == {"1": 0.5, "2": 1.0}


def test_equal_answers_are_judged_once():
    asked = judged(Flawed(), ["a 11", "a 11"], lambda prompt, seed: "Verdict: correct")
    assert (len(asked.prompts), asked.column()) == (1, {"1": 1.0, "2": 1.0})


def test_what_no_program_can_check_is_an_error(tmp_path):
    asked = judged(Flawed(), ["a"], lambda prompt, seed: "Score: 5", domain=Chat(path=tmp_path / "none.jsonl"))
    assert (asked.rows["1"]["score"], asked.prompts) == (None, [])
    assert "verifier" in asked.rows["1"]["error"]


@pytest.mark.parametrize("engine", [Fake(error_rate=1.0), Fake(garbage_rate=1.0)])
def test_where_the_engine_fails_only_the_verifier_speaks(engine):
    asked = judged(Flawed(), ["a 11", "b 12"], None, engine=engine)
    assert asked.column() == {"1": None, "2": 0.0}
