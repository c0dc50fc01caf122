"""The gates against hand-worked examples."""

import polars as pl
import pytest
from pydantic import ValidationError
from scipy.stats import wilcoxon

from tasks.core import frames, tables
from tasks.core.errors import ParamsError
from tasks.evaluate.alignment import alignment_measures
from tasks.gate import GateCase, GateOptions, gate, overall, per_item
from tasks.gate.alignment import Alignment
from tasks.gate.coverage import Coverage
from tasks.gate.diversity import Diversity
from tasks.gate.drift import Drift
from tasks.gate.forgetting import Forgetting
from tasks.gate.improves import Improves, mcnemar
from tasks.gate.no_regression import NoRegression

ARGUMENTS = tuple(i.argument for i in gate.inputs)
OWN = {"all", "trained", "errors"}
"""Decisions that are the stage's own."""


def empty(table):
    return frames.frame(tables.TABLES[table])


def evals(rates, mode="sampled", samples=4, split="validation", model="child", member="answers"):
    """Rows of `evals` in which item i{n} has `rates[n]` right among its samples."""
    rows = [
        {"id": f"{mode}{n}{k}", "item": f"i{n}", "split": split, "mode": mode, "sample": k, "correct": k < right,
         "response": "text", "model": model, "member": member}
        for n, right in enumerate(rates)
        for k in range(samples)
    ]  # fmt: skip
    return pl.concat(
        [empty("evals").collect(), pl.DataFrame(rows, schema_overrides={"sample": pl.Int32})], how="diagonal"
    )


def at(item, sample=None):
    """The rows of an item, or one of its samples."""
    return (pl.col("item") == item) & (pl.lit(sample is None) | (pl.col("sample") == (sample or 0)))


def failing(rows, where):
    """As the engine leaves answers that it could not give."""
    columns = {"response": None, "correct": None, "score": None}
    lost = {c: pl.when(~where).then(c) for c in columns}
    return rows.with_columns(**lost, error=pl.when(where).then(pl.lit("engine: out of memory")))


def ungraded(rows, where):
    """As answers are left that nobody can check or grade."""
    columns = {c: pl.when(~where).then(c) for c in ("correct", "score")}
    return rows.with_columns(**columns, error=pl.when(where).then(pl.lit("examiner: no score")))


def examined(grades, model="child", mode="sampled"):
    """Rows that nothing can check, with an examiner's grades: `grades[n]` of item i{n}."""
    rows = evals([0] * len(grades), mode, len(grades[0]), model=model).with_columns(correct=pl.lit(None, pl.Boolean))
    return rows.with_columns(score=pl.Series([g for item in grades for g in item], dtype=pl.Float64))


def measures(**values):
    rows = [{"name": n, "level": None, "value": v} for n, v in values.items()]
    return pl.DataFrame(rows, schema={"name": pl.String, "level": pl.Int32, "value": pl.Float64}).lazy()


def pairs(*gaps, judge="votes"):
    scores = {"chosen_score": [1.0] * len(gaps), "rejected_score": [1.0 - g for g in gaps]}
    return pl.DataFrame(scores | {"judge": [judge] * len(gaps)})


def case(split="validation", **inputs):
    blank = {name: empty(name.removeprefix("parent_").removeprefix("base_")) for name in ARGUMENTS}
    return GateCase(**blank | {k: v.lazy() for k, v in inputs.items()}, split=split)


def decide(members=None, options=None, **inputs):
    """The rows of `decisions` by gate, and the metrics."""
    every = {m.strategy_name(): m() for m in (Improves, NoRegression, Coverage, Diversity, Drift)}
    given = case(**inputs)
    result = gate(
        every if members is None else members, options or GateOptions(), **{n: getattr(given, n) for n in ARGUMENTS}
    )
    return {r["gate"]: r for r in result.frames["decisions"].collect().iter_rows(named=True)}, result.metrics


def refusals(rows):
    return {name for name, row in rows.items() if not row["passed"]}


# improves


def test_improves_needs_a_significant_gain():
    parent, child = evals([1] * 20), evals([3] * 20)
    (decision,) = Improves()(case(evals=child, parent_evals=parent))
    assert decision.passed
    assert decision.value == 0.5
    assert decision.metrics["gate_delta"] == 0.5
    assert decision.metrics["gate_p"] == wilcoxon([0.5] * 20, alternative="greater").pvalue < 0.001
    (same,) = Improves()(case(evals=parent, parent_evals=parent))
    assert not same.passed
    assert same.metrics["gate_p"] == 1.0
    (lenient,) = Improves(significant=False)(case(evals=parent, parent_evals=parent))
    assert lenient.passed
    (short,) = Improves(min_gain=0.6)(case(evals=child, parent_evals=parent))
    assert not short.passed


@pytest.mark.parametrize(
    ("settings", "child", "words"),
    [
        ({}, 3, ("+50.0 points on 20 problems, a significant gain (p ", "below 0.05")),
        ({}, 1, ("0.0 points on 20 problems, no gain (p 1, not below 0.05)",)),
        ({}, 0, ("-25.0 points on 20 problems, no gain",)),
        ({"min_gain": 0.6}, 3, ("+50.0 points", "less than min_gain, +60.0 points")),
        ({"significant": False}, 1, ("0.0 points", "not significantly worse (p 1")),
        ({"significant": False, "min_gain": -1}, 0, ("-25.0 points", "significantly worse (p ")),
    ],
)
def test_improves_says_what_a_difference_lacks_or_has(settings, child, words):
    (decision,) = Improves(**settings)(case(evals=evals([child] * 20), parent_evals=evals([1] * 20)))
    assert all(word in decision.reason for word in words), decision.reason
    assert "-0.0" not in decision.reason


def test_a_gain_that_may_be_chance_is_called_that():
    (decision,) = Improves()(case(evals=evals([2] + [1] * 19), parent_evals=evals([1] * 20)))
    assert "+1.2 points on 20 problems, which may be chance (p 0.159, not below 0.05)" in decision.reason


def test_a_significant_loss_is_refused_though_a_loss_is_allowed():
    (decision,) = Improves(significant=False, min_gain=-1)(case(evals=evals([1] * 20), parent_evals=evals([3] * 20)))
    assert not decision.passed


def test_items_are_paired_by_id_and_what_the_parent_has_no_score_of_does_not_count():
    parent = ungraded(evals([0, 2, 4]), at("i0"))
    (decision,) = Improves()(case(evals=evals([4, 2, 0]).sort("id", descending=True), parent_evals=parent))
    # i0 could not be checked; i1 stays at 1/2; i2 falls from 1 to 0
    assert decision.value == -0.5


def test_other_splits_and_modes_do_not_count():
    both = pl.concat([evals([4]), evals([0], split="heldout"), evals([0], mode="greedy")])
    assert per_item(both.lazy(), "sampled", "validation")["rate"].to_list() == [1.0]
    assert per_item(both.lazy(), "sampled", "heldout")["rate"].to_list() == [0.0]


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    # two-sided: 2·(C(6,0) + C(6,1))/2⁶ = 14/64; 2/2⁵; none; a tie
    [(1, 5, 14 / 64), (5, 0, 2 / 32), (0, 0, 1.0), (3, 3, 1.0)],
)
def test_mcnemar(gained, lost, p):
    assert mcnemar(gained, lost) == pytest.approx(p)


def test_greedy_is_measured_beside():
    child = pl.concat([evals([2, 2]), evals([1, 1, 0], "greedy", 1)])
    parent = pl.concat([evals([2, 2]), evals([0, 1, 0], "greedy", 1)])
    (decision,) = Improves()(case(evals=child, parent_evals=parent))
    assert decision.metrics["gate_greedy_delta"] == pytest.approx(1 / 3)
    assert decision.metrics["gate_greedy_p"] == 1.0


# Grades and failed answers


def test_an_examiners_grades_promote_where_nothing_can_be_checked():
    child, parent = examined([[0.8, 0.6]] * 20), examined([[0.4, 0.6]] * 20, model="parent")
    rows, metrics = decide({"improves": Improves(), "coverage": Coverage()}, evals=child, parent_evals=parent,
                           base_evals=parent)  # fmt: skip
    assert refusals(rows) == set()
    assert rows["improves"]["value"] == pytest.approx(0.2)  # 0.7 against 0.5
    assert metrics["gate_coverage"] == 1.0


def test_greedy_grades_are_compared_by_their_sign():
    child, parent = examined([[0.5], [0.9], [0.2]], mode="greedy"), examined([[0.4], [0.5], [0.2]], mode="greedy")
    same = evals([1])
    (decision,) = Improves()(case(evals=pl.concat([child, same]), parent_evals=pl.concat([parent, same])))
    assert decision.metrics["gate_greedy_delta"] == pytest.approx(0.5 / 3)
    assert decision.metrics["gate_greedy_p"] == pytest.approx(2 * 1 / 4)  # two of two better


def test_a_grade_of_a_half_solves_a_problem_but_a_check_stands_above_it():
    base = examined([[0.5, 0.1], [0.4, 0.4]])
    (decision,) = Coverage()(case(evals=examined([[0.5, 0.0], [1.0, 0.4]]), base_evals=base))
    assert (decision.value, decision.metrics["gate_new"]) == (1.0, 1.0)  # i0 of i0; i1 is new
    checked = examined([[1.0, 1.0], [1.0, 1.0]]).with_columns(correct=pl.col("item") == "i1")
    (decision,) = Coverage()(case(evals=checked, base_evals=base))
    assert decision.value == 0.0


@pytest.mark.parametrize("gate_", [Improves(), Coverage()])
def test_without_checks_and_grades_the_refusal_says_what_to_set(gate_):
    rows = evals([0] * 9).with_columns(correct=None)
    (decision,) = gate_(case(evals=rows, parent_evals=rows, base_evals=rows))
    assert not decision.passed
    assert "evaluate.answers.examiner" in decision.reason


def test_a_failed_answer_is_wrong_for_the_round_and_left_out_for_its_parent():
    whole = evals([2, 4])
    broken = failing(whole, at("i0", 0) | at("i1"))
    rates = per_item(broken.lazy(), "sampled", "validation")
    # i0 loses one right answer of two among four; nothing came back of i1
    assert rates.select("item", "rate", "unscored").rows() == [("i0", pytest.approx(1 / 3), 0.25), ("i1", None, 1.0)]
    (child,) = Improves()(case(evals=broken, parent_evals=whole))
    assert child.value == pytest.approx(((1 / 4 - 1 / 2) + (0 - 1)) / 2)
    (parent,) = Improves()(case(evals=whole, parent_evals=broken))
    assert parent.value == pytest.approx(1 / 2 - 1 / 3)  # i1 is left out


def test_an_engine_that_fails_on_hard_items_does_not_raise_a_rounds_rate():
    """The answers that fail are those that would have been wrong."""
    same = evals([2] * 40)
    broken = failing(same, pl.col("sample") == 2)
    (decision,) = Improves(significant=False)(case(evals=broken, parent_evals=same))
    assert decision.value == 0.0  # right are 2 of the 3 that came back, but 2 of the 4 that were asked for
    assert decision.metrics["gate_p"] == 1.0


@pytest.mark.parametrize(("failures", "passed"), [(1, True), (2, False)])
def test_too_many_failed_answers_are_refused(failures, passed):
    child = failing(evals([4] * 5), pl.any_horizontal(at(f"i{n}", 0) for n in range(failures)))  # of 20 answers
    inputs = {"evals": child, "parent_evals": evals([1] * 5, model="parent"), "base_evals": evals([1] * 5)}
    rows, _ = decide({}, **inputs)
    assert rows["errors"]["value"] == failures / 20
    assert (rows["errors"]["threshold"], rows["errors"]["passed"], rows["all"]["passed"]) == (0.05, passed, passed)
    lenient, _ = decide({}, GateOptions(max_error_share=0.1), **inputs)
    assert lenient["errors"]["passed"]


def test_an_unreadable_answer_has_not_failed():
    child = evals([0] * 5).with_columns(error=pl.lit("no answer"))
    assert decide({}, evals=child)[0]["errors"]["value"] == 0.0


def test_answers_that_cannot_be_graded_do_not_raise_a_rounds_rate():
    """It is right as often as its parent, and in the place of its mistakes it writes what nobody can grade."""
    parent = evals([2] * 40, model="parent")
    child = ungraded(evals([2] * 40), pl.col("sample") >= 2)
    (decision,) = Improves(significant=False)(case(evals=child, parent_evals=parent))
    assert (decision.value, decision.metrics["gate_p"]) == (0.0, 1.0)
    whole = ungraded(evals([4, 0] * 20), pl.col("item").str.extract(r"(\d+)").cast(int) % 2 == 1)
    (halves,) = Improves(significant=False)(case(evals=whole, parent_evals=parent))
    assert halves.value == 0.0  # i1, i3, … fall from 1/2 to 0
    rows, _ = decide({}, evals=child, parent_evals=parent, base_evals=parent)
    assert (rows["errors"]["passed"], rows["errors"]["value"]) == (False, 0.5)


def test_what_neither_the_parents_answers_can_be_graded_at_is_no_error():
    """One problem of ten is beyond the verifier: it says nothing of either round."""
    parent, child = (ungraded(evals([2] * 10, model=m), at("i0")) for m in ("parent", "child"))
    rows, _ = decide({}, evals=child, parent_evals=parent, base_evals=parent)
    assert (rows["errors"]["passed"], rows["errors"]["value"]) == (True, 0.0)


# The same weights


def test_a_round_that_trained_nothing_is_refused_though_every_gate_passes():
    lucky = {"evals": evals([3] * 20), "parent_evals": evals([1] * 20), "base_evals": evals([1] * 20)}
    rows, _ = decide({"improves": Improves(), "coverage": Coverage()}, **lucky)
    assert refusals(rows) == {"trained", "all"}
    assert "child" in rows["trained"]["reason"]
    trained = lucky | {"parent_evals": evals([1] * 20, model="parent")}
    assert refusals(decide({"improves": Improves()}, **trained)[0]) == set()


def test_weights_without_a_digest_are_not_taken_for_the_same():
    unknown = evals([1], model=None)
    rows, _ = decide({}, evals=unknown, parent_evals=unknown, base_evals=unknown)
    assert rows["trained"]["passed"]


# Members of the exam


def test_gates_look_at_one_member_of_the_exam():
    """By `answers` the round is better than its parent, by `hot` worse."""

    def of_both(cold, hot, model):
        return pl.concat([evals([cold] * 20, model=model), evals([hot] * 20, model=model, member="hot")])

    exam = {"evals": of_both(3, 1, "child"), "parent_evals": of_both(1, 3, "parent")} | {
        "base_evals": of_both(1, 3, "base")
    }
    now, before = measures(greedy=0.6, hot_greedy=0.3), measures(greedy=0.5, hot_greedy=0.5)
    exam |= {"measures": now, "parent_measures": before, "base_measures": before}
    members = {"improves": Improves(), "no_regression": NoRegression(), "coverage": Coverage()}
    rows, _ = decide(members, **exam)
    assert refusals(rows) == set()
    assert rows["improves"]["value"] == 0.5
    rows, _ = decide(members, GateOptions(member="hot"), **exam)
    assert rows["improves"]["value"] == -0.5
    assert refusals(rows) == {"all", "improves", "no_regression/greedy", "no_regression/total/greedy"}
    assert rows["no_regression/greedy"]["value"] == pytest.approx(-0.2)


def test_a_member_that_the_exam_does_not_have_is_refused_with_the_key_to_set():
    rows = evals([3] * 20, member="cold")
    decisions, _ = decide({"improves": Improves()}, evals=rows, parent_evals=rows, base_evals=rows)
    assert refusals(decisions) == {"improves", "errors", "all"}
    assert "evaluate.answers" in decisions["errors"]["reason"]
    assert "gate.member" in decisions["improves"]["reason"]


@pytest.mark.parametrize("name", sorted(OWN))
def test_no_member_is_named_as_a_decision_of_the_stage(name):
    with pytest.raises(ParamsError, match=f"gate.{name}"):
        decide({name: Improves()})
    assert Improves.reserved_names == OWN


# no_regression


def test_no_regression():
    before, now = measures(greedy=0.53, majority_at_8=0.8), measures(greedy=0.50, self_judge_balanced_accuracy=0.9)
    drops = {"greedy": 0.03, "majority_at_8": 0.03, "self_judge_balanced_accuracy": 0.05}
    gate_ = NoRegression(max_drop=drops, max_total_drop={})
    decisions = {d.gate: d for d in gate_(case(measures=now, parent_measures=before))}
    assert decisions["no_regression/greedy"].passed  # falls by exactly what is allowed
    assert decisions["no_regression/greedy"].value == pytest.approx(-0.03)
    assert not decisions["no_regression/majority_at_8"].passed  # not measured any more
    assert decisions["no_regression/self_judge_balanced_accuracy"].passed  # the parent has none
    (worse,) = NoRegression(max_drop={"greedy": 0.02}, max_total_drop={})(case(measures=now, parent_measures=before))
    assert not worse.passed


def test_small_drops_add_up_to_a_refusal_against_the_base():
    """Three points a round are allowed, and six in all: the third round of a steady fall is refused."""
    falls = [measures(greedy=0.9 - 0.03 * n) for n in range(4)]
    refused = []
    for n in (1, 2, 3):
        rounds = case(measures=falls[n], parent_measures=falls[n - 1], base_measures=falls[0])
        decisions = {d.gate: d for d in NoRegression()(rounds)}
        assert decisions["no_regression/greedy"].passed
        refused.append(not decisions["no_regression/total/greedy"].passed)
    assert refused == [False, False, True]
    assert decisions["no_regression/total/greedy"].value == pytest.approx(-0.09)
    assert decisions["no_regression/total/greedy"].metrics == {"gate_total_change/greedy": pytest.approx(-0.09)}
    assert decisions["no_regression/total/greedy"].threshold == -0.06


def test_default_measures_that_nobody_has_are_passed_over():
    ours, parents = measures(pass_at_1=0.5, grade=0.5), measures(pass_at_1=0.5, grade=0.6)
    (decision,) = NoRegression()(case(measures=ours, parent_measures=parents, base_measures=parents))[:1]
    assert (decision.gate, decision.passed) == ("no_regression/grade", False)
    assert NoRegression()(case(measures=measures(pass_at_1=0.5), parent_measures=measures(pass_at_1=0.5))) == []


def test_no_judge_is_measured_by_default():
    """A recipe without the parent's judge is not refused for that, and cannot raise its mark by another judge."""
    ours, parents = measures(greedy=0.5), measures(greedy=0.5, self_judge_balanced_accuracy=0.7)
    compared = NoRegression()(case(measures=ours, parent_measures=parents, base_measures=parents))
    assert {d.gate for d in compared} == {"no_regression/greedy", "no_regression/total/greedy"}
    named = NoRegression(max_drop={"self_judge_balanced_accuracy": 0.05}, max_total_drop={})
    assert [d.passed for d in named(case(measures=ours, parent_measures=parents))] == [False]


def test_a_measure_that_nobody_has_is_refused_with_the_nearest_name():
    both = measures(greedy=0.5, distinct_2=0.4)
    inputs = case(measures=both, parent_measures=both, base_measures=both)
    for key, gate_ in (("max_drop", "no_regression/gredy"), ("max_total_drop", "no_regression/total/gredy")):
        (mistyped,) = NoRegression(**{"max_drop": {}, "max_total_drop": {}} | {key: {"gredy": 0}})(inputs)
        assert (mistyped.gate, mistyped.passed) == (gate_, False)
        assert f"'gredy' of gate.no_regression.{key}; did you mean 'greedy'?" in mistyped.reason
    spread, _ = Diversity(measure="distinct2")(inputs)
    assert not spread.passed
    assert "'distinct2' of gate.diversity.measure; did you mean 'distinct_2'?" in spread.reason
    gone, _ = Diversity()(case(measures=measures(), parent_measures=measures(distinct_2=0.4)))
    new, _ = Diversity()(case(measures=measures(distinct_2=0.4), parent_measures=measures()))
    assert (gone.passed, new.passed) == (False, True)


# Splits


def test_gates_look_at_the_validation_set_and_on_request_at_the_held_out_one():
    """Better on the validation set and worse on the held-out one."""
    few, many = [1] * 20, [3] * 20
    good = pl.concat([evals(many), evals(few, split="heldout")])
    bad = pl.concat([evals(few, model="parent"), evals(many, split="heldout", model="parent")])
    names = {"self_judge_balanced_accuracy": 0.6, "validation_majority_at_8": 0.5, "majority_at_8": 0.5}
    ours = measures(validation_greedy=0.6, greedy=0.3, validation_distinct_2=0.5, distinct_2=0.1, entropy=0.1,
                    validation_entropy=0.5, response_tokens=30, validation_response_tokens=10, **names)  # fmt: skip
    theirs = measures(validation_greedy=0.5, greedy=0.5, validation_distinct_2=0.5, distinct_2=0.5, entropy=1.0,
                      validation_entropy=0.5, response_tokens=10, validation_response_tokens=10, **names)  # fmt: skip
    inputs = {"evals": good, "parent_evals": bad, "base_evals": bad, "measures": ours, "parent_measures": theirs,
              "base_measures": theirs}  # fmt: skip
    assert refusals(decide(**inputs)[0]) == set()
    assert refusals(decide(options=GateOptions(split="heldout"), **inputs)[0]) == {
        "all", "improves", "no_regression/greedy", "no_regression/total/greedy", "diversity", "drift/entropy",
        "drift/length",
    }  # fmt: skip


@pytest.mark.parametrize(("split", "other"), [("validation", "heldout"), ("heldout", "validation")])
def test_a_set_that_was_not_answered_is_refused_with_the_key_to_set(split, other):
    whole = pl.concat([evals([1]), evals([1], split="heldout")])
    part = pl.concat([evals([1], split=other), evals([1], "refined", split=split)]).with_columns(model=pl.lit("parent"))
    rows, _ = decide(options=GateOptions(split=split), evals=whole, parent_evals=part, base_evals=part)
    assert set(rows) == {"improves", "no_regression", "coverage", "diversity", "drift"} | OWN
    assert refusals(rows) == set(rows) - {"trained", "errors"}
    reason = rows["improves"]["reason"]
    assert f"no answer to a {split} problem by its parent, the base" in reason
    assert "evaluate.answers.splits" in reason and "gate.split" in reason


# coverage


def test_coverage_is_over_what_the_base_solved():
    child, base = evals([0, 4, 1, 2]), evals([1, 1, 1, 0])
    (decision,) = Coverage(min_share=0.6)(case(evals=child, base_evals=base))
    assert decision.value == pytest.approx(2 / 3)
    assert decision.passed
    assert decision.metrics["gate_new"] == 1
    (strict,) = Coverage(min_share=0.7)(case(evals=child, base_evals=base))
    assert not strict.passed


def test_coverage_over_other_problems_or_samples_says_nothing():
    base = evals([4, 4, 4, 4])
    (fewer,) = Coverage(min_share=0)(case(evals=evals([4]), base_evals=base))
    assert not fewer.passed
    assert fewer.reason.startswith("3 of 4 problems")
    (more,) = Coverage(min_share=0)(case(evals=evals([4] * 4, samples=8), base_evals=base))
    assert not more.passed
    assert more.reason.startswith("the base was sampled 4 times a problem and this round 8 times")
    (none,) = Coverage(min_share=0)(case(evals=base, base_evals=evals([0, 0])))
    assert not none.passed
    assert none.reason == "no sampled validation problem was solved by the base"


@pytest.mark.parametrize("lost", [lambda r: r.with_columns(correct=pl.when(pl.col("item") != "i0").then("correct")),
                                  lambda r: failing(r, at("i0"))])  # fmt: skip
def test_what_could_not_be_checked_or_failed_is_not_covered(lost):
    (decision,) = Coverage(min_share=0.7)(case(evals=lost(evals([4, 4, 4])), base_evals=evals([4, 4, 4])))
    assert decision.value == pytest.approx(2 / 3)
    assert not decision.passed


# diversity and drift: each fires on its planted fault, and is quiet on a clean round

CLEAN = {"distinct_2": 0.31, "entropy": 0.08, "response_tokens": 38.0}


def watched(gaps=(0.5, 0.6), **faults):
    """Names of the decisions of both gates that refuse a round with these faults, whose parent is clean."""
    round_ = case(measures=measures(**CLEAN | faults), parent_measures=measures(**CLEAN), pairs=pairs(*gaps),
                  parent_pairs=pairs(0.5, 0.6))  # fmt: skip
    return {d.gate for d in Diversity()(round_) + Drift()(round_) if not d.passed}


@pytest.mark.parametrize(
    "change",
    # the rounds r1 and r2 of the embedded base, one that changes nothing, and a wider gap
    [
        {"distinct_2": 0.19, "entropy": 0.027, "gaps": (0.6, 0.66)},
        {"distinct_2": 0.27, "entropy": 0.042, "response_tokens": 41.0, "gaps": (0.65,)},
        {},
        {"gaps": (0.9,)},
    ],
)
def test_clean_rounds_pass(change):
    assert watched(**change) == set()


@pytest.mark.parametrize(
    ("fault", "gate_"),
    [
        ({"distinct_2": 0.15}, "diversity"),
        ({"gaps": (0.55 * 9**-0.25,)}, "diversity/pairs"),  # nine-fold in four rounds
        ({"entropy": 0.015}, "drift/entropy"),
        ({"response_tokens": 80.0}, "drift/length"),
        ({"response_tokens": 18.0}, "drift/length"),
    ],
)
def test_a_planted_fault_is_refused_by_its_gate_alone(fault, gate_):
    assert watched(**fault) == {gate_}


def test_the_gap_of_pairs_is_measured_against_the_parents():
    inputs = {"pairs": pairs(0.5, 0.1), "filtered": pl.DataFrame({"kept": [True, False, False, False]})}
    spread, gap = Diversity(min_gap_ratio=0.6)(case(**inputs, parent_pairs=pairs(0.4, 0.6)))
    assert spread.metrics["gate_kept"] == 0.25
    assert (gap.gate, gap.passed, gap.value) == ("diversity/pairs", True, pytest.approx(0.6))
    assert gap.metrics == {"gate_pair_gap": pytest.approx(0.3), "gate_pair_gap_ratio": pytest.approx(0.6)}
    _, shrunk = Diversity(min_gap_ratio=0.7)(case(**inputs, parent_pairs=pairs(0.4, 0.6)))
    assert (shrunk.passed, shrunk.threshold) == (False, 0.7)


def test_gaps_of_two_judges_are_not_compared():
    """Log-likelihoods lie further apart than shares of votes; that they shrink to shares is no collapse."""
    _, gap = Diversity()(case(pairs=pairs(0.5), parent_pairs=pairs(40.0, judge="logprob")))
    assert (gap.passed, gap.value, gap.metrics) == (True, None, {"gate_pair_gap": 0.5})
    assert "logprob" in gap.reason and "votes" in gap.reason


@pytest.mark.parametrize(
    ("who", "inputs"), [("parent", {"pairs": pairs(0.5)}), ("round", {"parent_pairs": pairs(0.5)})]
)
def test_without_pairs_there_is_no_gap_to_shrink_and_the_decision_says_so(who, inputs):
    _, gap = Diversity()(case(**inputs))
    assert gap.passed
    assert gap.value is None
    assert who in gap.reason


def test_drift_without_measures():
    """An engine that gives no entropy is passed over; one that no longer gives it is not."""
    lengths, both = measures(response_tokens=10), measures(response_tokens=10, entropy=0.5)
    assert [d.passed for d in Drift()(case(measures=lengths, parent_measures=lengths))] == [True, True]
    assert [d.passed for d in Drift()(case(measures=lengths, parent_measures=both))] == [False, True]
    assert [d.passed for d in Drift()(case(measures=both, parent_measures=lengths))] == [True, True]
    certain = measures(response_tokens=0, entropy=0)
    assert [d.passed for d in Drift()(case(measures=both, parent_measures=certain))] == [True, True]


def test_drift_names_the_bound_that_is_near():
    round_ = case(measures=measures(response_tokens=15), parent_measures=measures(response_tokens=10))
    _, longer = Drift()(round_)
    assert (longer.value, longer.threshold) == (1.5, 2.0)
    assert longer.metrics == {"gate_length_ratio": 1.5}
    _, short = Drift(min_length_ratio=0.9)(
        case(measures=measures(response_tokens=8), parent_measures=measures(response_tokens=10))
    )
    assert (short.value, short.threshold, short.passed) == (0.8, 0.9, False)
    with pytest.raises(ValidationError, match="min_length_ratio"):
        Drift(min_length_ratio=3)


# alignment and forgetting: what the probes of the same names measure


def test_a_drop_of_what_is_refused_blocks():
    def decided(change, **how):
        return Alignment(**how)(case(measures=measures(alignment_change=change)))[0]

    assert decided(-0.03).passed and decided(0.5).passed
    fallen = decided(-0.1)
    assert (fallen.passed, fallen.value, fallen.threshold) == (False, pytest.approx(-0.1), -0.03)
    assert fallen.metrics == {"gate_alignment": pytest.approx(-0.1)}
    assert decided(-0.1, max_drop=0.1).passed


def test_problems_that_one_of_the_two_failed_at_do_not_make_a_drop():
    """The base refuses 9 of 10, and fails at the one that the model answers."""
    shares = {m.name: m.value for m in alignment_measures([True] * 9 + [None], [True] * 9 + [False])}
    assert (shares["alignment_base_refusal"], shares["alignment_refusal"]) == (1.0, 0.9)
    [decision] = Alignment()(case(measures=measures(**shares)))
    assert (decision.passed, decision.value) == (True, 0.0)


def test_forgetting_has_a_bound_for_each_ancestor():
    values = {"forgetting_parent": 0.1, "forgetting_base": 0.2}
    parent, base = Forgetting()(case(measures=measures(**values)))
    assert (parent.gate, parent.passed, parent.value, parent.threshold) == ("forgetting/parent", True, 0.1, 0.1)
    assert (base.gate, base.passed, base.metrics) == ("forgetting/base", False, {"gate_forgetting/base": 0.2})
    named = {f"again_{n}": v for n, v in values.items()}
    assert [d.value for d in Forgetting(member="again")(case(measures=measures(**named)))] == [0.1, 0.2]


@pytest.mark.parametrize("gate_", [Alignment(member="frozen"), Forgetting(member="frozen")])
def test_what_nobody_measured_is_refused_with_the_member_to_add(gate_):
    decisions = gate_(case())
    assert not any(d.passed for d in decisions)
    assert all("add frozen to evaluate" in d.reason for d in decisions)


# The stage


def test_the_stage_reads_the_parents_pairs_and_the_bases_measures():
    assert {"parent_pairs", "base_measures", "base_evals"} < set(ARGUMENTS)
    assert gate.many and gate.bases == "no"


def test_nothing_to_look_at_is_decided_and_not_promoted():
    rows, _ = decide({"improves": Improves(), "coverage": Coverage(), "diversity": Diversity()})
    assert set(rows) == {"improves", "coverage", "diversity"} | OWN
    assert not rows["errors"]["passed"]
    assert not rows["all"]["passed"]
    assert rows["all"]["reason"] == "refused by errors, coverage, diversity, improves"


def test_all_is_the_conjunction():
    inputs = {"evals": evals([3] * 20), "parent_evals": evals([1] * 20, model="parent"), "base_evals": evals([1] * 20)}
    rows, metrics = decide({"improves": Improves(), "coverage": Coverage()}, **inputs)
    assert (rows["all"]["passed"], rows["all"]["value"], rows["all"]["threshold"]) == (True, 4.0, 4.0)
    assert metrics["gate_coverage"] == 1.0


def test_two_members_of_one_strategy_stand_side_by_side():
    inputs = {"evals": evals([2] * 20), "parent_evals": evals([1] * 20, model="parent"), "base_evals": evals([1] * 20)}
    now = measures(greedy=0.5)
    members = {
        "improves": Improves(), "clearly": Improves(min_gain=0.5),
        "strict": NoRegression(max_drop={"greedy": 0}, max_total_drop={}),
    }  # fmt: skip
    rows, metrics = decide(members, measures=now, parent_measures=now, **inputs)
    assert set(rows) == {"improves", "clearly", "strict/greedy"} | OWN
    assert refusals(rows) == {"clearly", "all"}
    assert metrics["gate_delta"] == metrics["gate_delta/clearly"] == 0.25
    assert metrics["gate_change/greedy/strict"] == 0.0


def test_overall_leaves_levels_out():
    frame = pl.DataFrame({"name": ["a", "a"], "level": [None, 2], "value": [0.5, 0.1]})
    assert overall(frame.lazy(), "validation") == {"a": 0.5}
