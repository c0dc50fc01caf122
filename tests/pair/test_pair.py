import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import tables
from tasks.pair import pair
from tasks.pair.best_worst import BestWorst
from tasks.pair.refined import Refined
from tasks.stage import content_id


def response(name: str, score: float | None, logprob: float | None = -1.0, **more) -> dict:
    row = {"id": name, "prompt_id": name[0], "response": f"text {name}", "answer": name, "mean_logprob": logprob}
    return row | {"score": score} | more


def refinement(name: str, of: str, **more) -> dict:
    row = {
        "id": name,
        "response_id": of,
        "prompt_id": of[0],
        "response": f"text {name}",
        "answer": "8",
        "success": True,
    }
    return row | {"mean_logprob": -1.0} | more


def run(params, rows: list[dict], refined: list[dict] = ()) -> pl.DataFrame:
    judged = [
        {
            "id": f"{j}{row['id']}",
            "response_id": row["id"],
            "prompt_id": row["prompt_id"],
            "judge": j,
            "reward": j == "r",
        }
        | {"score": row["score"] if j == "r" else -5.0}
        for row in rows
        for j in ("r", "other")
    ]
    asked = [{"id": p, "prompt": [{"role": "user", "content": p}]} for p in "abc"]
    responses = [{k: v for k, v in row.items() if k != "score"} for row in rows]
    frames = (tables.frame(t, r) for t, r in ((tables.prompts, asked), (tables.responses, responses)))
    more = tables.frame(tables.judgments, judged), tables.frame(tables.refinements, refined)
    frame = pair(params, *frames, *more).collect()
    assert (frame["chosen_score"] > frame["rejected_score"]).all()
    assert set(tables.pairs.schema.names) <= set(frame.columns)
    return frame


def pairs(*given) -> list[tuple]:
    return run(*given).select("chosen_id", "rejected_id", "chosen_score", "rejected_score").rows()


def test_the_best_is_chosen_over_the_worst_in_trl_columns():
    rows = run(BestWorst(), [response("a1", 0.5), response("a2", 1.0), response("a3", 0.0)])

    assert rows.select(tables.pairs.schema.names).to_dicts() == [
        {
            "id": content_id("a", "a2", "a3"),
            "prompt_id": "a",
            "prompt": [{"role": "user", "content": "a"}],
            "chosen": [{"role": "assistant", "content": "text a2"}],
            "rejected": [{"role": "assistant", "content": "text a3"}],
            "chosen_id": "a2",
            "rejected_id": "a3",
            "chosen_score": 1.0,
            "rejected_score": 0.0,
            "source": "responses",
        }
    ]


def test_ties_and_small_gaps_are_no_pairs():
    rows = [response("a1", 0.5), response("a2", 0.5), response("b1", 0.5), response("b2", 0.3), response("c1", 1.0)]

    assert pairs(BestWorst(margin=0.25), rows) == []
    assert pairs(BestWorst(margin=0.2), rows) == [("b1", "b2", 0.5, 0.3)]


def test_of_equal_ones_the_likeliest_then_the_first():
    rows = [
        *(response(f"a{k}", 1.0, logprob) for k, logprob in enumerate([-2.0, None, -1.0, -1.0])),
        *(response(f"a{k}", 0.0, logprob) for k, logprob in enumerate([None, -3.0, -0.5, -0.5], 4)),
    ]

    assert pairs(BestWorst(), rows) == [("a2", "a6", 1.0, 0.0)]


def test_what_failed_was_cut_off_or_has_no_answer_or_reward_is_in_no_pair():
    rows = [
        response("a1", 1.0),
        response("a2", None),
        response("a3", 0.0, error="time-out", answer=None),
        response("a5", 0.0, answer=None),
        response("a6", 0.0, finish_reason="length"),
        response("a7", 2.0, finish_reason="length"),
        response("a4", 0.5),
    ]

    assert pairs(BestWorst(), rows) == [("a1", "a4", 1.0, 0.5)]


def test_equal_texts_are_no_pair():
    assert pairs(BestWorst(), [response("a1", 1.0, response="x"), response("a2", 0.0, response="x")]) == []


def test_the_chosen_one_can_be_asked_to_be_good():
    rows = [response("a1", 0.3), response("a2", 0.0), response("b1", 0.4), response("b2", 0.0)]

    assert pairs(BestWorst(least=0.4), rows) == [("b1", "b2", 0.4, 0.0)]


def test_the_likeliest_success_against_what_it_came_from():
    rows = [response("a1", 0.625, answer="8"), response("a2", 0.125, answer="9"), response("b1", 0.25, answer="9")]
    rows.append(response("a3", 0.5, answer="8"))
    refined = [
        refinement("r1", "a2", mean_logprob=-2.0),
        refinement("r2", "a2", mean_logprob=-0.5),
        refinement("r3", "a2", mean_logprob=-0.1, success=False),
        refinement("r4", "a2", mean_logprob=-0.1, success=None, error="time-out"),
        refinement("r5", "b1"),
        refinement("r6", "c1"),  # of a response without a reward
    ]
    rows = run(Refined(), [*rows, response("c1", None)], refined)

    assert rows.select("chosen_id", "rejected_id", "chosen_score", "rejected_score").rows() == [
        ("r2", "a2", 0.625, 0.125),
        ("r5", "b1", 1.0, 0.25),
    ]
    assert rows["chosen"].to_list()[0] == [{"role": "assistant", "content": "text r2"}]
    assert rows["prompt"].to_list()[0] == [{"role": "user", "content": "a"}]
    assert set(rows["source"]) == {"refinements"}


def test_a_refinement_that_the_reward_likes_no_better_is_no_pair():
    rows = [response("a1", 0.5, answer="8"), response("a2", 0.5, answer="9"), response("b1", 0.0, response="text r2")]

    assert pairs(Refined(), rows, [refinement("r1", "a2"), refinement("r2", "b1")]) == []


@pytest.mark.parametrize("params", [BestWorst(least=0.4), Refined()])
def test_nothing_to_pair(params):
    assert run(params, []).is_empty()


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5, 1.0]))), max_size=10
    )
)
def test_a_pair_wherever_the_scores_are_far_enough_apart(drawn):
    rows = [response(f"{p}{k}", score) for k, (p, score) in enumerate(drawn)]
    scores = {p: [s for q, s in drawn if q == p and s is not None] for p in "abc"}
    apart = {p: (max(s), min(s)) for p, s in scores.items() if s and max(s) - min(s) >= 0.25}

    found = run(BestWorst(), rows)

    assert {p: (c, r) for p, c, r in found.select("prompt_id", "chosen_score", "rejected_score").rows()} == apart
