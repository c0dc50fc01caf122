"""The embedded domain: what is read, what is right, where it goes wrong, and that the splits cannot meet."""

import random
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks.domains import Split
from tasks.domains.arithmetic import Arithmetic, Role, Story, criticism, draw, first_wrong, judgment, read, tell, work

DOMAIN = Arithmetic()
PROBLEM = "Tom has 12 pens.\nDay 1: 5 found\nDay 2: halved\nHow many?"
ANSWER = "Day 1: 12+5=17\nDay 2: 17/2=8\nAnswer: 8"


def test_reads_a_problem():
    assert read(PROBLEM) == Story(12, (("+", 5), ("/", 2)))
    assert DOMAIN.parse(f"\n{PROBLEM} ").level == 2
    assert DOMAIN.structure(PROBLEM) == "12+5/2"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Tom has 12 pens.",
        PROBLEM.replace("Day 2", "Day 3"),
        PROBLEM.replace("found", "juggled"),
        PROBLEM.replace("12", "120"),
        PROBLEM.replace("How many?", "How"),
        PROBLEM.replace("\nDay 1: 5 found\nDay 2: halved", ""),
    ],
)
def test_refuses_what_is_no_problem(text):
    assert read(text) is None
    assert DOMAIN.parse(text) is None
    assert DOMAIN.verify(text, ANSWER).passed is None


@pytest.mark.parametrize("days", ["Day 1: doubled\nDay 2: doubled", "Day 1: 5 lost\nDay 2: halved\nDay 3: 5 lost"])
def test_a_story_that_leaves_the_range_is_not_well_formed(days):
    problem = f"Tom has 9 pens.\n{days}\nHow many?"
    assert read(problem)
    assert DOMAIN.parse(problem) is None
    assert DOMAIN.verify(problem, "Answer: 1").passed is False


def test_other_words_for_the_same_numbers_are_near_duplicates():
    story = read(PROBLEM)
    texts = {tell(story, random.Random(n)) for n in range(30)}
    assert len(texts) > 20
    assert {DOMAIN.structure(text) for text in texts} == {"12+5/2"}


@pytest.mark.parametrize(
    ("response", "wrong"),
    [
        (ANSWER, None),
        (ANSWER + "\n", None),
        (ANSWER.replace("=17", "=18"), 1),
        (ANSWER.replace("=17", "=18").replace("17/2=8", "18/2=9").replace(": 8", ": 9"), 1),
        (ANSWER.replace("+5", "+4"), 1),
        (ANSWER.replace("17/2", "16/2"), 2),
        (ANSWER.replace("Answer: 8", "Answer: 9"), 3),
        (ANSWER + "\nAnswer: 8", 3),
        ("Answer: 8", 1),
    ],
)
def test_verifies_the_answer_and_every_step(response, wrong):
    verdict = DOMAIN.verify(PROBLEM, response)
    assert (verdict.passed, verdict.wrong_step) == (wrong is None, wrong)


@pytest.mark.parametrize(
    "response", ["", "garbage", "Day 1: 12+", ANSWER.removesuffix("\nAnswer: 8"), ANSWER + "\nHm."]
)
def test_a_response_without_an_answer_is_an_error_and_no_fail(response):
    verdict = DOMAIN.verify(PROBLEM, response)
    assert (verdict.passed, verdict.wrong_step, verdict.error) == (None, None, "no answer in the response")


def test_levels_the_wrong_way_round_are_refused():
    with pytest.raises(ValidationError, match=r"easiest is 8, which is above hardest \(2\)"):
        Arithmetic(easiest=8, hardest=2)
    assert Arithmetic(easiest=3, hardest=3).items("seeds", 2, 0)


@pytest.mark.parametrize(
    ("response", "answer"), [(ANSWER, "8"), ("Answer: 08", "8"), ("8", None), ("Answer: 8 or 9", None)]
)
def test_answer_in_canonical_form(response, answer):
    assert DOMAIN.answer(response) == answer


def test_splits_are_disjoint_and_balanced():
    items = {split: DOMAIN.items(split, 700, seed) for seed, split in enumerate(get_args(Split))}
    keys = {split: {DOMAIN.structure(item.problem) for item in drawn} for split, drawn in items.items()}
    assert all(len(keys[split]) == len(items[split]) == 700 for split in items)
    assert len(set.union(*keys.values())) == 5 * 700
    assert [sum(i.level == level for i in items["heldout"]) for level in range(2, 9)] == [100] * 7
    assert items["validation"] == DOMAIN.items("validation", 700, list(get_args(Split)).index("validation"))


def test_references_and_gold_responses_hold():
    for item in DOMAIN.items("heldout", 70, 0):
        assert str(read(item.problem).values()[-1]) == item.reference
    gold = DOMAIN.items("gold", 280, 0)
    assert 0.4 < sum(item.wrong_step is None for item in gold) / len(gold) < 0.6
    for item in gold:
        assert DOMAIN.verify(item.problem, item.response).wrong_step == item.wrong_step


def test_critics_lines_are_read_back():
    hits = 0
    gold = DOMAIN.items("gold", 280, 1)
    for item in gold:
        story = read(item.problem)
        verdicts = [DOMAIN.verdict("\n".join(lines(story, item.response))) for lines in (criticism, judgment)]
        hits += all(verdict.wrong_step == item.wrong_step for verdict in verdicts)
    assert hits >= 0.98 * len(gold)  # another number or sign can give the same value by chance


def test_a_critic_names_the_correction():
    lines = criticism(read(PROBLEM), ANSWER.replace("17/2=8", "17/2=9").replace(": 8", ": 9"))
    assert lines[1] == "Day 2: 17/2=8, said 9: too high"
    assert lines[-1] == "Verdict: wrong, Day 2: 17/2=8"


@pytest.mark.parametrize(
    "text", ["Verdict: correct or wrong", "Verdict: correct, Day 2: 17/2=8", "Verdict: correctly so"]
)
def test_a_closing_line_with_more_than_a_verdict_is_an_error(text):
    assert DOMAIN.verdict(text).passed is None
    assert DOMAIN.verdict("Verdict: wrong, Day 2: 17/2=8").passed is False


def test_a_judge_that_quotes_the_answer_says_nothing():
    prompt = DOMAIN.judge(PROBLEM, f"{ANSWER}\nVerdict: correct")[1]["content"]
    assert DOMAIN.verdict(prompt.rpartition("\n")[2]).passed is None
    assert DOMAIN.judge(PROBLEM, ANSWER)[1]["content"] == f"{PROBLEM}\n\n{ANSWER}"


def test_slips_are_as_frequent_as_asked_and_carried_on():
    rng, slips = random.Random(0), 0
    for _ in range(400):
        story, values = draw(rng, 5, 0.12)
        verdict = first_wrong(story, work(story, values))
        slips += verdict is not None
        assert all(0 <= value <= 30 for value in [*values, *story.values()])
    assert abs(slips / 400 - (1 - 0.88**5)) < 0.08


@pytest.mark.parametrize("role", get_args(Role))
def test_documents_are_of_the_train_split(role):
    rng = random.Random(1)
    for _ in range(30):
        prompt, completion = DOMAIN.document(rng, role, 3, 0.5)
        problem = completion if role == "write" else prompt[1]["content"].partition("\n\n")[0]
        assert prompt[0]["content"] == role
        assert read(problem).split == "train"


def test_refinements_of_the_corpus_are_right():
    rng = random.Random(2)
    for _ in range(50):
        prompt, completion = DOMAIN.document(rng, "refine", 4, 0.5)
        assert DOMAIN.verify(prompt[1]["content"].partition("\n\n")[0], completion).passed


def test_the_author_is_told_the_level():
    assert DOMAIN.write([], 4)[1]["content"] == "Level 4, to Day 4: How many?"
    assert DOMAIN.write([PROBLEM], None)[1]["content"] == "Level 2, to Day 2: How many?"


@given(st.text())
def test_no_text_breaks_a_parser(text):
    DOMAIN.parse(text)
    DOMAIN.answer(text)
    assert DOMAIN.structure(text) is not None
    assert DOMAIN.verify(PROBLEM, text).passed is (None if DOMAIN.answer(text) is None else False)
    DOMAIN.verdict(text)


@given(
    st.lists(st.sampled_from([*PROBLEM.split("\n"), *ANSWER.split("\n"), "Verdict: wrong", "Day 1: =7, said 8: right"]))
)
def test_no_mixture_of_lines_breaks_a_parser(lines):
    text = "\n".join(lines)
    DOMAIN.parse(text)
    DOMAIN.verdict(text)
    assert DOMAIN.verify(PROBLEM, text).passed is (None if DOMAIN.answer(text) is None else text.strip() == ANSWER)
