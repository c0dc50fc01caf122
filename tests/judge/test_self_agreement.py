"""One call shows the samples and says on what they agree; answers that equal it score 1."""

import pytest
from asked import PROBLEM, Cut, judged

from tasks.engines.fake import Fake
from tasks.judge.self_agreement import SelfAgreement

ANSWERS = ["11", "13", "11", None]
ROWS = [{"id": str(n), "response": f"way {n}, so {a}", "answer": a} for n, a in enumerate(ANSWERS, 1)]


def test_answers_that_equal_the_agreed_one_score_1():
    asked = judged(SelfAgreement(), ROWS, lambda prompt, seed: "Two say 11, one says 13.\nMost agree on 11")
    assert asked.column() == {"1": 1.0, "2": 0.0, "3": 1.0, "4": None}
    assert asked.column("verdict") == {"1": "pass", "2": "fail", "3": "pass", "4": None}
    assert "no answer" in asked.rows["4"]["error"]
    [prompt] = asked.prompts
    assert PROBLEM in prompt
    assert all(f"way {n}, so" in prompt for n in (1, 2, 3))
    assert "way 4" not in prompt


def test_so_many_solutions_are_shown_whatever_the_order_of_the_rows():
    member, says = SelfAgreement(solutions=2), lambda prompt, seed: "11"
    asked = judged(member, ROWS, says)
    assert asked.prompts[0].count("Solution ") == 2
    assert judged(member, ROWS, says, order=lambda rows: rows[::-1]).prompts == asked.prompts


def test_a_solution_is_drawn_as_often_as_it_was_sampled():
    """Three of five samples are equal: of two that are shown 0.6 are, not all or none of them."""
    texts, count = ["a", "a", "a", "b", "c"], 400
    rows = [
        {"id": f"{p}-{n}", "prompt_id": f"p{p}", "response": f"way {t}", "answer": t}
        for p in range(count)
        for n, t in enumerate(texts)
    ]
    prompts = [{"id": f"p{p}", "problem": f"Problem {p}."} for p in range(count)]
    asked = judged(SelfAgreement(solutions=2), rows, lambda prompt, seed: "a", prompts=prompts)
    shown = [prompt.count("way a") for prompt in asked.prompts]
    assert sum(shown) / (2 * count) == pytest.approx(0.6, abs=0.04)
    assert shown.count(0) / count == pytest.approx(0.1, abs=0.05)


def test_a_reply_that_was_cut_off_is_an_error_for_all():
    """It may name a solution's answer on its way to the agreed one."""
    asked = judged(SelfAgreement(), ROWS, None, engine=Cut(text="13"))
    assert set(asked.column().values()) == {None}
    assert "cut off" in asked.rows["1"]["error"]


def test_equal_solutions_count_as_often_as_they_were_sampled():
    same = [{"id": n, "response": "so 11", "answer": "11"} for n in "abc"]
    assert judged(SelfAgreement(), same, lambda prompt, seed: "11").prompts[0].count("so 11") == 3


def test_a_reply_that_cannot_be_read_is_an_error_for_all():
    for more in ({"engine": Fake(error_rate=1.0)}, {}):
        asked = judged(SelfAgreement(), ROWS, lambda prompt, seed: "  ", **more)
        assert set(asked.column().values()) == {None}


def test_without_answers_no_model_is_loaded():
    asked = judged(SelfAgreement(), ROWS[3:], None, engine=Fake(down=True))
    assert asked.column() == {"4": None}
