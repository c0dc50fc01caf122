import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import tables
from tasks.filter import filter as filtering
from tasks.filter.threshold import Threshold
from tasks.filter.top_fraction import TopFraction


def response(name: str, score: float | None = 1.0, logprob: float | None = -1.0, **more) -> dict:
    row = {
        "id": name,
        "prompt_id": name[0],
        "response": f"text {name}",
        "answer": "1",
        "tokens": 9,
        "finish_reason": "stop",
    }
    return row | {"mean_logprob": logprob, "score": score} | more


def run(
    params, rows: list[dict], others: dict[str, dict[str, float]] | None = None, levels: dict[str, int] | None = None
):
    judged = {"r": {row["id"]: row["score"] for row in rows}} | (others or {})
    judgments = [
        {"id": f"{j}{r}", "response_id": r, "prompt_id": r[0], "judge": j, "reward": j == "r", "score": s}
        for j, scores in judged.items()
        for r, s in scores.items()
    ]
    asked = [{"id": p, "problem": p, "level": level} for p, level in (levels or {}).items()]
    responses = [{k: v for k, v in row.items() if k != "score"} for row in rows]
    frames = (
        tables.frame(tables.prompts, asked),
        tables.frame(tables.responses, responses),
        tables.frame(tables.judgments, judgments),
    )
    frame = filtering(params, *frames).collect()
    assert frame["id"].to_list() == sorted(frame["id"])  # ids begin with their prompt's
    assert frame["kept"].to_list() == frame["reason"].is_null().to_list()
    return {r["id"]: (r["reason"], r["margin"]) for r in frame.to_dicts()}


def kept(decisions: dict) -> list[str]:
    return [name for name, (reason, _) in decisions.items() if reason is None]


def test_what_another_judge_refuses_is_dropped_with_its_name_before_the_best_is_chosen():
    rows = [response("a1", logprob=-0.1), response("a2", logprob=-0.2), response("b1"), response("b2")]
    decisions = run(Threshold(require={"critic": 0.5}), rows, {"critic": {"a1": 0.25, "a2": 0.75, "b2": None}})
    assert decisions["a1"] == ("critic", 0.25)
    assert decisions["a2"][0] is None
    assert decisions["b1"] == ("no_critic", None)  # it was not asked
    assert decisions["b2"] == ("no_critic", None)  # it could not be read


def test_of_a_majority_the_likeliest_is_kept():
    """Votes: `a` 5 of 8 for one answer, `b` 3 of 8 at most."""
    rows = [
        *(response(f"a{k}", 5 / 8, logprob, answer="8") for k, logprob in enumerate([-3.0, -2.0, -0.5, -4.0, -1.0])),
        *(response(f"a{k}", 3 / 8, -0.1, answer="9") for k in (5, 6, 7)),
        *(response(f"b{k}", 3 / 8, -0.1) for k in range(3)),
    ]
    decisions = run(Threshold(), rows)

    assert kept(decisions) == ["a2"]
    assert decisions["a2"][1] == pytest.approx(0.225)
    assert [decisions[f"a{k}"] for k in (5, 6, 7)] == [("score", pytest.approx(0.025))] * 3
    assert [decisions[f"a{k}"] for k in (4, 1, 0, 3)] == [("rank", 1.0), ("rank", 2.0), ("rank", 3.0), ("rank", 4.0)]


@pytest.mark.parametrize(
    ("bad", "decision"),
    [
        ({"error": "time-out", "answer": None, "response": None}, ("error", None)),
        ({"answer": None}, ("format", None)),
        ({"finish_reason": "length"}, ("format", None)),
        ({"tokens": 2}, ("short", 1.0)),
        ({"tokens": 14}, ("long", 4.0)),
        ({"score": None}, ("unjudged", None)),
        ({"score": 0.3}, ("score", pytest.approx(0.1))),
        ({"score": 0.4}, (None, 0.0)),
    ],
)
def test_each_rule_says_why_and_by_how_much(bad, decision):
    assert run(Threshold(shortest=3, longest=10), [response("a") | bad])["a"] == decision


def test_cut_off_responses_can_be_kept():
    assert kept(run(Threshold(finished=False), [response("a", finish_reason="length")])) == ["a"]


def test_equal_texts_of_a_prompt_count_once_and_the_better_stays():
    rows = [
        response("a1", 0.9, response="same"),
        response("a2", 1.0, response="same"),
        response("a3", 0.8),
        response("a4", 0.1, response="same"),
        response("b1", 0.9, response="same"),
    ]
    decisions = run(Threshold(per_prompt=2), rows)

    assert kept(decisions) == ["a2", "a3", "b1"]
    assert decisions["a1"] == ("duplicate", None)
    assert decisions["a4"][0] == "score"


def test_a_dropped_text_does_not_make_a_good_one_a_duplicate():
    rows = [response("a1", 1.0, response="same", finish_reason="length"), response("a2", 0.9, response="same")]

    assert kept(run(Threshold(), rows)) == ["a2"]


def test_equal_rewards_are_ranked_by_the_named_judge_then_by_id():
    rows = [response("a1", logprob=-1.0), response("a2", logprob=-2.0), response("a3", logprob=None)]

    assert kept(run(Threshold(), rows)) == ["a1"]
    assert kept(run(Threshold(rank_by="sure"), rows, {"sure": {"a2": 0.9, "a3": 0.1}})) == ["a2"]
    assert kept(run(Threshold(rank_by="sure"), rows, {"sure": {"a2": None}})) == ["a1"]


def test_a_level_keeps_its_best():
    rows = [response("a", 0.7), response("b", 0.9), response("c", 0.8), response("d", 0.5)]
    decisions = run(Threshold(per_level=2), rows, levels={"a": 2, "b": 2, "c": 2, "d": 3})

    assert kept(decisions) == ["b", "c", "d"]
    assert decisions["a"] == ("level", 1.0)


def test_the_best_part_is_kept():
    rows = [
        response("a1", -0.1),
        response("a2", -0.2),
        response("b", -0.6),
        response("c", -0.3),
        response("d", -0.9),
        response("e", None),
    ]
    decisions = run(TopFraction(), rows)

    assert decisions == {
        "a1": (None, pytest.approx(0.2)),
        "a2": ("rank", 1.0),
        "b": ("score", pytest.approx(0.3)),
        "c": (None, 0.0),
        "d": ("score", pytest.approx(0.6)),
        "e": ("unjudged", None),
    }
    assert kept(run(TopFraction(fraction=0.01), rows)) == kept(run(TopFraction(fraction=0.4), rows)) == ["a1"]
    assert kept(run(TopFraction(fraction=1), rows)) == ["a1", "b", "c", "d"]


@pytest.mark.parametrize("params", [Threshold(per_level=3), TopFraction()])
def test_no_responses(params):
    assert run(params, []) == {}


SCORES = st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))
ROWS = st.lists(st.tuples(st.sampled_from("abc"), SCORES, SCORES, st.sampled_from(["x", "y", "z"])), max_size=12)


@given(ROWS, st.integers(1, 3))
def test_it_keeps_what_the_plain_loop_keeps(drawn, per_prompt):
    rows = [
        response(f"{p}{k:02}", s, None if m is None else -m, response=text) for k, (p, s, m, text) in enumerate(drawn)
    ]
    ranked = sorted(
        rows, key=lambda r: (-(r["score"] or 0), -(-9 if r["mean_logprob"] is None else r["mean_logprob"]), r["id"])
    )
    expected: dict[str, list[dict]] = {}
    for row in ranked:
        mine = expected.setdefault(row["prompt_id"], [])
        good = row["score"] is not None and row["score"] >= 0.4
        if good and len(mine) < per_prompt and row["response"] not in [other["response"] for other in mine]:
            mine.append(row)

    decisions = run(Threshold(per_prompt=per_prompt), rows)

    assert kept(decisions) == sorted(row["id"] for mine in expected.values() for row in mine)
    assert len(decisions) == len(rows)
