"""Recipes that fine-tune on rows: what makes each method is there, and is not trivial."""

import polars as pl
import pytest

from tasks.collect.rationales import CORRECT, INCORRECT

pytestmark = pytest.mark.timeout(600)


def trained(rounds, name):
    return rounds.table(name, "training").filter(pl.col("error").is_null())


def test_sharpen_learns_from_its_own_votes(made):
    rounds = made("sharpen")
    votes = rounds.table("b1", "judgments").filter("reward")["score"].drop_nulls()
    assert votes.n_unique() > 2
    assert "verifier" not in rounds.plan("b1", "filter").model_dump_json()
    assert rounds.metrics("b2", "train")["trained"] == 1


def test_star_starts_each_round_from_the_base_and_learns_right_answers_alone(made):
    rounds = made("star")
    right = rounds.right("b2")
    assert {right[id] for id in trained(rounds, "b2")["response_id"]} == {True}
    assert False in right.values()
    assert rounds.plan("b2", "train").members["sft"]["start"] == "base"
    assert rounds.plan("b2", "train").ancestors == {"base": "r0t"}


def test_re_rest_reflects_on_failures_with_the_environments_feedback(made):
    rounds = made("re_rest")
    right, refinements = rounds.right("b1"), rounds.table("b1", "refinements")
    assert len(refinements)
    assert not any(right[id] for id in refinements["response_id"])
    assert refinements["hinted"].all()
    assert rounds.table("b1", "critiques")["critique"].str.contains("is wrong").all()
    reflected = trained(rounds, "b1").filter(source="refinements")
    assert len(reflected)
    assert not any("is wrong" in turn["content"] for chat in reflected["prompt"] for turn in chat)  # the hint is gone


def test_nft_learns_from_wrong_answers_too(made):
    rounds = made("nft")
    rows = trained(rounds, "b1")
    assert set(rows["label"]) == {True, False}
    assert (rows.group_by("group").agg(pl.col("label").n_unique())["label"] == 2).any()
    assert set(rounds.curve("b1")["phase"]) == {"nft"}
    assert rounds.digest("b1") != rounds.digest("r0t")


def test_mistake_tuning_trains_on_both_tags(made):
    from tasks.training.tags import with_tags

    rounds = made("mistake_tuning")
    rows = trained(rounds, "b1")
    assert set(rows["tag"]) == {CORRECT, INCORRECT}
    texts = [row["completion"][0]["content"] for row in with_tags(rows).iter_rows(named=True)]
    assert all(text.startswith((CORRECT, INCORRECT)) for text in texts)
    right = rounds.right("b1")
    assert {(tag == CORRECT) == right[id] for tag, id in rows.select("tag", "response_id").rows()} == {True}


def test_ensemble_instruct_has_two_models_that_disagree(made):
    rounds = made("ensemble_instruct")
    assert rounds.table("b2", "prompts").filter(pl.col("error").is_null())["model"].n_unique() == 2
    responses = rounds.table("b2", "responses").drop_nulls("answer")
    assert set(responses["author"]) == {"parent", "base"}
    assert responses["model"].n_unique() == 2
    answers = responses.group_by("prompt_id", "author").agg(pl.col("answer").mode().sort().first())
    by_author = answers.pivot("author", index="prompt_id", values="answer").drop_nulls()
    assert (by_author["parent"] != by_author["base"]).any()


def test_evol_prefers_what_is_novel_among_the_majoritys_answers(made):
    rounds = made("evol")
    kept = rounds.table("b1", "filtered").filter("kept")
    assert kept["margin"].n_unique() > 1
    votes = dict(rounds.table("b1", "judgments").filter("reward").select("response_id", "verdict").rows())
    assert "fail" not in {votes[id] for id in kept["id"]}
    responses = rounds.table("b1", "responses").drop_nulls("answer")
    likeliest = responses.sort("mean_logprob", descending=True).group_by("prompt_id", "answer").agg(pl.first("id"))
    assert not set(kept["id"]) <= set(likeliest["id"])  # not what the default filter would keep


@pytest.mark.parametrize("control", ["random", "verifier"])
def test_controls(made, control):
    rounds = made(control)
    right = [rounds.right("b1")[id] for id in trained(rounds, "b1")["response_id"]]
    assert all(right) == (control == "verifier")
    assert any(right)
