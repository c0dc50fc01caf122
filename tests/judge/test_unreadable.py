"""Numbers of thousands of digits and LaTeX without end, in answers and verdicts: rows with an error in a stage that goes on."""

import pytest
from asked import judged

from tasks.domains.arithmetic import Arithmetic
from tasks.domains.chat import Chat
from tasks.domains.math import Math
from tasks.judge.self_judge import SelfJudge
from tasks.judge.verifier import Verifier

HUGE = "9" * 5000
STORY = [{"id": "p", "problem": "Tom has 12 pens.\nDay 1: 5 found\nHow many?", "reference": "17"}]
NUMBER = [{"id": "p", "problem": "How many?", "reference": "18"}]
RIGHT = "Day 1: 12+5=17\nAnswer: 17"


def test_huge_numbers_in_answers_are_errors():
    answers = [f"Answer: {HUGE}", RIGHT, f"Day 1: 12+5={HUGE}\nAnswer: {HUGE}"]
    asked = judged(Verifier(), answers, None, domain=Arithmetic(), prompts=STORY)
    assert asked.column() == {"1": None, "2": 1.0, "3": None}
    assert asked.column("error") == dict.fromkeys("13", "no answer in the response") | {"2": None}


def test_a_huge_number_in_a_problem_is_an_error():
    story = [STORY[0] | {"problem": f"Tom has 12 pens.\nDay {HUGE}: 5 found\nHow many?"}]
    asked = judged(Verifier(), [RIGHT], None, domain=Arithmetic(), prompts=story)
    assert asked.column("error") == {"1": "the problem cannot be read"}


def test_answers_that_cannot_be_computed_are_errors_with_the_reason():
    hanging = r"\boxed{(\sqrt{2}+\sqrt{3}+\sqrt{5}+\sqrt{7})^{99}}"
    answers = [f"#### {HUGE}", hanging, r"\boxed{3\sqrt{36}}", "#### 19", "#### ~18"]
    asked = judged(Verifier(), answers, None, domain=Math(train="a", test="b"), prompts=NUMBER)
    assert asked.column() == {"1": None, "2": None, "3": 1.0, "4": 0.0, "5": None}
    errors = asked.column("error")
    assert "more than 4300 digits" in errors["1"]
    assert "takes more than 2 s to compute" in errors["2"]
    assert "not stated" in errors["5"]


@pytest.mark.parametrize(
    ("domain", "said"),
    [
        (Arithmetic(), f"Day 1: 12+5={HUGE}, said {HUGE}: right\nVerdict: correct"),
        (Arithmetic(), f"Day {HUGE}: 12+5=17, said 17{HUGE}: right\nVerdict: correct"),
        (Chat(path="a"), f"Score: {HUGE}"),
        (Math(train="a", test="b"), f"Verdict: {HUGE}"),
    ],
    ids=["line", "day", "score", "verdict"],
)
def test_huge_numbers_in_verdicts_are_errors(domain, said):
    replies = iter([said, "Score: 5" if isinstance(domain, Chat) else "Verdict: correct"])
    asked = judged(SelfJudge(), ["one", "two"], lambda prompt, seed: next(replies), domain=domain, prompts=STORY)
    assert sorted(asked.column().values(), key=str) == [1.0, None]
    assert len([error for error in asked.column("error").values() if error]) == 1
