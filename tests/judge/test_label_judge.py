"""The judge that says what people said."""

import polars as pl
import pytest

from tasks.core import frames, tables
from tasks.core.judging import JudgeCase
from tasks.core.labels import text_digest
from tasks.core.roster import Models
from tasks.domains.arithmetic import Arithmetic
from tasks.judge.labels import Labels
from tasks.project.labels import file_of, write

ADA, BOB, CAT = (f"{n} <{n}@example.org>" for n in ("ada", "bob", "cat"))


@pytest.fixture
def case(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prompts = frames.frame(tables.prompts, [{"id": "p", "problem": "2 + 2?"}])
    texts = {"four": "4", "five": "5", "six": "6", "lost": "7"}
    rows = [{"id": n, "prompt_id": "p" if n != "lost" else "q", "response": t} for n, t in texts.items()]
    return JudgeCase(prompts, frames.frame(tables.responses, rows), Models({}), Arithmetic(), 1)


def say(root, person, answer, label, note="", round="r1", problem="2 + 2?"):
    write(
        root, person, round=round, source="responses", id=f"id of {answer}", prompt_id="p",
        digest=text_digest(problem, answer), label=label, note=note,
    )  # fmt: skip


def opinions(case, **settings):
    rows = Labels(**settings)(case).collect()
    return {r["response_id"]: (r["score"], r["verdict"], r["error"]) for r in rows.iter_rows(named=True)}


def test_most_people_decide_and_what_nobody_labelled_has_no_verdict(case, tmp_path):
    for person, label in ((ADA, "right"), (BOB, "wrong"), (CAT, "right")):
        say(tmp_path, person, "4", label)
    say(tmp_path, ADA, "5", "wrong")
    said = opinions(case)
    assert said["four"] == (pytest.approx(2 / 3), "pass", None)
    assert said["five"] == (0.0, "fail", None)
    for id in ("six", "lost"):
        assert said[id][:2] == (None, None)
        assert "nobody" in said[id][2]


def test_people_who_are_divided_evenly_and_notes_alone_give_none(case, tmp_path):
    say(tmp_path, ADA, "4", "right")
    say(tmp_path, BOB, "4", "wrong")
    say(tmp_path, ADA, "5", None, "unsure")
    said = opinions(case)
    assert said["four"][:2] == said["five"][:2] == (None, None)
    assert "divided" in said["four"][2]


def test_a_label_is_of_a_text_whatever_its_round_and_id(case, tmp_path):
    say(tmp_path, ADA, "4", "right", round="r7")
    say(tmp_path, ADA, "5", "right", problem="another problem")
    said = opinions(case)
    assert said["four"][1] == "pass"
    assert said["five"][1] is None


def test_the_last_label_of_a_person_for_a_text_counts(case, tmp_path):
    say(tmp_path, ADA, "4", "right", round="r1")
    say(tmp_path, ADA, "4", "wrong", round="r2")
    assert opinions(case)["four"][:2] == (0.0, "fail")


def test_notes_are_the_rationale_and_one_persons_file_is_enough(case, tmp_path):
    say(tmp_path, ADA, "4", "right", "clear")
    say(tmp_path, BOB, "4", "wrong")
    path = file_of(tmp_path, ADA).relative_to(tmp_path)
    row = Labels(path=path)(case).filter(pl.col("response_id") == "four").collect().row(0, named=True)
    assert (row["verdict"], row["rationale"]) == ("pass", "clear")


def test_without_any_label_there_is_no_verdict(case):
    assert {v[:2] for v in opinions(case).values()} == {(None, None)}
