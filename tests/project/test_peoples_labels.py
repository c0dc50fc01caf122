"""People's labels: a table in git that two people can work on."""

import json
import os
import pwd
import subprocess

import projects
import pytest

from tasks.core import labels
from tasks.core.errors import FlywheelError
from tasks.project.labels import MAX_NOTE, file_of, person, user, write

ADA, BOB = "Ada L <ada@example.org>", "Bob <bob@example.org>"


def put(root, id="a1", label="right", note="", person=ADA, round="r1", source="responses", digest="d1"):
    return write(
        root, person, round=round, source=source, id=id, prompt_id="p", digest=digest, label=label, note=note
    )  # fmt: skip


def said(root):
    return [(e.person, e.id, e.label, e.note) for e in labels.read(root / labels.FOLDER)]


def test_a_person_has_one_label_of_a_row_and_a_file_of_their_own(tmp_path):
    put(tmp_path, "b2", "wrong")
    put(tmp_path, "a1", "wrong")
    put(tmp_path, "a1", "right", "looks fine")
    put(tmp_path, "a1", "wrong", person=BOB)
    assert said(tmp_path) == [(ADA, "a1", "right", "looks fine"), (BOB, "a1", "wrong", ""), (ADA, "b2", "wrong", "")]
    lines = file_of(tmp_path, ADA).read_text().splitlines()
    assert file_of(tmp_path, ADA).name == "ada@example.org.jsonl"
    assert [json.loads(line)["id"] for line in lines] == ["a1", "b2"]
    assert {path.name for path in (tmp_path / labels.FOLDER).iterdir()} == {
        "ada@example.org.jsonl", "bob@example.org.jsonl", ".gitattributes"
    }  # fmt: skip


def test_a_user_without_a_name_is_one_all_the_same(monkeypatch):
    """As in a container that runs as a number."""
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert user() == f"unnamed user {os.getuid()}"


def test_without_label_and_note_it_is_removed(tmp_path):
    put(tmp_path)
    assert put(tmp_path, label=None, note="  ") is None
    assert said(tmp_path) == []
    assert put(tmp_path, label=None, note="unsure").label is None
    assert said(tmp_path) == [(ADA, "a1", None, "unsure")]


def test_any_note_comes_back_as_it_was_written_on_one_line(tmp_path):
    note = 'quotes " and \\ and\nline\u2028breaks\x85 <b> \u202e \x1b[2J 北'
    put(tmp_path, note=note)
    assert said(tmp_path)[0][3] == note
    assert len(file_of(tmp_path, ADA).read_text(encoding="utf-8").split("\n")) == 2


@pytest.mark.parametrize(
    ("wrong", "word"),
    [({"label": "maybe"}, "maybe"), ({"source": "pairs"}, "pairs"), ({"note": "x" * (MAX_NOTE + 1)}, "10,001")],
)
def test_what_is_no_label_is_refused_and_nothing_is_written(tmp_path, wrong, word):
    with pytest.raises(FlywheelError, match=word):
        put(tmp_path, **wrong)
    assert said(tmp_path) == []


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("{", "not JSON"),
        ("[]", "no JSON object"),
        ('{"round": "r1"}', "source"),
        ('{"round":"r1","source":"responses","id":"a","digest":"d","person":"p","time":"t","label":"yes"}', "yes"),
        ('{"round":"r1","source":"responses","id":7,"digest":"d","person":"p","time":"t"}', "7"),
        ('{"round":"r1","source":"responses","id":"a","digest":"d","person":"p","time":"t","verdict":"x"}', "verdict"),
        ("<<<<<<< HEAD", "merge"),
    ],
)
def test_a_broken_file_names_its_line_and_is_not_overwritten(tmp_path, line, word):
    put(tmp_path)
    file = file_of(tmp_path, ADA)
    file.write_text(file.read_text() + line + "\n")
    broken = file.read_text()
    for attempt in (lambda: said(tmp_path), lambda: put(tmp_path, "b2")):
        with pytest.raises(FlywheelError, match=word) as error:
            attempt()
        assert f"{file.name}:2" in str(error.value)
    assert file.read_text() == broken


def test_branches_of_one_person_merge_and_the_later_label_counts(tmp_path):
    put(tmp_path, "a1", "right")
    projects.commit(tmp_path, "start")
    assert "data/labels" in projects.git(tmp_path, "ls-files")
    projects.git(tmp_path, "checkout", "-q", "-b", "other")
    put(tmp_path, "a1", "wrong", "on the other branch")
    put(tmp_path, "a2", "right")
    projects.commit(tmp_path, "other")
    projects.git(tmp_path, "checkout", "-q", "-")
    put(tmp_path, "a1", "right", "later")
    projects.commit(tmp_path, "mine")
    projects.git(tmp_path, "merge", "-q", "--no-edit", "other")
    assert said(tmp_path) == [(ADA, "a1", "right", "later"), (ADA, "a2", "right", "")]
    put(tmp_path, "a3", "wrong")
    assert len(file_of(tmp_path, ADA).read_text().splitlines()) == 3


def test_the_projects_own_git_does_not_ignore_labels():
    ignored = subprocess.run(["git", "check-ignore", "data/labels/a.jsonl"], cwd=projects.HERE, check=False)
    assert ignored.returncode == 1


def test_who_labels_is_who_git_knows(tmp_path, monkeypatch):
    for variable in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(variable, "/dev/null")
    monkeypatch.setenv("LOGNAME", "ada")
    assert person(tmp_path) == "ada"
    projects.git(tmp_path, "init", "-q")
    projects.git(tmp_path, "config", "user.name", "Ada L")
    assert person(tmp_path) == "Ada L"
    projects.git(tmp_path, "config", "user.email", "ada@example.org")
    assert person(tmp_path) == ADA
    assert file_of(tmp_path, "../../Böse <../x>").parent == tmp_path / labels.FOLDER


def test_the_digest_is_that_of_the_tables():
    import polars as pl

    from tasks.core import frames

    rows = pl.LazyFrame({"problem": ["2 + 2?"], "response": ["4 \u202e"]})
    assert rows.select(frames.ids("problem", "response")).collect().item() == labels.text_digest("2 + 2?", "4 \u202e")
