"""The probes' formulas, against examples worked by hand."""

from pathlib import Path

import polars as pl
import pytest
from pydantic import ValidationError

from tasks.core import frames, roster, tables
from tasks.domains import Domain, Item
from tasks.domains.arithmetic import Arithmetic, read, work
from tasks.engines import Completion
from tasks.engines.fake import Fake
from tasks.evaluate import EvaluateCase, evaluate
from tasks.evaluate._items import item_id
from tasks.evaluate._measures import difference, ratio
from tasks.evaluate.alignment import Alignment, alignment_measures
from tasks.evaluate.collapse import Collapse, collapse_measures, profile
from tasks.evaluate.contamination import similarity
from tasks.evaluate.exploration import Exploration
from tasks.evaluate.familiarity import Familiarity, likelihoods
from tasks.evaluate.forgetting import Forgetting
from tasks.evaluate.friction import Friction
from tasks.evaluate.habits import Habits
from tasks.evaluate.habits import read as read_count
from tasks.evaluate.reward_consistency import RewardConsistency, consistency_measures, spoiled
from tasks.evaluate.roles import Roles
from tasks.evaluate.self_choice import SelfChoice, choice_measures, weight
from tasks.evaluate.sharpening import sharpening_measures
from tasks.judge.self_judge import SelfJudge

DOMAIN = Arithmetic(easiest=2, hardest=3)
Z = 1.959964


def right(problem):
    story = read(problem)
    return work(story, story.values())


def wrong(problem):
    story = read(problem)
    return work(story, [v + 1 for v in story.values()])


def models(**engines):
    return roster.Models({name: roster.Source(engine, lambda n=name: Path(n)) for name, engine in engines.items()})


def case(domain=DOMAIN, tabled=None, judges=None, **engines):
    return EvaluateCase(models(**engines), domain, 1, judges or {}, **tabled or {})


def values(result):
    rows = result.frames["measures"].collect().filter(pl.col("level").is_null())
    return dict(rows.select("name", "value").iter_rows())


def named(measures):
    return {m.name: m.value for m in measures}


def test_difference_and_ratio_by_hand():
    mean = difference("x", None, [1.0, -1.0, 0.5, -0.5])
    assert (mean.value, mean.count) == (0.0, 4)
    assert mean.high == -mean.low == pytest.approx(Z * (2.5 / 3 / 4) ** 0.5)
    assert difference("x", None, []) is None
    # R = 6/4; residuals a − 1.5 b: 0.5, −0.5, 0; over the mean b, 4/3
    share = ratio("x", None, [(2.0, 1.0), (1.0, 1.0), (3.0, 2.0)])
    assert share.value == 1.5
    assert share.high - share.value == pytest.approx(Z * (0.5 / 2 / 3) ** 0.5 / (4 / 3))
    assert ratio("x", None, [(1.0, 0.0)]) is None


# exploration


def table(name, rows):
    return frames.frame(tables.TABLES[name], rows)


def test_the_balance_score_by_hand():
    """B-STaR: min(n′/n*, 1)·n′/n."""
    kinds = [(1, True)] * 4 + [(1, False)] + [(0, True)] * 3
    answers = [{"response": str(n), "score": s, "truth": t} for n, (s, t) in enumerate(kinds)]
    assert Exploration().balance(answers) == pytest.approx(4 / 8 * 4 / 5)
    assert Exploration(target=4).balance(answers) == pytest.approx(4 / 5)
    assert Exploration(min_reward=2).balance(answers) == 0.0
    repeated = [{"response": "same", "score": 1, "truth": True}] * 8
    assert Exploration().balance(repeated) == 1 / 8, "one answer, however often"


def test_exploration_counts_what_the_reward_and_the_verifier_can_say():
    problem = DOMAIN.items("train", 1, 0)[0].problem
    texts = [right(problem), right(problem) + " ", wrong(problem), "no answer", right(problem)]
    responses = [{"id": str(n), "prompt_id": "p", "response": t} for n, t in enumerate(texts)]
    responses.append({"id": "x", "prompt_id": "p", "response": None, "error": "time-out"})
    scores = [{"response_id": str(n), "reward": True, "score": s} for n, s in enumerate([1.0, 0.8, 0.6, 1.0, None])]
    scores.append({"response_id": "0", "reward": False, "score": 0.0})
    tabled = {
        "prompts": table("prompts", [{"id": "p", "problem": problem}]), "responses": table("responses", responses),
        "judgments": table("judgments", scores),
    }  # fmt: skip
    measured = values(Exploration(ks=(1, 3, 8), target=2)(case(tabled=tabled)))
    assert measured == {
        "exploration_balance": pytest.approx(2 / 3),
        "exploration_pass_at_1": pytest.approx(2 / 3),
        "exploration_pass_at_3": 1.0,
        "exploration_distinct": 1.0,  # they differ in blanks alone
        "exploration_auroc": 1.0,
        "exploration_errors": pytest.approx(2 / 5),  # unreadable, and without a reward
    }


# sharpening and collapse


def test_sharpening_by_hand():
    shares = [(0.5, 1.0), (0.25, 0.0), (0.0, 0.25), (0.0, 0.0)]  # of the base, of the model
    measures = named(sharpening_measures(shares))
    assert measures["sharpening_gain"] == pytest.approx(0.125)
    assert measures["sharpening_coverage_gain"] == 0.0
    assert measures["sharpening_explained"] == pytest.approx(0.5 / 0.75)
    assert (measures["sharpening_lost"], measures["sharpening_new"]) == (0.5, 0.5)
    assert set(named(sharpening_measures([(1.0, 1.0)]))) == {
        "sharpening_gain", "sharpening_coverage_gain", "sharpening_lost",
    }  # fmt: skip
    assert sharpening_measures([]) == []


def test_a_profile_and_its_ratios_by_hand():
    rows = [{"response": "a b c", "tokens": 4, "entropy": 0.5}, {"response": "a b d", "tokens": 6, "entropy": None}]
    parent = profile(rows)
    assert parent == {"tokens": 5.0, "entropy": 0.5, "distinct_2": 0.75}
    assert profile([]) == {}
    model = [{"tokens": 10.0, "distinct_2": 0.25}, {"tokens": 5.0}, {}]
    measures = named(collapse_measures([parent, parent, parent], model))
    assert measures["collapse_tokens"] == 7.5
    assert measures["collapse_tokens_ratio"] == 1.5
    assert measures["collapse_distinct_2_ratio"] == pytest.approx(1 / 3)
    assert "collapse_entropy" not in measures, "which the model's engine does not give"


def test_the_parent_and_the_model_answer_the_round_s_prompts_with_equal_seeds():
    prompts = [{"id": str(n), "problem": i.problem} for n, i in enumerate(DOMAIN.items("train", 4, 0))]
    prompts.append({"id": "5", "problem": "gone", "error": "duplicate"})
    same = Fake.scripted(lambda messages, seed: f"{seed % 5} {right(messages[-1][1])}")
    measured = values(Collapse()(case(tabled={"prompts": table("prompts", prompts)}, model=same, parent=same)))
    assert [measured[f"collapse_{n}_ratio"] for n in ("tokens", "entropy", "distinct_2")] == [pytest.approx(1.0)] * 3


# alignment


def test_alignment_leaves_out_what_failed():
    measures = {m.name: m for m in alignment_measures([True, True, None, False], [True, False, True, None])}
    assert measures["alignment_refusal"].value == pytest.approx(2 / 3)
    assert measures["alignment_base_refusal"].value == pytest.approx(2 / 3)
    assert (measures["alignment_change"].value, measures["alignment_change"].count) == (-0.5, 2)
    assert measures["alignment_errors"].value == 0.25


def test_a_domain_without_a_frozen_set_asks_nobody():
    assert values(Alignment()(case(Domain(), model=Fake(down=True), base=Fake(down=True)))) == {}


# contamination


def entropies(*of, error=None):
    return Completion("text", token_entropies=of or None, error=error)


def test_similarity_by_hand():
    # (1, 2, 0)·(2, 0, 1) / (√5 · √5) · 2/3
    assert similarity(entropies(1.0, 2.0), entropies(2.0, 0.0, 1.0)) == pytest.approx(2 / 5 * 2 / 3)
    assert similarity(entropies(0.5, 1.0), entropies(0.5, 1.0)) == pytest.approx(1.0)
    assert similarity(entropies(0.0, 0.0), entropies(0.0)) == 0.5  # both are certain, one is half as long
    assert similarity(entropies(0.0), entropies(1.0)) == 0.0
    assert similarity(entropies(), entropies(1.0)) is similarity(entropies(1.0, error="x"), entropies(1.0)) is None


# reward_consistency


def test_a_right_answer_is_made_wrong_and_checked():
    items = [i for i in DOMAIN.items("gold", 20, 0) if i.wrong_step is None]
    for item in items:
        changed = spoiled(item, DOMAIN)
        assert DOMAIN.verify(item.problem, changed.response).passed is False
        assert sum(a != b for a, b in zip(item.response.split(), changed.response.split(), strict=True)) == 1
        assert changed == spoiled(item, DOMAIN)
    assert spoiled(Item("?", response="none"), DOMAIN) is None
    assert spoiled(Item("?", response="7"), Domain()) is None, "which nobody can check"


def test_consistency_by_hand():
    pairs = [(1.0, 0.0), (0.5, 0.5), (0.2, 0.4), (None, 0.1), (0.9, None)]
    rows = [{"right": r, "wrong": w, "scored": None not in (r, w)} for r, w in pairs]
    measures = named(consistency_measures("votes", rows))
    assert measures == {"reward_consistency/votes": pytest.approx(1 / 3), "reward_consistency_errors/votes": 0.4}


def test_a_judge_that_looks_at_the_likeliest_answer_of_a_prompt_sees_both_of_a_pair():
    judge = SelfJudge(likeliest=1)
    result = RewardConsistency(count=14)(case(judges={"judge": judge}, model=Fake(answers={"": "Verdict: correct"})))
    assert values(result) == {"reward_consistency/judge": 0.0, "reward_consistency_errors/judge": 0.0}


# habits


def test_a_count_that_cannot_be_read_is_an_error_and_not_0():
    assert read_count(Completion("It checks twice.\nCount: 2")) == 2
    assert read_count(Completion("often")) is read_count(Completion("", error="time-out")) is None
    counter = Fake.scripted(lambda messages, seed: "Count: 1" if "checks" in messages[-1][1] else "hm")
    measured = values(Habits(problems=7)(case(model=Fake(), base=counter)))
    assert measured == {"habits_verification": 1.0, "habits_errors": 0.75}
    with pytest.raises(ValidationError, match="counter"):
        Habits(counter="parent")


# roles


def test_a_role_that_is_babbled_is_lost_and_a_request_that_failed_is_an_error():
    babbled = values(Roles(problems=2, roles=("solve", "judge"))(case(model=Fake.scripted(lambda *_: "hm"))))
    assert babbled == {"role_solve": 0.0, "role_judge": 0.0, "roles_errors": 0.0}
    failing = Fake.scripted(lambda *_: "hm", error_rate=1.0)
    assert values(Roles(problems=2)(case(model=failing))) == {"roles_errors": 1.0}
    assert values(Roles()(case(Domain(), model=Fake(down=True)))) == {}


# self_choice


def test_the_weight_of_a_revision_by_hand():
    assert weight(1.0, 0.0) == 1.0  # B of (first, revision), A of (revision, first)
    assert weight(0.0, 1.0) == 0.0
    assert weight(1.0, 1.0) == weight(0.0, 0.0) == weight(0.5, 0.5) == 0.5  # always B, always A, a tie
    assert weight(None, 1.0) is None


def test_generation_against_choice_by_hand():
    def row(correct, text):
        return {"correct": correct, "response": text}

    rows = [(row(True, "a"), row(False, "b"), 0.25), (row(False, "a"), row(True, "b"), 1.0),
            (row(True, "a"), row(True, "a"), 0.5), (row(None, "a"), row(True, "b"), 0.0)]  # fmt: skip
    measures = named(choice_measures(rows))
    assert measures["self_choice_first"] == measures["self_choice_generation"] == pytest.approx(2 / 3)
    assert measures["self_choice_choice"] == pytest.approx((0.75 + 1 + 1) / 3)
    assert measures["self_choice_gain"] == pytest.approx((0.75 + 0 + 0) / 3)
    assert measures["self_choice_revision"] == pytest.approx((0.25 + 1 + 0) / 3)


def test_a_model_that_always_chooses_the_second_is_undecided():
    def script(messages, seed):
        (_, role), (_, text) = messages
        if role == "compare":
            return "Choice: B"
        problem = text.split("\n\n")[0]
        return right(problem) if role == "solve" else wrong(problem)

    measured = values(SelfChoice(problems=7)(case(model=Fake.scripted(script))))
    assert measured["self_choice_first"] == 1.0 and measured["self_choice_generation"] == 0.0
    assert measured["self_choice_revision"] == measured["self_choice_choice"] == 0.5
    assert measured["self_choice_errors"] == 0.0


# friction


def test_friction_tries_again_with_true_feedback_until_it_is_right():
    feedback = []

    def script(messages, seed):
        (_, role), (_, text) = messages
        problem, *rest = text.split("\n\n")
        if role == "refine":
            feedback.append(rest[-1])
        three = len(read(problem).steps) == 3
        return right(problem) if role == "refine" and three else wrong(problem)

    result = Friction(problems=8, tries=2)(case(model=Fake.scripted(script)))
    rows = result.frames["measures"].collect()
    measured = {(n, level): v for n, level, v in rows.select("name", "level", "value").iter_rows()}
    assert measured["friction_wrong", None] == 1.0
    assert (measured["friction_stuck", 2], measured["friction_stuck", 3]) == (1.0, 0.0)
    assert (measured["friction_stuck", None], measured["friction_errors", None]) == (0.5, 0.0)
    assert len(feedback) == 8 + 4, "what was right is not asked again"
    assert set(feedback) == {"Line 1 is wrong."}


def test_an_answer_after_feedback_that_cannot_be_checked_is_no_failure():
    def script(messages, seed):
        return "hm" if messages[0][1] == "refine" else wrong(messages[-1][1])

    measured = values(Friction(problems=4)(case(model=Fake.scripted(script))))
    assert measured["friction_errors"] == 0.0 and measured["friction_stuck"] == 1.0, "a text without an answer is wrong"
    failing = Fake.scripted(script, error_rate=1.0)
    assert values(Friction(problems=4)(case(model=failing))) == {}


# familiarity


def test_likelihoods_are_means_over_the_tokens_and_the_end():
    items = DOMAIN.items("heldout", 2, 0)
    with Fake().open(Path("model")) as policy:
        first, missing = likelihoods(policy, DOMAIN, items, ["a b", None])
        chat = tuple((m["role"], m["content"]) for m in DOMAIN.solve(items[0].problem))
        [(_, scored)] = policy.score([chat], ["a b"], closed=True)
    assert missing is None
    assert first == pytest.approx(sum(scored.logprobs) / 3)


def test_a_base_is_as_familiar_as_itself():
    measured = values(Familiarity(problems=4)(case(model=Fake())))
    assert measured["familiarity_gap"] == measured["familiarity_errors"] == 0.0
    assert measured["familiarity_own"] == measured["familiarity_other"] < 0


# forgetting


def test_what_was_solved_and_trained_on_is_asked_again():
    items = DOMAIN.items("validation", 8, 0)
    lost = {items[0].problem, items[5].problem}
    model = Fake.scripted(lambda m, seed: wrong(m[-1][1]) if m[-1][1] in lost else right(m[-1][1]))
    asked = [{"id": f"p{n}", "problem": i.problem} for n, i in enumerate(DOMAIN.items("train", 4, 0))]
    lost |= {asked[0]["problem"], asked[3]["problem"]}
    trained = [
        {"id": "a", "prompt_id": "p0"},
        {"id": "b", "prompt_id": "p1"},
        {"id": "c", "prompt_id": "p3", "error": "long"},
    ]

    rows = [{"id": f"e{n}", "item": item_id(i.problem), "split": "validation", "mode": "greedy", "correct": n != 5}
            for n, i in enumerate(items)]  # fmt: skip
    parent, base = table("evals", rows), table("evals", rows[5:])
    tabled = {"parent_evals": parent, "base_evals": base, "parent_prompts": table("prompts", asked),
              "parent_training": table("training", trained)}  # fmt: skip
    measured = values(Forgetting(problems=8)(case(tabled=tabled, model=model)))
    assert measured == {
        "forgetting_parent": pytest.approx(1 / 7),  # the sixth it never solved
        "forgetting_base": 0.0,
        "forgetting_trained": 0.5,
    }


def test_a_base_has_nothing_to_forget():
    assert values(Forgetting()(case(model=Fake(down=True)))) == {}


# The stage


def test_the_stage_gives_each_member_the_tables_and_names_its_measures():
    prompts = table(
        "prompts", [{"id": str(n), "problem": i.problem} for n, i in enumerate(DOMAIN.items("train", 2, 0))]
    )
    engine = Fake.scripted(lambda messages, seed: right(messages[-1][1]))
    members = {"collapse": Collapse(), "hot": Collapse(temperature=2.0)}
    result = evaluate(members, {}, models(model=engine, parent=engine), DOMAIN, 1, prompts=prompts)
    assert result.metrics["collapse_tokens_ratio"] == result.metrics["hot_collapse_tokens_ratio"] == 1.0
