"""What a person who was asked said about a round: kept beside the decision, and obeyed."""

import pytest
import synthetic

from tasks.core.errors import FlywheelError
from tasks.project import champion

PIPELINE = synthetic.pipeline("r1", "r2")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A base and two rounds, each better than the one before it, and all promoted by their gates."""
    monkeypatch.setattr(champion, "plans", synthetic.plans)
    for name in PIPELINE.blocks:
        synthetic.make(tmp_path, PIPELINE, name)
    return tmp_path


def test_the_answers_are_kept_with_who_and_when(root):
    champion.keep_answer(root, "r1", "refuse", " Ada ", "shorter: 'answers' # no\nreasons")
    champion.keep_answer(root, "r2", "promote", "Ben")
    first, second = champion.answers(root)
    assert (first.round, first.answer, first.by) == ("r1", "refuse", "Ada")
    assert first.note == "shorter: 'answers' # no\nreasons"
    assert first.when <= second.when
    assert champion.answer_about(root, "r1") == first
    assert champion.decision(root).round == "r2", "as `flywheel promote` writes it"
    assert champion.decision(root).by == "Ben"


def test_a_refused_round_is_neither_champion_nor_parent_until_it_is_promoted(root):
    before = champion.champion(root, PIPELINE, "r0")
    refused = before.champion
    assert refused != "r0"
    champion.keep_answer(root, refused, "refuse", "Ada", "too short")
    election = champion.champion(root, PIPELINE, "r0")
    assert election.champion != refused
    assert len(election.looks) == len(before.looks), "the look is spent all the same"
    [reason] = [look.reason for look in election.looks if look.name == refused]
    assert "refused by Ada" in reason and "too short" in reason
    champion.keep_answer(root, refused, "promote", "Ben")
    assert champion.champion(root, PIPELINE, "r0").champion == refused
    assert champion.next_parent(root, PIPELINE) == refused


def test_a_model_that_was_made_since_is_another_one(root):
    champion.keep_answer(root, "r1", "refuse", "Ada")
    assert champion.answer_about(root, "r1")
    synthetic.make(root, PIPELINE, "r1", salt="run again")
    assert champion.answer_about(root, "r1") is None


def test_an_answer_of_nobody_or_about_nothing_is_refused(root):
    with pytest.raises(FlywheelError, match="names nobody"):
        champion.keep_answer(root, "r1", "promote", "  ")
    assert champion.answers(root) == []
    with pytest.raises(FlywheelError, match="r9 has no model yet"):
        champion.keep_answer(root, "r9", "promote", "Ada")


def test_a_file_that_cannot_be_read_says_how_to_restore_it(root):
    champion.keep_answer(root, "r1", "refuse", "Ada")
    (root / champion.ANSWERS).write_text("- {round: r1, answer: perhaps}\n")
    with pytest.raises(FlywheelError, match="git checkout data/decisions/answers.yaml"):
        champion.answers(root)
