"""Multiple choice: the files of ARC and MMLU, letters, splits, and options in another order."""

import json
from pathlib import Path

import pytest

from tasks.core.errors import FlywheelError
from tasks.domains.choices import Choices, Question, read, read_file

PROBLEM = "Which is a mammal?\nA. trout\nB. crow\nC. bat"
QUESTION = Question("Which is a mammal?", ("trout", "crow", "bat"))
BARE = Choices(train="a", test="b")


def write(path: Path, *lines: dict) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def line(n: int) -> dict:
    return {"question": f"What is question {n}?", "choices": ["this", "that", "other", "none"], "answer": n % 4}


@pytest.fixture
def small(tmp_path: Path) -> Choices:
    """300 training questions, of which the test file has 5 too, in other spelling."""
    spelled = [line(n) | {"question": f"What  is QUESTION {n}?"} for n in range(295, 310)]
    return Choices(
        train=write(tmp_path / "train.jsonl", *map(line, range(300))), test=write(tmp_path / "test.jsonl", *spelled)
    )


@pytest.mark.parametrize(
    "row",
    [
        {"options": ["trout", "crow", "bat"], "answer": "C"},
        {"choices": ["trout", " crow", "bat\n"], "answer": 2},
        {"choices": {"text": ["trout", "crow", "bat"], "label": ["1", "2", "3"]}, "answerKey": "3"},
        {"choices": {"text": ["trout", "crow", "bat"], "label": ["A", "B", "C"]}, "answerKey": "C"},
    ],
)
def test_the_formats_of_arc_and_mmlu_are_one_problem(tmp_path, row):
    path = write(tmp_path / "a.jsonl", row | {"question": "Which is a mammal?"})
    assert list(read_file(path).values()) == [(QUESTION, "C")]


@pytest.mark.parametrize(
    "row",
    [
        {"choices": ["trout"], "answer": 0},
        {"choices": ["trout", "trout"], "answer": 0},
        {"choices": ["trout", ""], "answer": 0},
        {"choices": ["trout", "bat"], "answer": 2},
        {"choices": ["trout", "bat"], "answer": "C"},
        {"choices": ["trout", "bat"]},
        {"answer": "A"},
    ],
)
def test_a_broken_line_is_named(tmp_path, row):
    path = write(tmp_path / "a.jsonl", line(1), row | {"question": "Which?"})
    with pytest.raises(FlywheelError, match=r"a\.jsonl:2"):
        read_file(path)


def test_splits_are_disjoint_and_a_larger_count_is_a_superset(small):
    splits = {
        s: [i.problem for i in small.items(s, 999, 0)] for s in ("seeds", "train", "validation", "gold", "heldout")
    }
    problems = [p for own in splits.values() for p in own]
    assert len(problems) == len(set(problems)) == 295 + 15
    assert all(splits.values())
    assert [i.problem for i in small.items("train", 7, 0)] == splits["train"][:7]
    assert small.items("train", 7, 1) != small.items("train", 7, 0)


def test_gold_answers_are_right_or_wrong_and_marked(small):
    gold = small.items("gold", 999, 0)
    verdicts = {small.verify(i.problem, i.response, i.reference).passed for i in gold}
    assert verdicts == {True, False}
    assert all(small.verify(i.problem, i.response, i.reference).passed == (i.wrong_step is None) for i in gold)


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("Bats suckle.\nAnswer: C", "C"),
        ("**Answer:** C.", "C"),
        ("The answer is (B).", "B"),
        ("Answer: A\nNo: the answer is C.", "C"),
        ("Answer: option B", "B"),
        ("C", "C"),
        ("(C)", "C"),
        ("A bat is one.", None),
        ("Answer: crow", None),
        ("", None),
    ],
)
def test_the_answer_is_the_last_letter_announced(response, letter):
    assert BARE.answer(response) == letter


def test_a_letter_of_no_option_is_an_error_and_no_fail():
    assert BARE.verify(PROBLEM, "Answer: C", "C").passed is True
    assert BARE.verify(PROBLEM, "Answer: A", "C").passed is False
    for response, reference in (("Answer: E", "C"), ("Hm.", "C"), ("Answer: C", None)):
        assert BARE.verify(PROBLEM, response, reference).error


def test_a_written_question_needs_options():
    assert BARE.parse(f"Problem 3: {PROBLEM}\n").problem == PROBLEM
    for text in (
        "Which is a mammal?",
        "A. trout\nB. bat",
        "Which?\nA. trout",
        "Which?\nA. trout\nC. bat",
        "Which?\nA. x\nB. x",
    ):
        assert BARE.parse(text) is None
    assert read(PROBLEM) == QUESTION
    assert PROBLEM in BARE.solve(PROBLEM)[0]["content"]


@pytest.mark.parametrize("seed", range(20))
def test_the_options_change_places_and_the_chosen_one_its_letter(seed):
    other, letter = QUESTION.shuffled(seed, "C")
    assert (other, letter) == QUESTION.shuffled(seed, "C")
    assert sorted(other.options) == sorted(QUESTION.options)
    assert letter != "C"
    assert other.options["ABC".index(letter)] == "bat"


def test_the_reasoning_is_what_comes_before_the_answer():
    assert BARE.reasoning("Bats suckle their young.\nSo the answer is C.").strip() == "Bats suckle their young."
    assert BARE.reasoning("C") == ""
