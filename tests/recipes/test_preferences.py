"""Recipes that learn from pairs: what makes each method is there, and is not trivial."""

import polars as pl
import pytest

pytestmark = pytest.mark.timeout(600)


def learnt(rounds, name):
    return rounds.table(name, "preferences").filter(pl.col("error").is_null())


def scores(rounds, name, member):
    return dict(rounds.table(name, "judgments").filter(member=member).select("response_id", "score").rows())


def test_self_rewarding_grades_by_its_rubric(made):
    rounds = made("self_rewarding")
    points = pl.Series(scores(rounds, "b1", "rubric").values()).drop_nulls()
    assert points.n_unique() > 2
    assert points.is_between(0, 1).all()
    assert len(learnt(rounds, "b1"))
    assert set(rounds.curve("b1")["phase"]) == {"dpo"}
    assert len({rounds.digest(name) for name in ("r0t", "b1", "b2")}) == 3


def test_temporal_self_rewarding_anchors_its_rejections_and_is_led_by_the_future(made):
    rounds = made("temporal_self_rewarding")
    assert rounds.names == ["b1a", "b1", "b2a", "b2"]
    past, future = rounds.digest("r0t"), rounds.digest("b2a")
    pairs = rounds.table("b2", "pairs")
    assert past in set(pairs["rejected_model"])
    responses = rounds.table("b2", "responses")
    assert set(responses["author"]) == {"parent", "base", "anchor"}
    assert set(responses.filter(author="anchor")["model"]) == {future}
    assert set(pairs["chosen_model"]) <= {future, rounds.digest("b1")}
    assert rounds.plan("b2", "train").ancestors["parent"] == "b1"  # D_2 trains M_i, not the future model


def test_creams_smoothing_varies_from_row_to_row(made):
    rounds = made("cream")
    assert rounds.names == ["b1a", "b1", "b2"]  # fine-tuning comes first from a base alone
    smoothing = pl.concat([learnt(rounds, name)["smoothing"] for name in ("b1", "b2")])
    assert smoothing.n_unique() > 1
    assert smoothing.is_between(0, 1).all()
    assert scores(rounds, "b2", "implicit") != scores(rounds, "b2", "before")
    assert rounds.plan("b2", "judge").ancestors["anchor"] == "b1a"


def test_scirs_pairs_are_ordered_alike_by_both_rewards(made):
    rounds = made("scir")
    rubric, implicit = scores(rounds, "b1", "rubric"), scores(rounds, "b1", "implicit")
    pairs = rounds.table("b1", "pairs")
    assert len(pairs)
    for chosen, rejected in pairs.select("chosen_id", "rejected_id").rows():
        assert rubric[chosen] > rubric[rejected]
        assert implicit[chosen] > implicit[rejected]
    ranked = [id for id in rubric if rubric[id] is not None]
    by_rubric, by_likelihood = (sorted(ranked, key=lambda id: (by[id], id)) for by in (rubric, implicit))
    assert by_rubric != by_likelihood  # the two do disagree


def test_scl_pairs_first_and_second_turns_of_the_original_question(made):
    rounds = made("scl")
    refinements = rounds.table("b1", "refinements")
    assert set(refinements["success"].drop_nulls()) == {True, False}
    pairs = rounds.table("b1", "pairs")
    second = set(refinements["id"])
    assert len(pairs)
    assert all(
        (chosen in second) != (rejected in second)
        for chosen, rejected in pairs.select("chosen_id", "rejected_id").rows()
    )
    prompts = dict(rounds.table("b1", "prompts").select("id", "prompt").rows())
    assert all(prompts[id] == prompt for id, prompt in pairs.select("prompt_id", "prompt").rows())


def test_self_reinforcement_prefers_the_tuned_model(made):
    rounds = made("self_reinforcement")
    pairs = pl.concat(
        [rounds.table(name, "pairs").with_columns(tuned=pl.lit(rounds.digest(f"{name}a"))) for name in ("b1", "b2")]
    )
    assert len(pairs)
    assert (pairs["chosen_model"] == pairs["tuned"]).all()
    assert set(pairs["rejected_model"]) == {rounds.digest("r0t")}
    assert rounds.digest("b1a") != rounds.digest("r0t")


def test_spo_asks_both_orders(made):
    rounds = made("spo")
    rates = rounds.table("b1", "judgments").filter(member="win_rate")
    assert rates["score"].drop_nulls().n_unique() > 1
    assert rates.drop_nulls("score")["rationale"].str.contains("changed with the order").all()
    assert len(learnt(rounds, "b1"))


@pytest.mark.parametrize("recipe", ["selm", "t_reg"])
def test_methods_that_are_a_loss_train_by_it(made, recipe):
    rounds = made(recipe)
    assert set(rounds.plan("b1", "train").members) == {recipe}
    assert len(learnt(rounds, "b1"))
    assert rounds.digest("b1") != made("self_rewarding").digest("b1")  # the same pairs, another loss
    pairs, others = (made(name).table("b1", "preferences").drop("member") for name in (recipe, "self_rewarding"))
    assert pairs.equals(others)
