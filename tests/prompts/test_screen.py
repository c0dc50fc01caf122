from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from tasks.domains import Domain, Item
from tasks.domains.arithmetic import Arithmetic
from tasks.prompts._near import Texts, ngrams, words
from tasks.prompts._screen import Intake, Screen, usable

LONG = "a b c d e f g h i j k l m n o p"
VOCABULARY = st.lists(st.sampled_from(["one", "two", "three", "four", "five", "six", "Seven", "8"]), max_size=12).map(
    " ".join
)


class Free(Domain):
    pass


def intake(domain: Domain, item: str = "") -> Intake:
    screen = Screen(domain, Fraction(7, 10))
    if item:
        screen.add_item("heldout", item)
    return Intake(domain, screen)


def errors(at: Intake, *problems: str) -> list[str | None]:
    for problem in problems:
        at.add(at.domain.parse(problem), problem)
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


def test_ngrams_are_thirteen_words_and_a_short_text_is_one_run():
    assert ngrams(LONG) == [" ".join(LONG.split()[i : i + 13]) for i in range(4)]
    assert ngrams("How many?") == ["how many"]
    assert ngrams("?!") == []


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
    error = errors(intake(Free(), LONG), problem)[0]

    assert (error and error.split(":")[0]) == reason


@pytest.mark.parametrize("pair", range(10))
def test_of_two_splits_the_one_whose_run_comes_first_is_named(pair):
    """Whatever order a set of texts would have: it is another in every process."""
    one, two = (" ".join(f"{side}{pair}word{n}" for n in range(13)) for side in "ab")
    screen = Screen(Free(), Fraction(7, 10))
    screen.add_item("heldout", one)
    screen.add_item("validation", two)
    assert screen.contaminated_split(f"{one} {two}") == "heldout"
    assert screen.contaminated_split(f"{two} {one}") == "validation"


@pytest.mark.parametrize("limit", ["0.7", "0.9", "1"])
def test_a_near_copy_of_an_evaluation_item_is_refused_however_near_problems_may_be(limit):
    """ROUGE-L F of 8/10 with the item: no run of 13 words, and near each other only above 0.7."""
    screen = Screen(Free(), Fraction(limit))
    screen.add_item("heldout", "a b c d e f g h i j")
    assert screen.rejection("a b c d e f g h x y").startswith("contaminated")
    assert screen.rejection("a b c d e f g x y z") is None  # exactly 0.7
    screen.add_problem("p", "k l m n o p q r s t")
    assert (screen.rejection("k l m n o p q r x y") is None) == (limit != "0.7")


def test_a_stricter_limit_holds_for_evaluation_items_too():
    screen = Screen(Free(), Fraction("0.5"))
    screen.add_item("heldout", "a b c d e f g h i j")
    assert screen.rejection("a b c d e f u v w x").startswith("contaminated")


def test_a_reworded_problem_is_a_duplicate_and_a_rejected_one_is_not_used():
    at = intake(Free())

    first, second, third = errors(at, "a b c d", "a b c e", "a b f e")

    assert first is None
    assert second == f"duplicate: of {at.accepted[0].id}"  # F = 6/8
    assert third is None  # near the second only, which is not in use


def test_templates_are_compared_by_structure():
    story = "Tom has 12 pens.\nDay 1: 5 found\nDay 2: halved\nHow many?"
    retelling = "Ann has 12 eggs.\nDay 1: 5 bought\nDay 2: halved\nHow many?"
    other = "Tom has 12 pens.\nDay 1: 5 found\nDay 2: 3 lost\nHow many?"

    assert errors(intake(Arithmetic()), story, other, retelling)[:2] == [None, None]
    assert errors(intake(Arithmetic()), story, retelling)[1].startswith("duplicate: of ")
    assert errors(intake(Arithmetic(), story), retelling, other) == ["contaminated: it is in or near heldout", None]


def test_an_id_is_the_text_and_how_often_it_came():
    one, other = intake(Free()), intake(Free())
    errors(one, "first thing", "same words", "same words", "same words")
    errors(other, "same words")

    ids = [row["id"] for row in one.rows]
    assert len(set(ids)) == 4
    assert ids[1] == other.rows[0]["id"]


def test_what_failed_is_a_row():
    at = intake(Free())
    at.add(None, "", "failed: time-out", source="model", parents=["p"], model="m")
    at.add(Item("fine", 3, "7"), "fine")

    assert [tuple(p) for p in usable(at.table())] == [tuple(p) for p in at.accepted]
    table = {row["problem"]: row for row in at.table().collect().to_dicts()}
    assert table[""]["error"] == "failed: time-out"
    assert table[""]["parents"] == ["p"]
    assert table["fine"]["prompt"] == [{"role": "user", "content": "fine"}]
    assert (table["fine"]["level"], table["fine"]["reference"], table["fine"]["model"]) == (3, "7", None)
