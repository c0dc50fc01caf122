"""Pairings that ask who wrote an answer, what other judges say, or what a second turn made of it."""

import polars as pl
import pytest
from pydantic import ValidationError

from tasks.core import frames, tables
from tasks.core.errors import UnknownName
from tasks.pair import Pairing, pair
from tasks.pair.agreed import Agreed
from tasks.pair.anchored import Anchored
from tasks.pair.before_after import BeforeAfter
from tasks.pair.best_worst import BestWorst
from tasks.pair.consistency import Consistency
from tasks.pair.ranked import Ranked
from tasks.pair.two_turn import TwoTurn


def response(name, author="parent", logprob=-1.0, **more):
    row = {"id": name, "prompt_id": name[0], "response": f"text {name}", "answer": name, "mean_logprob": logprob}
    return row | {"author": author, "model": f"of {author}"} | more


def run(strategy, responses, rewards, refined=(), kept=None, anchor=None, **judges):
    """Pairs of a strategy, or of several by name; `rewards` and each of `judges` are scores by response, `kept` ranks
    (default: the best by reward).
    """
    prompts = [{"id": p, "problem": p, "prompt": [{"role": "user", "content": p}]} for p in "abc"]
    judgments = [
        {"id": f"{judge}{r['id']}", "response_id": r["id"], "prompt_id": r["prompt_id"], "member": judge,
         "reward": judge == "reward", "score": scores.get(r["id"]), "error": None if r["id"] in scores else "unreadable"}
        for judge, scores in ({"reward": rewards} | judges).items()
        for r in responses
    ]  # fmt: skip
    ranks = kept or {max((n for n in rewards if n[0] == p), key=rewards.get): 1 for p in {n[0] for n in rewards}}
    filtered = [
        {"id": r["id"], "prompt_id": r["prompt_id"], "kept": r["id"] in ranks, "rank": ranks.get(r["id"])}
        for r in responses
    ]
    anchored = None if anchor is None else frames.frame(tables.responses, anchor)
    rows = {
        "prompts": prompts,
        "responses": responses,
        "judgments": judgments,
        "filtered": filtered,
        "refinements": refined,
    }
    given = [frames.frame(tables.TABLES[name], own) for name, own in rows.items()]
    members = strategy if isinstance(strategy, dict) else {strategy.strategy_name(): strategy}
    made = pair(members, *given, anchored, None).collect()
    assert (made["chosen_score"] > made["rejected_score"]).all()
    return made


def ids(made):
    return made.select("chosen_id", "rejected_id").rows()


# Temporal Self-Rewarding: a1 and a2 are of the parent, a3 and a4 of the base, a5 of the anchor

TODAY = [response("a1"), response("a2"), response("a3", "base"), response("a4", "base"), response("a5", "anchor")]
SCORES = {"a1": 0.75, "a2": 0.5, "a3": 0.25, "a4": 0.375, "a5": 0.875}


def test_the_best_of_the_parent_against_the_worst_of_the_base():
    made = run(Anchored(), TODAY, SCORES)
    assert made.select("chosen_id", "rejected_id", "chosen_model", "rejected_model").rows() == [
        ("a1", "a3", "of parent", "of base")
    ]


@pytest.mark.parametrize("worst", [0.5, 0.625])
def test_a_base_that_is_no_worse_leaves_the_parents_own_worst(worst):
    assert ids(run(Anchored(), TODAY, SCORES | {"a3": worst, "a4": 0.9})) == [("a1", "a2")]


@pytest.mark.parametrize(("future", "chosen"), [(0.875, "a5"), (0.75, "a1"), (0.25, "a1")])
def test_the_future_is_chosen_where_it_is_better(future, chosen):
    assert ids(run(Anchored(future="anchor"), TODAY, SCORES | {"a5": future})) == [(chosen, "a3")]


def test_of_equal_rewards_the_likeliest_answer_is_taken_on_both_sides():
    """a2 of the two best; of the worst ones a4, for one without a log-probability comes last."""
    rows = [response("a1", logprob=-2.0), response("a2", logprob=-1.0), response("a3", "base", None)]
    rows.append(response("a4", "base", logprob=-3.0))
    scores = {"a1": 0.75, "a2": 0.75, "a3": 0.25, "a4": 0.25}
    assert ids(run(Anchored(), rows, scores)) == ids(run(Anchored(), rows[::-1], scores)) == [("a2", "a4")]


def test_any_gap_is_enough_and_none_is_none():
    assert ids(run(Anchored(), TODAY[:2], {"a1": 0.51, "a2": 0.5})) == [("a1", "a2")]
    assert ids(run(Anchored(), TODAY[:2], {"a1": 0.5, "a2": 0.5})) == []


def test_a_prompt_that_the_parent_did_not_answer_is_no_pair():
    assert ids(run(Anchored(future="anchor"), TODAY[2:], SCORES)) == []
    assert ids(run(Anchored(), TODAY, {"a3": 0.25, "a4": 0.5})) == []  # nor one whose answers have no reward


# Self-reinforcement


def test_each_model_speaks_with_its_likeliest_answer():
    rows = [
        response("a1", logprob=-2.0),
        response("a2", logprob=-0.5),
        response("a3", "base", -0.1),
        response("a4", "base", None),
    ]
    rows += [response("b1"), response("b2", "base"), response("c1")]
    scores = {"a1": 1.0, "a2": 0.75, "a3": 0.25, "a4": 0.0, "b1": 0.5, "b2": 0.75, "c1": 1.0}
    assert ids(run(BeforeAfter(), rows, scores)) == [("a2", "a3")]  # of b the reward prefers the untuned model's


def test_what_a_model_answered_with_a_hint_does_not_speak_for_it():
    rows = [
        response("a1"),
        response("a2", logprob=-0.1, hinted=True),
        response("a3", "base"),
        response("b1", hinted=True),
    ]
    scores = {"a1": 0.75, "a2": 1.0, "a3": 0.25, "b1": 1.0}
    assert ids(run(BeforeAfter(), [*rows, response("b2", "base")], scores | {"b2": 0.0})) == [("a1", "a3")]


# Ranked: of 1.0, 0.75, 0.5 and 0.5 two by two at least 0.25 apart


def test_all_pairs_of_a_prompt_weigh_one_together():
    rows = [response(f"a{k}") for k in range(4)] + [response("b1"), response("b2"), response("b3", response="text b2")]
    scores = {"a0": 1.0, "a1": 0.75, "a2": 0.5, "a3": 0.5, "b1": 1.0, "b2": 0.25, "b3": 0.25}
    made = run(Ranked(min_margin=0.25), rows, scores)

    assert ids(made) == [("a0", "a1"), ("a0", "a2"), ("a0", "a3"), ("a1", "a2"), ("a1", "a3"), ("b1", "b2")]
    assert made["weight"].to_list() == pytest.approx([1 / 5] * 5 + [1.0], abs=1e-6)

    few = run(Ranked(min_margin=0.25, limit=2), rows, scores)
    assert ids(few) == [("a0", "a2"), ("a0", "a3"), ("b1", "b2")]
    assert few["weight"].to_list() == [0.5, 0.5, 1.0]


# CREAM: of a's three answers two judges order one pair of three differently: τ = (2 − 1)/3, C = 2/3; b's are ordered
# the other way round: τ = −1, C = 0; of c one judge says nothing

CREAM = [response(n) for n in ("a1", "a2", "a3", "b1", "b2", "c1", "c2")]
REWARDS = {"a1": 1.0, "a2": 0.5, "a3": 0.0, "b1": 1.0, "b2": 0.0, "c1": 1.0, "c2": 0.0}
BEFORE = {"a1": 0.5, "a2": 0.75, "a3": 0.25, "b1": -2.0, "b2": -1.0, "c1": 3.0, "c2": 3.0}


def smoothed(strategy):
    made = run(strategy, CREAM, REWARDS, implicit=REWARDS, before=BEFORE)
    assert ids(made) == [("a1", "a3"), ("b1", "b2"), ("c1", "c2")][: len(made)]
    return made["smoothing"].to_list()


def test_smoothing_is_one_less_the_consistency():
    assert smoothed(Consistency(judges=("implicit", "before"))) == pytest.approx([1 / 3, 1.0], abs=1e-6)
    assert smoothed(Consistency(judges=("before", "implicit"))) == pytest.approx([1 / 3, 1.0], abs=1e-6)


def test_averaged_gives_all_pairs_the_mean():
    averaged = Consistency(judges=("implicit", "before"), averaged=True)
    assert smoothed(averaged) == pytest.approx([2 / 3] * 3, abs=1e-6)
    assert (averaged.per_prompt_only(), Consistency(judges=("a", "b")).per_prompt_only()) == (False, True)


def test_an_answer_without_a_score_is_not_ranked():
    """Without a2 both judges agree on a."""
    before = {n: s for n, s in BEFORE.items() if n != "a2"}
    made = run(Consistency(judges=("implicit", "before")), CREAM, REWARDS, implicit=REWARDS, before=before)
    assert made["smoothing"].to_list() == pytest.approx([0.0, 1.0], abs=1e-6)


@pytest.mark.parametrize("averaged", [False, True])
def test_without_a_consistency_there_is_no_pair_and_other_members_have_theirs(averaged):
    """Of c `before` scores both alike, so τ is not defined; the order of the members does not matter."""
    rows = [r for r in CREAM if r["prompt_id"] == "c"]
    members = {"consistency": Consistency(judges=("implicit", "before"), averaged=averaged), "best_worst": BestWorst()}
    for given in (members, dict(reversed(members.items()))):
        made = run(given, rows, {"c1": 1.0, "c2": 0.0}, implicit=REWARDS, before=BEFORE)
        assert made.select("member", "chosen_id", "smoothing").rows() == [("best_worst", "c1", 0.0)]


def test_two_judges_that_there_are():
    with pytest.raises(UnknownName, match="'befor'.*'before'"):
        run(Consistency(judges=("implicit", "befor")), CREAM, REWARDS, implicit=REWARDS, before=BEFORE)
    with pytest.raises(ValidationError, match="twice"):
        Consistency(judges=("implicit", "implicit"))


# SCIR: implicit and generative order a1 > a2 alike; a2 and a3 they order differently; a1 > a3 alike, with wider gaps


def agreed(scores=None, **fields):
    rows = [response(n) for n in ("a1", "a2", "a3")]
    given = scores or {"implicit": {"a1": 2.0, "a2": 1.0, "a3": 1.5}, "generative": {"a1": 1.0, "a2": 0.75, "a3": 0.25}}
    margins = fields.pop("judges", {"implicit": 0.0, "generative": 0.0})
    return run(Agreed(judges=margins, min_margin=0.1, **fields), rows, {"a1": 1.0, "a2": 0.8, "a3": 0.5}, **given)


def test_only_pairs_that_all_judges_order_alike_weighed_by_how_sure_they_are():
    made = agreed(per_prompt=None)
    assert ids(made) == [("a1", "a2"), ("a1", "a3")]
    # 2σ(1) − 1 = 0.46212 and 2σ(0.25) − 1 = 0.12435, then 2σ(0.5) − 1 = 0.24492 and 2σ(0.75) − 1 = 0.35836
    assert made["weight"].to_list() == pytest.approx([0.29323, 0.30164], abs=1e-5)
    assert ids(agreed()) == [("a1", "a3")]


def test_each_judge_has_a_margin_of_its_own():
    assert ids(agreed(judges={"implicit": 0.75, "generative": 0.0}, per_prompt=None)) == [("a1", "a2")]
    assert ids(agreed(judges={"implicit": 0.0, "generative": 0.5}, per_prompt=None)) == [("a1", "a3")]


def test_a_judge_that_says_nothing_or_the_same_of_two_answers_agrees_with_nobody():
    scores = {"implicit": {"a1": 2.0, "a2": 2.0}, "generative": {"a1": 1.0, "a2": 0.75, "a3": 0.25}}
    assert ids(agreed(scores, per_prompt=None)) == []


# SCL: a1 turns wrong, b1 right; a2 stays right, b2 wrong


def turn(of, answer, success, member="two_turn", **more):
    row = {"id": f"s{of}", "response_id": of, "prompt_id": of[0], "response": f"second {of}", "answer": answer}
    return row | {"success": success, "member": member, "model": "second"} | more


TURNS = [response("a1", answer="8"), response("a2", answer="8"), response("b1", answer="9"), response("b2", answer="9"),
         response("b3", answer="8"), response("b4", answer="7")]  # fmt: skip
EARNED = {"a1": 1.0, "a2": 1.0, "b1": 0.25, "b2": 0.25, "b3": 0.75, "b4": 0.5}
SECOND = [turn("a1", "9", False), turn("a2", "8", True), turn("b1", "8", True), turn("b2", "9", False)]


def test_what_turned_wrong_is_rejected_and_what_turned_right_is_chosen():
    made = run(TwoTurn(), TURNS, EARNED, SECOND)
    assert made.select("chosen_id", "rejected_id", "chosen_score", "rejected_score").rows() == [
        ("a1", "sa1", 1.0, 0.0),  # nobody else answered 9 to a
        ("sb1", "b1", 0.75, 0.25),
    ]
    assert made.select("chosen_model", "rejected_model").rows() == [("of parent", "second"), ("second", "of parent")]
    texts = [(c[0]["content"], r[0]["content"]) for c, r in made.select("chosen", "rejected").rows()]
    assert texts == [("text a1", "second a1"), ("second b1", "text b1")]
    assert made["prompt"].to_list()[0] == [{"role": "user", "content": "a"}]
    assert set(made["source"]) == {"refinements"}


def test_a_wrong_turn_that_others_took_has_their_reward():
    made = run(TwoTurn(), TURNS, EARNED, [turn("b3", "7", False)])
    assert made.select("chosen_id", "rejected_id", "chosen_score", "rejected_score").rows() == [
        ("b3", "sb3", 0.75, 0.5)
    ]


def test_a_turn_without_an_answer_or_of_another_member_is_in_no_pair():
    failed = turn("b1", None, None, error="no answer")
    assert ids(run(TwoTurn(), TURNS, EARNED, [failed, turn("a1", "9", False, "auto_math")])) == []
    assert ids(run(TwoTurn(member=None), TURNS, EARNED, [turn("a1", "9", False, "auto_math")])) == [("a1", "sa1")]


def test_every_second_turn_of_an_answer_is_a_pair_of_its_own():
    made = run(TwoTurn(member=None), TURNS, EARNED, [turn("b1", "8", True), turn("b1", "8", True, "other", id="t")])
    assert ids(made) == [("sb1", "b1"), ("t", "b1")] and made["id"].is_unique().all()


def test_an_answer_of_the_anchors_names_its_author_too():
    class FromAnchor(Pairing):
        def __call__(self, case):
            theirs = case.anchor_responses.select(
                "prompt_id", rejected_id="id", rejected="response", rejected_score=pl.lit(0.0)
            )
            own = case.responses.select("prompt_id", chosen_id="id", chosen="response", chosen_score="score")
            return own.join(theirs, on="prompt_id").with_columns(source=pl.lit("responses"))

    made = run(FromAnchor(), TODAY[:1], SCORES, anchor=[response("a9", "anchor")])
    assert made.select("chosen_model", "rejected_model").rows() == [("of parent", "of anchor")]


@pytest.mark.parametrize(
    "strategy",
    [
        Anchored(),
        BeforeAfter(),
        Ranked(),
        Consistency(judges=("reward", "other")),
        Agreed(judges={"reward": 0, "other": 0}),
        TwoTurn(),
    ],
    ids=lambda s: s.strategy_name(),
)
def test_nothing_to_pair(strategy):
    assert run(strategy, [], {}).is_empty()
