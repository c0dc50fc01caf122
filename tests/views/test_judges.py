"""Every judge on the same answers of a model, beside the verifier."""

import pytest

from tasks.core.errors import FlywheelError, UnknownName
from tasks.core.plugin import names
from tasks.views.judges import HEADS, Row, all_judges, chosen, markdown, measure


def test_every_judge_is_there_with_its_defaults():
    judges = all_judges()
    assert list(judges) == names("judge")
    assert judges["rubric"].samples == 3
    assert judges["implicit"].reference == "base"


def test_judges_are_chosen_and_changed():
    assert list(chosen(["verifier"], [])) == ["verifier"]
    assert chosen(None, ["win_rate.same=answer"])["win_rate"].same == "answer"
    with pytest.raises(UnknownName, match="'win_rate'"):
        chosen(["winrate"], [])
    with pytest.raises(UnknownName, match="'win_rate'"):
        chosen(None, ["winrate.same=answer"])
    with pytest.raises(FlywheelError, match="KEY=VALUE"):
        chosen(None, ["win_rate"])


def test_judges_are_measured_against_the_verifier_on_equal_answers(made):
    judges = chosen(["verifier", "random", "self_consistency", "shuffled", "logprob", "self_judge", "steps"], [])
    rows = {row.judge: row for row in measure(made, "r1", judges, problems=30, samples=4)}
    assert rows["random"].answers == rows["self_consistency"].answers > 0
    assert rows["random"].tokens == 0
    assert rows["self_judge"].tokens == rows["steps"].tokens > 0, "each judge's own, though one model stays open"
    assert 0 <= rows["random"].calibration_error <= 1
    assert "choices" in rows["shuffled"].remark or "multiple" in rows["shuffled"].remark
    assert rows["logprob"].calibration_error is None, "log-probabilities are no probabilities of being right"
    assert measure(made, "r1", judges, 30, 4)[0].answers == rows["logprob"].answers
    table = markdown(list(rows.values()))
    assert all(f"| {name} |" in table for name in rows)
    assert table.splitlines()[0].count("|") == len(HEADS) + 1
    assert f"Not measured: shuffled: {rows['shuffled'].remark}." in table


def test_a_row_that_could_not_be_measured_fills_its_line():
    assert len(Row("jury", "r0", remark="no model x here").cells()) == len(HEADS)
    assert len(Row("jury", "r0", auroc=0.5).cells()) == len(HEADS)
