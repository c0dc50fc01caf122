from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from tasks.domains import Domain, Item
from tasks.domains.arithmetic import Arithmetic
from tasks.prompts import Desk, Screen, Texts, runs, words

LONG = "a b c d e f g h i j k l m n o p"
VOCABULARY = st.lists(st.sampled_from(["one", "two", "three", "four", "five", "six", "Seven", "8"]), max_size=12).map(
    " ".join
)


class Free(Domain):
    pass


def desk(domain: Domain, forbidden: str = "") -> Desk:
    screen = Screen(domain, Fraction(7, 10))
    if forbidden:
        screen.forbid("heldout", forbidden)
    return Desk(domain, screen)


def errors(at: Desk, *problems: str) -> list[str | None]:
    for problem in problems:
        at.take(at.domain.parse(problem), problem)
    return [row["error"] for row in at.rows]


@given(st.lists(VOCABULARY, max_size=5), VOCABULARY, st.integers(1, 100))
def test_near_is_the_first_text_whose_rouge_l_is_above_the_limit(pool, text, hundredths):
    texts, scorer = Texts(Fraction(hundredths, 100)), RougeScorer(["rougeL"])
    for i, old in enumerate(pool):
        texts.add(str(i), old)

    # rouge-score works in floats: 1e-9 is finer than any two different F of texts this short
    above = [
        str(i) for i, old in enumerate(pool) if scorer.score(old, text)["rougeL"].fmeasure > hundredths / 100 + 1e-9
    ]

    assert texts.near(text) == (above[0] if above else None)


def test_exactly_seventy_per_cent_is_not_near():
    texts = Texts(Fraction("0.7"))
    texts.add("old", "a b c d e f g x y z")

    assert texts.near("a b c d e f g p q r") is None  # F = 2·7/20
    assert texts.near("a b c d e f g x q r") == "old"


def test_words_of_any_script_count():
    assert words("Größe_2: três пять!") == ["größe", "2", "três", "пять"]


def test_runs_are_thirteen_words_and_a_short_text_is_one_run():
    assert runs(LONG) == {" ".join(LONG.split()[i : i + 13]) for i in range(4)}
    assert runs("How many?") == {"how many"}
    assert runs("?!") == set()


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        ("", "malformed"),
        (f"{LONG} and so on", "contaminated"),
        ("x b c d e f g h i j k l m n 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15", "contaminated"),  # 13 words in common
        ("x b c d e f g h i j k l m 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17", None),  # 12
        ("Something else.", None),
    ],
)
def test_free_text_is_compared_by_runs_of_words(problem, reason):
    error = errors(desk(Free(), LONG), problem)[0]

    assert (error and error.split(":")[0]) == reason


def test_a_reworded_problem_is_a_duplicate_and_a_turned_away_one_is_not_used():
    at = desk(Free())

    first, second, third = errors(at, "a b c d", "a b c e", "a b f e")

    assert first is None
    assert second == f"duplicate: of {at.accepted[0].id}"  # F = 6/8
    assert third is None  # near the second only, which is not in use


def test_templates_are_compared_by_structure():
    told = "Tom has 12 pens.\nDay 1: 5 found\nDay 2: halved\nHow many?"
    retold = "Ann has 12 eggs.\nDay 1: 5 bought\nDay 2: halved\nHow many?"
    other = "Tom has 12 pens.\nDay 1: 5 found\nDay 2: 3 lost\nHow many?"

    assert errors(desk(Arithmetic()), told, other, retold)[:2] == [None, None]
    assert errors(desk(Arithmetic()), told, retold)[1].startswith("duplicate: of ")
    assert errors(desk(Arithmetic(), told), retold, other) == ["contaminated: it is in or near heldout", None]


def test_an_id_is_the_text_and_how_often_it_came():
    one, other = desk(Free()), desk(Free())
    errors(one, "first thing", "same words", "same words", "same words")
    errors(other, "same words")

    ids = [row["id"] for row in one.rows]
    assert len(set(ids)) == 4
    assert ids[1] == other.rows[0]["id"]


def test_what_failed_is_a_row():
    at = desk(Free())
    at.take(None, "", "failed: time-out", source="model", parents=["p"], model="m")
    at.take(Item("fine", 3, "7"), "fine", source="seed", parents=[])

    table = {row["problem"]: row for row in at.table().collect().to_dicts()}
    assert table[""]["error"] == "failed: time-out"
    assert table[""]["parents"] == ["p"]
    assert table["fine"]["prompt"] == [{"role": "user", "content": "fine"}]
    assert (table["fine"]["level"], table["fine"]["reference"], table["fine"]["model"]) == (3, "7", None)
