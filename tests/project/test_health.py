"""Warnings of what stages wrote: most rows failed, or nothing was kept; with the most frequent reason and an example."""

import re

import polars as pl
import pytest

from tasks.core import frames, tables
from tasks.project import health

HOSTILE = "first\nsecond \x1b[2J \u202e [/red] " + "x" * 1_000_000


def frame(name: str, rows: list[dict]) -> pl.LazyFrame:
    return frames.frame(tables.TABLES[name], [{"id": f"{i:016}"} | row for i, row in enumerate(rows)]).lazy()


def warned(stage: str, written: dict[str, list[dict]], given: dict[str, list[dict]] | None = None, **more) -> list[str]:
    given_frames = {n: frame(n, rows) for n, rows in (given or {}).items()}
    return health.warnings(stage, {n: frame(n, rows) for n, rows in written.items()}, given_frames | more)


def problems(member: str, **errors: int) -> list[dict]:
    """Problems of a member, so many with each error; `good` have none."""
    return [
        {"member": member, "problem": f"{kind} {n}", "error": None if kind == "good" else f"{kind}: details {n}"}
        for kind, count in errors.items()
        for n in range(count)
    ]


def test_an_author_whose_problems_are_mostly_turned_away_is_named_with_the_reason_and_the_first_example():
    rows = problems("pool", good=3, malformed=5, duplicate=2) + problems("seeds", good=1, contaminated=2)
    [warning] = warned("prompts", {"prompts": rows})
    assert "pool: 7 of 10 problems" in warning
    assert "malformed (5, 71 %), such as 000000000000, 'malformed 0'" in warning
    assert "seeds" not in warning
    assert "generate" not in warning


def test_no_problem_that_is_left_is_said_and_none_at_all_is_not():
    [warning] = warned("prompts", {"prompts": problems("pool", malformed=2, contaminated=1)})
    assert "malformed (2, 67 %)" in warning and "`generate` will fail" in warning
    assert warned("prompts", {"prompts": problems("pool", good=1, malformed=2)}) == []
    assert warned("prompts", {"prompts": []}) == []


def judgments(member: str, read: int, unread: int, **more) -> list[dict]:
    fail = {"error": "no verdict"} | more
    rows = [{"score": 1.0}] * read + [fail] * unread
    return [row | {"member": member, "response_id": f"a{n}", "prompt_id": "p"} for n, row in enumerate(rows)]


ANSWERS = [{"id": f"a{n}", "prompt_id": "p", "response": f"answer {n}"} for n in range(10)]


def test_a_judge_that_could_not_read_most_texts_is_named_with_what_it_wrote_or_else_with_the_text():
    rows = judgments("blind", 4, 6) + judgments("half", 5, 5) + judgments("mute", 1, 2, rationale="I think")
    [blind, mute] = warned("judge", {"judgments": rows}, {"responses": ANSWERS})
    assert "blind has no score for 6 of 10 answers" in blind
    assert "no verdict (6, 100 %), such as a4, 'answer 4'" in blind
    assert "mute has no score for 2 of 3" in mute and "'I think'" in mute


def test_answers_that_failed_are_no_fault_of_the_judge():
    rows = judgments("judge", 2, 8, error="no response: nothing came back")
    assert warned("judge", {"judgments": rows}, {"responses": ANSWERS}) == []
    answers = [{"member": "sample", "error": "not sent: the budget is spent"}] * 3 + [{"member": "sample"}] * 2
    [warning] = warned("generate", {"responses": answers})
    assert (
        "sample: 3 of 5 answers failed" in warning
        and "not sent: the budget is spent (3, 100 %), such as 000000000000" in warning
    )
    assert warning.count("not sent") == 1, "an example that says nothing more is left out"


def decided(*reasons: str | None) -> list[dict]:
    rows = enumerate(reasons)
    return [{"id": f"a{n}", "kept": r is None, "rank": None if r else 1, "reason": r} for n, r in rows]


def test_a_filter_that_kept_nothing_says_why():
    [warning] = warned("filter", {"filtered": decided("score", "format", "score")}, {"responses": ANSWERS})
    assert "kept none of 3 answers" in warning
    assert "score (2, 67 %), such as a0, 'answer 0'" in warning
    assert warned("filter", {"filtered": decided("score", None, "score")}, {"responses": ANSWERS}) == []
    assert warned("filter", {"filtered": []}, {"responses": []}) == []


@pytest.mark.parametrize(
    ("critiques", "reason"),
    [
        ([{"refinements": 2, "successes": 0}] * 2 + [{"refinements": 2, "successes": 1}], "no refinement reached"),
        ([{"refinements": 2, "successes": 1}], "too few refinements"),
        ([{"refinements": 0, "successes": 0}], "not refined"),
        ([{"refinements": 0, "successes": 0, "error": "cut off"}], "cut off"),
    ],
)
def test_critiques_of_which_none_was_kept_say_why(critiques, reason):
    rows = [{"kept": False, "critique": "wrong at 2"} | row for row in critiques]
    [warning] = warned("critique", {"critiques": rows})
    assert f"kept none of {len(rows)} critiques" in warning and reason in warning and "'wrong at 2'" in warning
    assert warned("critique", {"critiques": [*rows, {"kept": True, "refinements": 1, "successes": 1}]}) == []


@pytest.mark.parametrize(
    ("scores", "reason"),
    [([1.0], "fewer than two"), ([1.0, 1.0, None], "same score"), ([1.0, 0.9], "as the strategy asks"), ([], "fewer")],
)
def test_a_round_without_a_pair_says_how_far_apart_its_answers_were(scores, reason):
    scored = [{"prompt_id": "p", "response_id": f"a{n}", "reward": True, "score": s} for n, s in enumerate(scores)]
    other = {"prompt_id": "p", "response_id": "a0", "reward": False, "score": 9.0}
    given = {"prompts": [{"id": "p", "problem": "sum"}, {"id": "q", "error": "x"}], "judgments": [*scored, other]}
    [warning] = warned("pair", {"pairs": []}, given, members={"best_worst": object()})
    assert "no pair of 1 prompts" in warning and reason in warning and "p, 'sum'" in warning
    assert warned("pair", {"pairs": []}, given, members={}) == [], "the recipe makes none"
    assert warned("pair", {"pairs": [{"prompt_id": "p"}]}, given, members={"best_worst": object()}) == []


def test_an_exam_whose_judges_or_answers_failed_says_so():
    audits = [{"judge": "vague", "error": "no verdict"}] * 3 + [{"judge": "clear"}] * 3
    evals = [{"member": "answers", "split": "heldout", "mode": "greedy", "error": "cut off"}] * 2
    evals += [{"member": "answers", "split": "heldout", "mode": "sampled"}] * 2
    vague, answers = warned("evaluate", {"audits": audits, "evals": evals})
    assert "vague has no verdict on 3 of 3 known answers" in vague
    assert "answers, heldout: 2 of 2 greedy answers failed" in answers


def test_what_models_write_is_cut_and_cannot_reach_the_terminal():
    rows = [{"member": "pool", "problem": HOSTILE, "error": "mal\x1b[2J: it"}]
    [warning] = warned("prompts", {"prompts": rows})
    assert len(warning) < 300
    assert warning.isprintable()
    assert re.search(r"'first\\nsecond \\x1b", warning)


def test_other_stages_are_not_looked_at():
    assert warned("gate", {"decisions": []}) == []
