"""The gates against hand-worked examples."""

import polars as pl
import pytest
from scipy.stats import wilcoxon

from tasks import tables
from tasks.gate import Evidence, Gate, gate, overall, per_item
from tasks.gate.coverage import Coverage
from tasks.gate.diversity import Diversity
from tasks.gate.improves import Improves, mcnemar
from tasks.gate.no_regression import NoRegression

ARGUMENTS = ("evals", "measures", "pairs", "filtered", "parent_evals", "parent_measures", "base_evals")


def empty(table):
    return tables.frame(tables.TABLES[table])


def evals(rates, mode="sampled", samples=4, split="validation"):
    """Rows of `evals` in which item i{n} has `rates[n]` right among its samples."""
    rows = [
        {"id": f"{mode}{n}{k}", "item": f"i{n}", "split": split, "mode": mode, "sample": k, "correct": k < right}
        for n, right in enumerate(rates)
        for k in range(samples)
    ]
    return pl.concat(
        [empty("evals").collect(), pl.DataFrame(rows, schema_overrides={"sample": pl.Int32})], how="diagonal"
    )


def measures(**values):
    rows = [{"name": n, "level": None, "value": v} for n, v in values.items()]
    return pl.DataFrame(rows, schema={"name": pl.String, "level": pl.Int32, "value": pl.Float64}).lazy()


def evidence(**given):
    frames = {name: empty(name.removeprefix("parent_").removeprefix("base_")) for name in ARGUMENTS}
    return Evidence(**frames | {k: v.lazy() for k, v in given.items()})


def test_improves_needs_a_significant_gain():
    parent, child = [1] * 20, [3] * 20
    (decision,) = Improves()(evidence(evals=evals(child), parent_evals=evals(parent)))
    assert decision.passed
    assert decision.value == 0.5
    assert decision.metrics["gate_delta"] == 0.5
    assert decision.metrics["gate_p"] == wilcoxon([0.5] * 20, alternative="greater").pvalue < 0.001
    (same,) = Improves()(evidence(evals=evals(parent), parent_evals=evals(parent)))
    assert not same.passed
    assert same.metrics["gate_p"] == 1.0
    (lenient,) = Improves(significant=False)(evidence(evals=evals(parent), parent_evals=evals(parent)))
    assert lenient.passed
    (less,) = Improves(least=0.6)(evidence(evals=evals(child), parent_evals=evals(parent)))
    assert not less.passed


def test_a_significant_loss_is_refused_though_a_loss_is_allowed():
    (decision,) = Improves(significant=False, least=-1)(evidence(evals=evals([1] * 20), parent_evals=evals([3] * 20)))
    assert not decision.passed


def test_items_are_paired_by_id_and_errors_do_not_count():
    child = (
        evals([4, 2, 0])
        .sort("id", descending=True)
        .with_columns(correct=pl.when(pl.col("item") == "i0").then(None).otherwise(pl.col("correct")))
    )
    (decision,) = Improves()(evidence(evals=child, parent_evals=evals([0, 2, 4])))
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
    (decision,) = Improves()(evidence(evals=child, parent_evals=parent))
    assert decision.metrics["gate_greedy_delta"] == pytest.approx(1 / 3)
    assert decision.metrics["gate_greedy_p"] == 1.0


def test_no_regression():
    before, now = measures(greedy=0.53, majority_at_8=0.8), measures(greedy=0.50, judge_balanced_accuracy=0.9)
    found = {d.gate: d for d in NoRegression()(evidence(measures=now, parent_measures=before))}
    assert found["no_regression/greedy"].passed  # falls by exactly what is allowed
    assert found["no_regression/greedy"].value == pytest.approx(-0.03)
    assert not found["no_regression/majority_at_8"].passed  # not measured any more
    assert found["no_regression/judge_balanced_accuracy"].passed  # the parent has none
    (worse,) = NoRegression(most={"greedy": 0.02})(evidence(measures=now, parent_measures=before))
    assert not worse.passed


def test_a_measure_that_nobody_has_is_refused_with_the_nearest_name():
    given = evidence(
        measures=measures(greedy=0.5, distinct_2=0.4), parent_measures=measures(greedy=0.5, distinct_2=0.4)
    )
    (mistyped,) = NoRegression(most={"gredy": 0})(given)
    assert not mistyped.passed
    assert "'gredy' of gate.panel.no_regression.most; did you mean 'greedy'?" in mistyped.reason
    (spread,) = Diversity(measure="distinct2")(given)
    assert not spread.passed
    assert "gate.panel.diversity.measure 'distinct2'; did you mean 'distinct_2'?" in spread.reason
    (gone,) = Diversity()(evidence(measures=measures(), parent_measures=measures(distinct_2=0.4)))
    (new,) = Diversity()(evidence(measures=measures(distinct_2=0.4), parent_measures=measures()))
    assert (gone.passed, new.passed) == (False, True)


def decided(split="validation", **given):
    """The rows of `decisions` by gate, from a panel of all gates."""
    members = (Improves, NoRegression, Coverage, Diversity)
    panel = Gate(panel={m.strategy_name(): m() for m in members}, split=split)
    found = evidence(**given)
    rows = gate(panel, **{n: getattr(found, n) for n in ARGUMENTS}).frames["decisions"].collect()
    return {r["gate"]: r for r in rows.iter_rows(named=True)}


def test_gates_look_at_the_validation_set_and_on_request_at_the_held_out_one():
    """Better on the validation set and worse on the held-out one."""
    few, many = [1] * 20, [3] * 20
    good, bad = (pl.concat([evals(v), evals(h, split="heldout")]) for v, h in ((many, few), (few, many)))
    names = {"judge_balanced_accuracy": 0.6, "validation_majority_at_8": 0.5, "majority_at_8": 0.5}
    ours = measures(validation_greedy=0.6, greedy=0.3, validation_distinct_2=0.5, distinct_2=0.1, **names)
    theirs = measures(validation_greedy=0.5, greedy=0.5, validation_distinct_2=0.5, distinct_2=0.5, **names)
    given = {"evals": good, "parent_evals": bad, "base_evals": bad, "measures": ours, "parent_measures": theirs}
    assert [name for name, row in decided(**given).items() if not row["passed"]] == []
    refused = {name for name, row in decided("heldout", **given).items() if not row["passed"]}
    assert refused == {"all", "improves", "no_regression/greedy", "diversity"}


@pytest.mark.parametrize(("split", "other"), [("validation", "heldout"), ("heldout", "validation")])
def test_a_set_that_was_not_answered_is_refused_with_the_key_to_set(split, other):
    whole = pl.concat([evals([1]), evals([1], split="heldout")])
    part = pl.concat([evals([1], split=other), evals([1], "refined", split=split)])
    rows = decided(split, evals=whole, parent_evals=part, base_evals=part)
    assert set(rows) == {"all", "improves", "no_regression", "coverage", "diversity"}
    assert not any(row["passed"] for row in rows.values())
    assert rows["improves"]["reason"] == (
        f"no {split} problem was answered by its parent, the base: name {split} in their "
        "evaluate.panel.answers.splits, or another set in this round's gate.split"
    )


def test_coverage_is_over_what_the_base_solved():
    child, base = evals([0, 4, 1, 2]), evals([1, 1, 1, 0])
    (decision,) = Coverage(least=0.6)(evidence(evals=child, base_evals=base))
    assert decision.value == pytest.approx(2 / 3)
    assert decision.passed
    assert decision.metrics["gate_new"] == 1
    (strict,) = Coverage(least=0.7)(evidence(evals=child, base_evals=base))
    assert not strict.passed


def test_coverage_over_other_problems_or_samples_says_nothing():
    base = evals([4, 4, 4, 4])
    (fewer,) = Coverage(least=0)(evidence(evals=evals([4]), base_evals=base))
    assert not fewer.passed
    assert fewer.reason.startswith("3 of 4 problems that the base sampled were not sampled by this round")
    (more,) = Coverage(least=0)(evidence(evals=evals([4] * 4, samples=8), base_evals=base))
    assert not more.passed
    assert more.reason.startswith("the base was sampled 4 times a problem and this round 8 times; give both the same")
    (none,) = Coverage(least=0)(evidence(evals=base, base_evals=evals([0, 0])))
    assert none.reason == "no sampled validation problem was solved by the base"


def test_what_could_not_be_checked_is_not_covered():
    unchecked = pl.when(pl.col("item") != "i0").then("correct")
    (decision,) = Coverage(least=0.7)(
        evidence(evals=evals([4, 4, 4]).with_columns(correct=unchecked), base_evals=evals([4, 4, 4]))
    )
    assert decision.value == pytest.approx(2 / 3)
    assert not decision.passed


def test_diversity_and_the_gap_of_pairs():
    pairs = pl.DataFrame({"chosen_score": [1.0, 0.5], "rejected_score": [0.5, 0.4]})
    filtered = pl.DataFrame({"kept": [True, False, False, False]})
    given = evidence(
        measures=measures(distinct_2=0.2), parent_measures=measures(distinct_2=0.5), pairs=pairs, filtered=filtered
    )
    spread, gap = Diversity(gap=0.2)(given)
    assert not spread.passed
    assert spread.value == pytest.approx(0.4)
    assert spread.metrics["gate_kept"] == 0.25
    assert gap.passed
    assert gap.value == pytest.approx(0.3)
    assert not Diversity(gap=0.4)(given)[1].passed


def test_nothing_to_look_at_is_decided_and_not_promoted():
    panel = Gate(panel={"improves": Improves(), "coverage": Coverage(), "diversity": Diversity()})
    result = gate(panel, **{n: empty(n.removeprefix("parent_").removeprefix("base_")) for n in ARGUMENTS})
    rows = {r["gate"]: r for r in result.frames["decisions"].collect().iter_rows(named=True)}
    assert set(rows) == {"all", "improves", "coverage", "diversity"}
    assert not rows["all"]["passed"]
    assert rows["all"]["reason"] == "refused by coverage, diversity, improves"


def test_all_is_the_conjunction():
    given = evidence(evals=evals([3] * 20), parent_evals=evals([1] * 20), base_evals=evals([1] * 20))
    panel = Gate(panel={"improves": Improves(), "coverage": Coverage()})
    result = gate(panel, **{n: getattr(given, n) for n in ARGUMENTS})
    assert result.frames["decisions"].collect().filter(gate="all")["passed"].item()
    assert result.metrics["gate_coverage"] == 1.0


def test_overall_leaves_levels_out():
    frame = pl.DataFrame({"name": ["a", "a"], "level": [None, 2], "value": [0.5, 0.1]})
    assert overall(frame.lazy(), "validation") == {"a": 0.5}
