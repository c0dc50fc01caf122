import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.core import frames, tables
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


def decide(
    strategy, rows: list[dict], others: dict[str, dict[str, float]] | None = None, levels: dict[str, int] | None = None
) -> pl.DataFrame:
    scores = {"r": {row["id"]: row["score"] for row in rows}} | (others or {})
    judgments = [
        {"id": f"{j}{r}", "response_id": r, "prompt_id": r[0], "member": j, "reward": j == "r", "score": s}
        for j, own in scores.items()
        for r, s in own.items()
    ]
    prompts = [{"id": p, "problem": p, "level": level} for p, level in (levels or {}).items()]
    responses = [{k: v for k, v in row.items() if k != "score"} for row in rows]
    frame = filtering(
        strategy,
        frames.frame(tables.prompts, prompts),
        frames.frame(tables.responses, responses),
        frames.frame(tables.judgments, judgments),
    ).collect()
    assert frame.schema == frames.frame(tables.filtered).collect_schema()
    assert frame["id"].to_list() == sorted(frame["id"])  # ids begin with their prompt's
    assert frame["kept"].to_list() == frame["reason"].is_null().to_list() == frame["rank"].is_not_null().to_list()
    return frame


def run(*case, **more) -> dict[str, tuple]:
    return {r["id"]: (r["reason"], r["margin"]) for r in decide(*case, **more).to_dicts()}


def kept(decisions: dict) -> list[str]:
    return [name for name, (reason, _) in decisions.items() if reason is None]


def test_what_another_judge_refuses_is_dropped_with_its_name_before_the_best_is_chosen():
    rows = [response("a1", logprob=-0.1), response("a2", logprob=-0.2), response("b1"), response("b2")]
    decisions = run(Threshold(require={"critic": 0.5}), rows, {"critic": {"a1": 0.25, "a2": 0.75, "b2": None}})
    assert decisions["a1"] == ("judge/critic", 0.25)
    assert decisions["a2"][0] is None
    assert decisions["b1"] == ("no_judge/critic", None)  # it was not asked
    assert decisions["b2"] == ("no_judge/critic", None)  # it could not be read


@pytest.mark.parametrize(
    ("name", "bad"),
    [("short", {"tokens": 1}), ("long", {"tokens": 20}), ("format", {"answer": None}), ("unjudged", {"score": None}),
     ("error", {"error": "time-out"}), ("score", {"score": 0.1})],
)  # fmt: skip
def test_a_judge_may_have_the_name_of_a_rule(name, bad):
    strategy = Threshold(min_tokens=3, max_tokens=10, require={name: 0.5})
    decisions = run(strategy, [response("a") | bad, response("b")], {name: {"a": 1.0, "b": 0.25}})
    assert decisions["a"][0] == name
    assert decisions["b"] == (f"judge/{name}", 0.25)


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
    assert run(Threshold(min_tokens=3, max_tokens=10), [response("a") | bad])["a"] == decision


def test_cut_off_responses_can_be_kept():
    assert kept(run(Threshold(complete_only=False), [response("a", finish_reason="length")])) == ["a"]


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
    assert decisions["a"] == ("level", pytest.approx(0.1))


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


def test_the_kept_of_a_prompt_are_ranked_from_the_best():
    rows = [
        *(
            response(f"a{k}", score, logprob)
            for k, (score, logprob) in enumerate([(0.5, -1.0), (0.5, -0.5), (1.0, -2.0)])
        ),
        response("a3", 0.1),
        response("b0", 0.75, None),
        response("b1", 0.75, -9.0),
    ]
    ranks = dict(decide(Threshold(per_prompt=3), rows).select("id", "rank").iter_rows())

    assert ranks == {"a0": 3, "a1": 2, "a2": 1, "a3": None, "b0": 2, "b1": 1}


@pytest.mark.parametrize(("fraction", "count"), [(0.29, 29), (0.289, 28), (0.58, 58), (0.001, 1)])
def test_a_share_is_rounded_down_as_decimals_are(fraction, count):
    rows = [response(f"a{n:02}") for n in range(100)]
    assert len(kept(run(TopFraction(fraction=fraction, per_prompt=100), rows))) == count


def test_a_log_probability_that_is_no_number_ranks_as_none():
    rows = [response("a0", logprob=float("nan")), response("a1", logprob=-9.0), response("a2", logprob=None)]
    ranks = dict(decide(Threshold(per_prompt=3), rows).select("id", "rank").iter_rows())
    assert ranks == {"a1": 1, "a0": 2, "a2": 3}


@pytest.mark.parametrize("strategy", [Threshold(per_level=3), TopFraction()])
def test_no_responses(strategy):
    assert run(strategy, []) == {}


SCORES = st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))
ROWS = st.lists(st.tuples(st.sampled_from("abc"), SCORES, SCORES, st.sampled_from(["x", "y", "z"])), max_size=12)


def responses(drawn: list[tuple]) -> list[dict]:
    return [
        response(f"{p}{k:02}", s, None if m is None else -m, response=text) for k, (p, s, m, text) in enumerate(drawn)
    ]


def order(row: dict) -> tuple:
    """Sorts by reward, then mean log-probability, both highest first and nulls last, then id."""
    return (-(row["score"] or 0), 9 if row["mean_logprob"] is None else -row["mean_logprob"], row["id"])


@given(ROWS, st.integers(1, 3))
def test_it_keeps_what_the_plain_loop_keeps_and_in_its_order(drawn, per_prompt):
    rows = responses(drawn)
    expected: dict[str, list[dict]] = {}
    for row in sorted(rows, key=order):
        own = expected.setdefault(row["prompt_id"], [])
        good = row["score"] is not None and row["score"] >= 0.4
        if good and len(own) < per_prompt and row["response"] not in [other["response"] for other in own]:
            own.append(row)

    frame = decide(Threshold(per_prompt=per_prompt), rows)

    ranks = {row["id"]: rank for own in expected.values() for rank, row in enumerate(own, 1)}
    assert dict(frame.filter("kept").select("id", "rank").iter_rows()) == ranks
    assert len(frame) == len(rows)


STRATEGIES = [Threshold(per_prompt=2, per_level=3), TopFraction(per_prompt=3, fraction=0.6), Threshold(rank_by="sure")]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=["per_level", "top_fraction", "rank_by"])
@given(ROWS)
def test_the_kept_of_every_prompt_have_the_ranks_from_1_whatever_drops_the_others(strategy, drawn):
    rows = responses(drawn)
    sure = {row["id"]: row["mean_logprob"] for row in rows}
    frame = decide(strategy, rows, {"sure": sure}, {"a": 1, "b": 1, "c": 2})

    for _, own in frame.filter("kept").group_by("prompt_id"):
        assert sorted(own["rank"]) == list(range(1, len(own) + 1))
        by_rank = own.sort("rank")["id"].to_list()
        assert by_rank == [row["id"] for row in sorted(rows, key=order) if row["id"] in by_rank]
    assert frame.filter(~pl.col("kept"))["rank"].null_count() == frame["kept"].not_().sum()


@given(ROWS)
def test_prompts_taken_one_after_the_other_are_decided_as_together(drawn):
    rows, strategy = responses(drawn), Threshold(per_prompt=2)
    assert strategy.per_prompt_only()
    pieces = [decide(strategy, [row for row in rows if row["prompt_id"] == p]) for p in "abc"]
    assert pl.concat(pieces).equals(decide(strategy, rows))
