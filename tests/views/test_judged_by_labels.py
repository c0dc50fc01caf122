"""Judges measured by what people said."""

import browsing
import pytest

from tasks.core import labels
from tasks.core.labels import text_digest
from tasks.project.labels import write
from tasks.views._labels import auroc_interval, balanced_interval, by_labels, by_round, truths
from tasks.views.catalog import connect, query

ADA, BOB = "Ada <ada@example.org>", "Bob <bob@example.org>"


@pytest.fixture
def root(tmp_path):
    return browsing.make(tmp_path)


def say(root, n, sample, label, person=ADA, digest=None):
    [row] = [r for r in browsing.rows()["responses"] if r["id"] == browsing.response_id(n, sample)]
    digest = digest or text_digest(f"What is {n} + {n}?", row["response"])
    write(
        root,
        person,
        round="r1",
        source="responses",
        id=row["id"],
        prompt_id=row["prompt_id"],
        digest=digest,
        label=label,
    )


def measured(root):
    return {each.judge: each for each in by_labels(connect(root), labels.read(root / labels.FOLDER))}


def test_a_judge_that_says_what_people_say_agrees_and_one_that_guesses_does_not(root):
    for n in range(1, 11):
        for sample in (0, 1):
            say(root, n, sample, "right" if sample == 0 else "wrong")
    judges = measured(root)
    votes, grader = judges["votes"], judges["grader"]
    assert list(judges) == ["votes", "grader"]  # the reward first
    assert (votes.round, votes.reward, votes.right, votes.wrong) == ("r1", True, 10, 10)
    assert votes.measures["agreement"].value == votes.measures["auroc"].value == 1.0
    assert votes.measures["agreement"].count == 20
    assert 0.8 < votes.measures["agreement"].low < 1 == votes.measures["agreement"].high
    assert votes.measures["calibration_error"].value == pytest.approx(0.25)
    assert grader.measures["agreement"].value == grader.measures["auroc"].value == 0.5
    assert grader.measures["errors"].value == 0


def test_only_right_answers_say_nothing_about_telling_them_apart(root):
    say(root, 1, 0, "right")
    votes = measured(root)["votes"]
    assert votes.measures["agreement"].value == 1.0
    assert not {"auroc", "balanced_accuracy"} & votes.measures.keys()


def test_what_counts_are_rows_whose_text_is_the_labelled_one_and_on_which_people_agree(root):
    say(root, 1, 0, "right")
    say(root, 2, 0, "right", digest="of another text")
    say(root, 3, 0, "right")
    say(root, 3, 0, "wrong", BOB)
    say(root, 4, 0, None)
    write(root, ADA, round="r1", source="responses", id="gone", prompt_id="p", digest="d", label="right")
    assert truths(connect(root), labels.read(root / labels.FOLDER)) == {("r1", browsing.response_id(1, 0)): True}


def test_without_labels_no_judge_is_measured(root):
    assert measured(root) == {}


def test_a_table_of_rounds_gets_the_measures_in_words(root):
    assert by_round(root) == {}
    for sample, label in ((0, "right"), (1, "wrong")):
        say(root, 2, sample, label)
    found = by_round(root)
    assert list(found) == ["r1"]
    assert {name: m.value for name, m in found["r1"].items()} == {
        "votes: agreement": 1.0, "votes: AUROC": 1.0, "grader: agreement": 0.5, "grader: AUROC": 0.5
    }  # fmt: skip
    next((root / "data/round=r1/judgments").iterdir()).unlink()
    assert by_round(root) == {}


def test_sql_has_the_labels_of_people(root):
    say(root, 1, 0, "right")
    say(root, 2, 1, "wrong", BOB)
    rows = query(root, "select label, count(*) as n from labels join responses using (id) group by all order by all")
    assert rows.to_pylist() == [{"label": "right", "n": 1}, {"label": "wrong", "n": 1}]


def test_few_labels_have_wide_intervals_even_where_all_agree(root):
    for sample, label in ((0, "right"), (1, "wrong")):
        say(root, 1, sample, label)
    for name in ("agreement", "balanced_accuracy", "auroc"):
        measure = measured(root)["votes"].measures[name]
        assert (measure.value, measure.high) == (1.0, 1.0)
        assert measure.low < 0.5


@pytest.mark.parametrize(("value", "m", "n"), [(1.0, 3, 4), (0.0, 3, 4), (0.5, 1, 1), (0.83, 60, 40), (0.97, 400, 900)])
def test_an_interval_of_an_auroc_holds_the_value_and_shrinks_with_labels(value, m, n):
    low, high = auroc_interval(value, m, n)
    more = auroc_interval(value, 10 * m, 10 * n)
    assert 0 <= low <= more[0] <= value <= more[1] <= high <= 1 and low < high
    mirrored = auroc_interval(1 - value, m, n)
    assert mirrored == (pytest.approx(1 - high), pytest.approx(1 - low))


def test_an_interval_of_an_auroc_covers_the_truth_about_as_often_as_it_says():
    """Scores of right answers are uniform in [0, 1], of wrong ones their square: AUROC ∫ √u du = 2/3."""
    import numpy as np

    rng, trials, held = np.random.default_rng(0), 400, 0
    for _ in range(trials):
        right, wrong = rng.random(12), rng.random(15) ** 2
        low, high = auroc_interval(float((right[:, None] > wrong[None]).mean()), 12, 15)
        held += low <= 2 / 3 <= high
    assert 0.91 <= held / trials <= 0.995


def test_a_balanced_interval_is_wilsons_where_both_shares_are_alike():
    low, high = balanced_interval(8, 10, 8, 10)
    assert low < 0.8 < high and high - low < 0.5
    assert balanced_interval(10, 10, 10, 10)[0] == pytest.approx(1 - (1 - 0.7225) / 2**0.5, abs=1e-3)
