import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.core import frames, tables
from tasks.core.ids import content_id
from tasks.pair import pair
from tasks.pair.best_worst import BestWorst
from tasks.pair.refined import Refined


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


KEPT = object()


def run(members, rows: list[dict], refined: list[dict] = (), kept: dict[str, int] | object = KEPT) -> pl.DataFrame:
    """Pairs. `kept` has the ranks of what the filter kept; without it, all that have an answer and a reward, the best
    first.
    """
    members = members if isinstance(members, dict) else {members.strategy_name(): members}
    responses = [{k: v for k, v in row.items() if k != "score"} for row in rows]
    prompts = [{"id": p, "problem": p, "prompt": [{"role": "user", "content": p}]} for p in "abc"]
    frame = pair(
        members,
        frames.frame(tables.prompts, prompts),
        frames.frame(tables.responses, responses),
        frames.frame(tables.judgments, [judgment(row, judge) for row in rows for judge in ("r", "other")]),
        frames.frame(tables.filtered, filtered(rows, ranks(rows) if kept is KEPT else kept)),
        frames.frame(tables.refinements, refined),
        None,
        None,
    ).collect()
    assert (frame["chosen_score"] > frame["rejected_score"]).all()
    assert frame["id"].is_unique().all()
    assert frame.schema == frames.frame(tables.pairs).collect_schema()
    return frame


def judgment(row: dict, judge: str) -> dict:
    own = {"id": f"{judge}{row['id']}", "response_id": row["id"], "prompt_id": row["prompt_id"], "member": judge}
    return own | {"reward": judge == "r", "score": row["score"] if judge == "r" else -5.0}


def ranks(rows: list[dict]) -> dict[str, int]:
    good = [row for row in rows if None not in (row["score"], row["answer"]) and not row.get("finish_reason")]
    best = sorted(good, key=lambda r: (-r["score"], 9 if r["mean_logprob"] is None else -r["mean_logprob"], r["id"]))
    own = {p: [r["id"] for r in best if r["prompt_id"] == p] for p in "abc"}
    return {name: rank for names in own.values() for rank, name in enumerate(names, 1)}


def filtered(rows: list[dict], kept: dict[str, int]) -> list[dict]:
    return [
        {"id": r["id"], "prompt_id": r["prompt_id"], "kept": r["id"] in kept, "rank": kept.get(r["id"])} for r in rows
    ]


def pairs(*case, **more) -> list[tuple]:
    return run(*case, **more).select("chosen_id", "rejected_id", "chosen_score", "rejected_score").rows()


def test_the_best_is_chosen_over_the_worst_in_trl_columns():
    rows = run(BestWorst(), [response("a1", 0.5), response("a2", 1.0, model="m"), response("a3", 0.0, model="n")])

    assert rows.to_dicts() == [
        {
            "id": content_id("best_worst", "a", "a2", "a3"),
            "member": "best_worst",
            "prompt_id": "a",
            "prompt": [{"role": "user", "content": "a"}],
            "chosen": [{"role": "assistant", "content": "text a2"}],
            "rejected": [{"role": "assistant", "content": "text a3"}],
            "chosen_id": "a2",
            "rejected_id": "a3",
            "chosen_score": 1.0,
            "rejected_score": 0.0,
            "chosen_model": "m",
            "rejected_model": "n",
            "weight": 1.0,
            "smoothing": 0.0,
            "judge": "r",
            "source": "responses",
        }
    ]


def test_a_pair_names_the_judge_whose_scores_it_has():
    """A gap is in that judge's units: two rounds with other rewards cannot be compared by it."""
    rows = [response("a1", 1.0, answer="8"), response("a2", 0.0, answer="9"), response("b1", None)]
    made = run({"best_worst": BestWorst(), "refined": Refined()}, rows, [refinement("r1", "a2")])

    assert made.select("member", "judge").rows() == [("best_worst", "r"), ("refined", "r")]


def test_the_chosen_one_is_the_best_that_the_filter_kept():
    rows = [response("a1", 1.0), response("a2", 0.75), response("a3", 0.5), response("a4", 0.0), response("b1", 1.0)]
    rows += [response("b2", 0.0)]

    assert pairs(BestWorst(), rows, kept={"a2": 1, "a3": 2}) == [("a2", "a4", 0.75, 0.0)]
    assert pairs(BestWorst(), rows, kept={"a2": 2, "a3": 1}) == [("a3", "a4", 0.5, 0.0)]
    assert pairs(BestWorst(), rows, kept={}) == []


def test_what_the_filter_keeps_though_cut_off_is_still_in_no_pair():
    rows = [response("a1", 1.0, finish_reason="length"), response("a2", 0.75), response("a3", 0.0)]

    assert pairs(BestWorst(), rows, kept={"a1": 1, "a2": 2}) == [("a2", "a3", 0.75, 0.0)]


def test_ties_and_small_gaps_are_no_pairs():
    rows = [response("a1", 0.5), response("a2", 0.5), response("b1", 0.5), response("b2", 0.3), response("c1", 1.0)]

    assert pairs(BestWorst(min_margin=0.25), rows) == []
    assert pairs(BestWorst(min_margin=0.2), rows) == [("b1", "b2", 0.5, 0.3)]


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


def test_the_chosen_one_must_reach_min_reward():
    rows = [response("a1", 0.3), response("a2", 0.0), response("b1", 0.4), response("b2", 0.0)]

    assert pairs(BestWorst(min_reward=0.4), rows) == [("b1", "b2", 0.4, 0.0)]


def test_the_likeliest_success_against_what_it_came_from():
    rows = [response("a1", 0.625, answer="8"), response("a2", 0.125, answer="9"), response("b1", 0.25, answer="9")]
    rows += [response("a3", 0.5, answer="8"), response("b2", 1.0, answer="8"), response("c1", None)]
    refined = [
        refinement("r1", "a2", mean_logprob=-2.0),
        refinement("r2", "a2", mean_logprob=-0.5),
        refinement("r3", "a2", mean_logprob=-0.1, success=False),
        refinement("r4", "a2", mean_logprob=-0.1, success=None, error="time-out"),
        refinement("r5", "b1"),
        refinement("r6", "c1"),  # of a response without a reward
    ]
    made = run(Refined(), rows, refined)

    assert made.select("chosen_id", "rejected_id", "chosen_score", "rejected_score").rows() == [
        ("r2", "a2", 0.625, 0.125),
        ("r5", "b1", 1.0, 0.25),
    ]
    assert made["chosen"].to_list()[0] == [{"role": "assistant", "content": "text r2"}]
    assert made["prompt"].to_list()[0] == [{"role": "user", "content": "a"}]
    assert set(made["source"]) == {"refinements"}


def test_a_refinement_must_have_the_answer_that_the_filter_likes_best():
    rows = [response("a1", 1.0, answer="8"), response("a2", 0.75, answer="7"), response("a3", 0.0, answer="9")]
    refined = [refinement("r1", "a3", answer="8"), refinement("r2", "a3", answer="7", mean_logprob=-0.5)]

    assert pairs(Refined(), rows, refined, kept={"a1": 1, "a2": 2}) == [("r1", "a3", 1.0, 0.0)]
    assert pairs(Refined(), rows, refined, kept={"a2": 1}) == [("r2", "a3", 0.75, 0.0)]
    assert pairs(Refined(), rows, refined, kept={}) == []


def test_a_refinement_that_the_reward_likes_no_better_is_no_pair():
    rows = [response("a1", 0.5, answer="8"), response("a2", 0.5, answer="9")]
    rows += [response("b1", 0.0, response="text r2"), response("b2", 1.0, answer="8")]

    assert pairs(Refined(), rows, [refinement("r1", "a2"), refinement("r2", "b1")]) == []


def test_members_work_side_by_side_and_a_pair_of_two_of_them_is_a_row_of_each():
    rows = [response("a1", 1.0, answer="8"), response("a2", 0.0, answer="9"), response("b1", 0.5), response("b2", 0.0)]
    members = {"wide": BestWorst(min_margin=0.75), "best_worst": BestWorst(min_margin=0.25), "refined": Refined()}
    made = run(members, rows, [refinement("r1", "a2")])

    assert made.select("prompt_id", "member", "chosen_id", "rejected_id").rows() == [
        ("a", "best_worst", "a1", "a2"),
        ("a", "refined", "r1", "a2"),
        ("a", "wide", "a1", "a2"),
        ("b", "best_worst", "b1", "b2"),
    ]
    assert run(dict(reversed(members.items())), rows, [refinement("r1", "a2")]).equals(made)


def test_without_members_there_are_no_pairs():
    made = run({}, [response("a1", 1.0), response("a2", 0.0)])
    assert made.schema == frames.frame(tables.pairs).collect_schema()
    assert made.is_empty()


@pytest.mark.parametrize("strategy", [BestWorst(min_reward=0.4), Refined()])
def test_nothing_to_pair(strategy):
    assert run(strategy, []).is_empty()


SCORES = st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
ROWS = st.lists(st.tuples(st.sampled_from("abc"), SCORES), max_size=10)


@given(ROWS)
def test_a_pair_wherever_the_scores_are_far_enough_apart(drawn):
    rows = [response(f"{p}{k}", score) for k, (p, score) in enumerate(drawn)]
    scores = {p: [s for q, s in drawn if q == p and s is not None] for p in "abc"}
    expected = {p: (max(s), min(s)) for p, s in scores.items() if s and max(s) - min(s) >= 0.25}

    made = run(BestWorst(), rows)

    assert {p: (c, r) for p, c, r in made.select("prompt_id", "chosen_score", "rejected_score").rows()} == expected


@given(ROWS)
def test_prompts_taken_one_after_the_other_give_the_pairs_of_all_together(drawn):
    rows = [response(f"{p}{k}", score, answer="8" if k % 2 else "9") for k, (p, score) in enumerate(drawn)]
    refined = [refinement(f"r{row['id']}", row["id"]) for row in rows]
    members = {"best_worst": BestWorst(), "refined": Refined()}
    assert all(member.per_prompt_only() for member in members.values())
    pieces = [run(members, *([r for r in part if r["prompt_id"] == p] for part in (rows, refined))) for p in "abc"]
    assert pl.concat(pieces).equals(run(members, rows, refined))
