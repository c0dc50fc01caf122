"""The table of the rounds, as a person sees it."""

import io
import re

import pytest
import synthetic
from rich.console import Console

from tasks import report, store
from tasks.errors import StoreError

NAMES = ("r0", "r1", "r2", "r3")
PLAN = synthetic.pipeline(*NAMES[1:])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    for name in NAMES:
        synthetic.make(root, PLAN, name, only=None if name != "r3" else {"prompts", "generate"}, promoted=name != "r2")
    return root


@pytest.fixture(autouse=True)
def plan(monkeypatch):
    monkeypatch.setattr(report, "load_params", lambda root: PLAN)


def printed(root, width, show=report.show):
    console = Console(file=io.StringIO(), width=width)
    show(root, console)
    return console.file.getvalue()


def cells(text, label):
    """The values of the line of that name, in the first table that has it."""
    line = next(part for part in text.split("\n") if part.strip().startswith(label))
    return re.split(r"\s{2,}", line.strip())[1:]


def test_everything_that_was_measured_is_in_the_table(made):
    text = printed(made, 120)
    assert cells(text, "level 2") == ["50.0 48.0–52.0", "67.0 65.0–69.0", "71.0 69.0–73.0"]
    assert cells(text, "pass@8") == ["70.0 68.0–72.0", "87.0 85.0–89.0", "91.0 89.0–93.0"]
    assert cells(text, "majority@8")[0] == "52.0 50.0–54.0"
    assert cells(text, "judge: balanced acc.")[1] == "77.0 67.0–87.0"
    assert cells(text, "kept") == ["6", "6"]
    assert cells(text, "dropped: score") == ["4", "4"]
    assert cells(text, "critiques kept") == ["2 of 5", "2 of 5"]
    assert cells(text, "pairs") == ["0", "0"]
    assert cells(text, "generated") == ["40,000", "180,000", "180,000", "40,000"]
    assert cells(text, "trained on") == ["0", "0"]
    assert cells(text, "process start-up") == ["4.0", "18.0", "18.0", "4.0"]
    assert cells(text, "total") == ["25.2", "113.4", "113.4", "25.2"]
    assert cells(text, "gate  ") == ["10.6", "10.6"]
    assert "promoted" in text
    assert "r2 was held back by improves (refused by improves)" in text
    assert text.index("sampled (pass@1)") < text.index("greedy, %") < text.index("k samples") < text.index("seconds")


@pytest.mark.parametrize("width", [120, 100, 80, 60, 45])
def test_no_number_is_wrapped_or_cut(made, width):
    text = printed(made, width)
    assert all(len(line.rstrip()) <= width for line in text.split("\n"))
    assert "…" not in text
    whole = [c for c in re.findall(r"\d[\d,.]*\d", printed(made, 120)) if "," in c]
    assert all(number in text for number in whole)


def test_intervals_shrink_before_the_table_is_cut(made):
    assert "50.0 48.0–52.0" in printed(made, 100)
    assert "50.0 ±2.0" in printed(made, 80)
    assert printed(made, 80).count("level 2") == 2
    narrow = printed(made, 60)
    assert "±" not in narrow
    assert narrow.count("level 2") == 4, "two tables of two rounds each"


def test_markdown_has_the_same_rows(made):
    text = report.markdown(made)
    rows = [line.strip("| ").split(" | ") for line in text.strip().split("\n")]
    assert {line.count("|") for line in text.strip().split("\n")} == {6}
    assert rows[3] == ["level 2", "50.0 48.0–52.0", "67.0 65.0–69.0", "71.0 69.0–73.0"]


def test_the_tree_shows_what_was_made_of_each_round(made):
    text = printed(made, 120, report.show_tree)
    assert [line.lstrip(" └─")[:2] for line in text.strip().split("\n")] == list(NAMES)
    assert "9 of 9 stages · pass@1 61.0 59.0–63.0 · held back" in text
    assert "2 of 9 stages" in text


def test_a_damaged_table_is_not_shown_as_absent(tmp_path):
    synthetic.make(tmp_path, PLAN, "r0", only={"base"})
    assert "r0" in printed(tmp_path, 80), "not evaluated yet"
    synthetic.make(tmp_path, PLAN, "r0")
    place, output = store.find(tmp_path, "r0", "measures")
    (place / output.parts[0].file).write_bytes(b"torn")
    for show in (report.show, report.show_tree):
        with pytest.raises(StoreError, match="measures/part-00000.parquet has 4 bytes"):
            printed(tmp_path, 80, show)


def test_without_rounds_it_says_what_to_do(tmp_path):
    assert "flywheel campaign" in printed(tmp_path, 80)
    assert report.markdown(tmp_path) == ""
    assert "0 of 2 stages" in printed(tmp_path, 80, report.show_tree)


def test_a_domain_without_levels_has_one_line_an_accuracy(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "LEVELS", ())
    synthetic.make(tmp_path, PLAN, "r0")
    text = printed(tmp_path, 80)
    assert cells(text, "all") == ["40.0 38.0–42.0"]
    assert "level" not in text
