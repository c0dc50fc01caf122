"""What the metrics files of stages hold: everything, but for the two that `dvc metrics` shows."""

import json

from tasks.core import store
from tasks.project.headlines import headlines, metrics_text

EXAM = {"pass_at_1": 0.5, "pass_at_2": 0.6, "pass_at_16": 0.9, "majority_at_16": 0.7, "greedy": 0.4, "grade": 0.3}
OTHERS = {
    "pass_at_1/level_3": 0.1, "pass_at_1_answer": 0.2, "validation_greedy": 0.3, "second_pass_at_1": 0.4,
    "grade_sampled": 0.2, "self_judge_auroc": 0.9, "entropy": 1.0,
}  # fmt: skip


def test_the_headlines_are_those_of_the_held_out_exam_over_all_levels():
    assert headlines(OTHERS | EXAM) == {k: v for k, v in EXAM.items() if k not in ("pass_at_2", "pass_at_16")}
    assert headlines(OTHERS | EXAM, plotted=True) == {k: v for k, v in EXAM.items() if k != "pass_at_2"}
    assert headlines(OTHERS) == {}


def test_an_exam_says_its_headlines_and_gives_plots_a_row_of_each(tmp_path):
    content = json.loads(metrics_text(tmp_path, "r1", "evaluate", OTHERS | {"greedy": 0.4, "pass_at_8": 0.5}))
    rows = content.pop("exam")
    assert content == {"greedy": 0.4}
    assert [(r["round"], r["measure"], r["value"]) for r in rows] == [("r1", "greedy", 0.4), ("r1", "pass_at_8", 0.5)]


def test_an_exam_without_a_headline_is_shown_empty(tmp_path):
    assert json.loads(metrics_text(tmp_path, "r1", "evaluate", {"entropy": 1.0})) == {"exam": []}


def test_other_stages_say_all(tmp_path):
    assert json.loads(metrics_text(tmp_path, "r1", "judge", OTHERS)) == OTHERS


def test_a_round_says_its_exam_what_it_kept_and_the_decision(made):
    metrics = {s: m.metrics for s, m in store.manifests(made, "r2").items()}
    content = json.loads((made / "data/round=r2/metrics/gate.json").read_text())
    assert content == {
        **headlines(metrics["evaluate"]),
        "kept": metrics["filter"]["kept"],
        "promoted": metrics["gate"]["promoted"],
    }
    assert {"pass_at_1", "greedy"} <= content.keys()
    exam = json.loads((made / "data/round=r2/metrics/evaluate.json").read_text())
    assert headlines(metrics["evaluate"]) == {k: v for k, v in exam.items() if k != "exam"}
