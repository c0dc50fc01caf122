"""Metrics and plots that differ, and by how much they may."""

import pytest

from tasks.project.tolerance import RTOL, metrics_difference, plot_difference


@pytest.mark.parametrize(
    ("replayed", "expected"),
    [
        ({"loss": 2.0, "rows": 5.0}, None),
        ({"loss": 2.0 * (1 + RTOL / 2), "rows": 5.0}, None),
        ({"loss": 2.0 * (1 + RTOL * 2), "rows": 5.0}, ("loss", "2.0", repr(2.0 * (1 + RTOL * 2)))),
        ({"loss": 2.0}, ("rows", "5.0", "none")),
        ({"loss": 2.0, "rows": 5.0, "new": 0.0}, ("new", "none", "0.0")),
        ({"loss": float("nan"), "rows": 5.0}, ("loss", "2.0", "nan")),
    ],
)
def test_metrics(replayed, expected):
    found = metrics_difference("metrics/train.json", {"loss": 2.0, "rows": 5.0}, replayed)
    assert (found and (found.row, found.stored, found.replayed)) == expected
    assert found is None or found.output == "metrics/train.json"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("step,loss,phase\n1,0.5,sft\n2,0.25,sft\n", None),
        ("step,loss,phase\n1,0.5,sft\n2,0.250001,sft\n", None),
        ("step,loss,phase\n1,0.5,sft\n2,0.26,sft\n", ("2", "loss", "0.25", "0.26")),
        ("step,loss,phase\n1,0.5,sft\n2,0.25,dpo\n", ("2", "phase", "'sft'", "'dpo'")),
        ("step,loss,phase\n1,0.5,sft\n2,,sft\n", ("2", "loss", "0.25", "None")),
        ("step,loss,phase\n1,0.5,sft\n", ("", None, "2 rows of step, loss, phase", "1 rows of step, loss, phase")),
        ("", ("", None, "2 rows of step, loss, phase", "0 rows of ")),
        (None, ("", None, "there", "absent")),
    ],
)
def test_plots(tmp_path, text, expected):
    one, other = tmp_path / "one.csv", tmp_path / "other.csv"
    one.write_text("step,loss,phase\n1,0.5,sft\n2,0.25,sft\n")
    if text is not None:
        other.write_text(text)
    found = plot_difference("plots/train.csv", one, other)
    assert (found and (found.row, found.column, found.stored, found.replayed)) == expected


def test_two_plots_that_are_absent_or_empty_are_equal(tmp_path):
    one, other = tmp_path / "one.csv", tmp_path / "other.csv"
    assert plot_difference("plots/train.csv", one, other) is None
    one.write_text("\n")
    other.write_text("\n")
    assert plot_difference("plots/train.csv", one, other) is None
