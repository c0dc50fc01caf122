"""Judges measured by what people said."""

import browsing
import pytest

from tasks.core import labels
from tasks.core.labels import text_digest
from tasks.project.labels import write
from tasks.views._labels import by_labels, truths
from tasks.views.catalog import connect

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
