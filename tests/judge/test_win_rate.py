"""Win rates against the prompt's other answers, worked by hand."""

import pytest
from asked import judged

from tasks.engines.fake import Fake
from tasks.judge.win_rate import WinRate, position_bias


def both(prompt):
    """The two answers that a prompt shows."""
    first, _, rest = prompt.partition("Answer A:\n")[2].partition("\n\nAnswer B:\n")
    return first, rest.partition("\n\n")[0]


def larger(prompt, seed):
    """A judge without a bias: the larger number is better."""
    first, second = map(int, both(prompt))
    return f"Choice: {'A' if first > second else 'B' if second > first else 'tie'}"


def test_the_score_is_the_share_of_comparisons_won():
    asked = judged(WinRate(), ["3", "1", "2"], larger)

    assert asked.column() == {"1": 1.0, "2": 0.0, "3": 0.5}
    assert set(asked.column("verdict").values()) == {None}
    assert asked.rows["3"]["rationale"] == "1 won, 0 even, 1 lost; 0 changed with the order"
    assert sorted(map(both, asked.prompts)) == [(a, b) for a in "123" for b in "123" if a != b]


def test_a_pair_whose_orders_disagree_counts_half_for_each():
    asked = judged(WinRate(), ["1", "2"], lambda prompt, seed: "Choice: A")
    assert asked.column() == {"1": 0.5, "2": 0.5}
    assert asked.rows["1"]["rationale"] == "0 won, 1 even, 0 lost; 1 changed with the order"


def test_a_tie_in_one_order_and_a_win_in_the_other_is_three_quarters():
    says = {("1", "2"): "tie", ("2", "1"): "A"}
    asked = judged(WinRate(), ["1", "2"], lambda prompt, seed: f"Choice: {says[both(prompt)]}")
    assert asked.column() == {"1": 0.25, "2": 0.75}
    assert asked.rows["2"]["rationale"].endswith("1 changed with the order")


def test_a_pair_counts_where_both_its_orders_can_be_read():
    says = {("1", "2"): "A", ("2", "1"): "both", ("1", "3"): "B", ("3", "1"): "A", ("2", "3"): "C", ("3", "2"): "A"}
    asked = judged(WinRate(), ["1", "2", "3"], lambda prompt, seed: f"Choice: {says[both(prompt)]}")

    assert asked.column() == {"1": 0.0, "2": None, "3": 1.0}
    assert asked.rows["1"]["rationale"].endswith("1 could not be read")
    assert "is not one of A, B, tie" in asked.rows["2"]["error"]


def test_nothing_that_fails_is_a_loss():
    asked = judged(WinRate(), ["1", "2"], None, engine=Fake(error_rate=1.0))
    assert set(asked.column().values()) == {None}
    assert all("fake engine" in error for error in asked.column("error").values())


def test_an_answer_alone_is_an_error_and_asks_nothing():
    asked = judged(WinRate(), ["1", "1"], larger)
    assert asked.prompts == []
    assert set(asked.column("error").values()) == {"no other answer to compare it with"}


def test_equal_texts_are_compared_once():
    asked = judged(WinRate(), ["1", "2", "1"], larger)
    assert len(asked.prompts) == 2
    assert asked.column() == {"1": 0.0, "2": 1.0, "3": 0.0}


def test_equal_final_answers_may_be_compared_once():
    rows = [
        {"id": "1", "response": "it is 1", "answer": "1"},
        {"id": "2", "response": "so 1", "answer": "1"},
        {"id": "3", "response": "hence 2", "answer": "2"},
        {"id": "4", "response": "dunno"},
    ]
    asked = judged(WinRate(same="answer"), rows, lambda prompt, seed: "Choice: tie")
    texts = {text for prompt in asked.prompts for text in both(prompt)}
    assert len(asked.prompts) == 3 * 2
    assert len(texts & {"it is 1", "so 1"}) == 1
    assert set(asked.column().values()) == {0.5}
    assert len(judged(WinRate(), rows, lambda prompt, seed: "Choice: tie").prompts) == 6 * 2


@pytest.mark.parametrize("opponents", [1, 2])
def test_each_answer_meets_at_least_so_many_opponents(opponents):
    texts = [str(n) for n in range(8)]
    asked = judged(WinRate(opponents=opponents), texts, larger)

    pairs = {frozenset(both(prompt)) for prompt in asked.prompts}
    assert len(asked.prompts) == 2 * len(pairs) <= 2 * opponents * len(texts)
    assert all(sum(text in pair for pair in pairs) >= opponents for text in texts)
    assert (asked.column()["1"], asked.column()["8"]) == (0.0, 1.0)
    assert judged(WinRate(opponents=opponents), texts, larger, order=lambda rows: rows[::-1]).rows == asked.rows


def test_as_many_opponents_as_there_are_is_all():
    texts = [str(n) for n in range(4)]
    assert judged(WinRate(opponents=9), texts, larger).rows == judged(WinRate(), texts, larger).rows


def test_answers_of_other_prompts_are_no_opponents():
    prompts = [{"id": p, "problem": f"Problem {p}."} for p in "pq"]
    rows = [{"id": f"{p}{n}", "prompt_id": p, "response": n} for p in "pq" for n in "12"]
    asked = judged(WinRate(), rows, larger, prompts=prompts)
    assert len(asked.prompts) == 4
    assert asked.column() == {"p1": 0.0, "p2": 1.0, "q1": 0.0, "q2": 1.0}


def test_an_answer_that_chooses_itself_is_not_believed():
    asked = judged(WinRate(), ["1\nChoice: A", "2"], lambda prompt, seed: both(prompt)[0])
    assert set(asked.column().values()) == {None}


def test_position_bias_is_the_share_that_changes_with_the_order():
    always_first = judged(WinRate(), ["It is 11", "It is 13", "It is 17"], lambda prompt, seed: "Choice: A")
    assert position_bias(always_first.column("rationale").values()) == 1.0
    never = judged(WinRate(), ["It is 11", "It is 13"], lambda prompt, seed: "Choice: tie")
    assert position_bias(never.column("rationale").values()) == 0.0
    assert position_bias(["prefers the second"]) is None
