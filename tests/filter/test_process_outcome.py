"""PROF: classes balanced, chosen within by the process score, worked by hand."""

import pytest
from rounds import decide, ranks, reasons, response

from tasks.core import frames, tables
from tasks.core.targets import targets
from tasks.filter.process_outcome import ProcessOutcome


def round_of(correct: list[float | None], incorrect: list[float | None]) -> tuple[list[dict], dict[str, float | None]]:
    """A prompt's responses c0, c1 … and w0, w1 … and their process scores."""
    scores = {f"pc{n}": s for n, s in enumerate(correct)} | {f"pw{n}": s for n, s in enumerate(incorrect)}
    return [response(name, float(name[1] == "c")) for name in scores], scores


def run(correct, incorrect, **more):
    rows, scores = round_of(correct, incorrect)
    return decide(ProcessOutcome(process="steps", **more), rows, others={"steps": scores})


def test_the_lowest_of_the_right_and_the_highest_of_the_wrong_are_dropped():
    decisions = run([0.2, 0.9, 0.5], [0.8, 0.1, 0.4, 0.6], per_prompt=4)
    assert ranks(decisions) == {"pc1": 1, "pc2": 2, "pw1": 3, "pw2": 4}
    dropped = {id: (row["reason"], row["margin"]) for id, row in decisions.items() if not row["kept"]}
    assert dropped == {"pc0": ("process", 1.0), "pw3": ("process", 1.0), "pw0": ("process", 2.0)}
    assert {row["margin"] for row in decisions.values() if row["kept"]} == {0.5}


@pytest.mark.parametrize(
    ("right", "wrong", "places", "counts"),
    [(5, 5, 4, (2, 2)), (5, 5, 5, (3, 2)), (1, 9, 6, (1, 5)), (9, 1, 6, (5, 1)), (2, 2, 9, (2, 2)), (9, 0, 4, (4, 0)),
     (3, 3, 1, (1, 0)), (0, 5, 4, (0, 0))],
)  # fmt: skip
def test_the_counts_balance_the_classes(right, wrong, places, counts):
    kept = ranks(run([n / 10 for n in range(right)], [n / 10 for n in range(wrong)], per_prompt=places))
    assert tuple(sum(id[1] == which for id in kept) for which in "cw") == counts


def test_a_prompt_without_a_right_response_keeps_nothing():
    assert reasons(run([], [0.1, 0.2])) == {"pw0": "no_correct", "pw1": "no_correct"}
    assert reasons(run([None], [0.1])) == {"pc0": "no_judge/steps", "pw0": "no_correct"}


def test_without_trust_in_the_wrong_ones_these_need_no_process_score():
    decisions = run([0.2, 0.9, None], [0.8, None, 0.1], per_prompt=3, correct_only=True)
    assert ranks(decisions) == {"pc1": 1, "pc0": 2, "pw0": 3}
    assert decisions["pc2"]["reason"] == "no_judge/steps"
    assert reasons(run([0.2], [None], per_prompt=3))["pw0"] == "no_judge/steps"


def test_a_target_is_a_right_response():
    decisions = run([0.1], [0.0, 0.0], per_prompt=3)
    prompts = frames.frame(tables.prompts, [{"id": "p", "problem": "x", "prompt": [{"role": "user", "content": "x"}]}])
    responses = [{k: v for k, v in r.items() if k not in ("score", "verdict")} for r in round_of([0.1], [0.0, 0.0])[0]]
    filtered = frames.frame(tables.filtered, decisions.values())
    [target] = targets(prompts, frames.frame(tables.responses, responses), filtered).collect().to_dicts()
    assert target["response_id"] == "pc0"


def test_equal_texts_take_one_place():
    rows, scores = round_of([0.9, 0.9, 0.1], [])
    rows[1]["response"] = rows[0]["response"]
    decisions = decide(ProcessOutcome(process="steps", per_prompt=2), rows, others={"steps": scores})
    assert reasons(decisions) == {"pc0": None, "pc1": "duplicate", "pc2": None}
