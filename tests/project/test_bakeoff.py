"""The bake-off: branches of one tree, the same prompts and budgets for all, resumed where it was stopped."""

from pathlib import Path

import polars as pl
import projects
import pytest

from tasks.core import store
from tasks.core.errors import UnknownName
from tasks.project import bakeoff, recipes
from tasks.project.bakeoff import Size, branch_rounds, prepare, stages_to_run
from tasks.project.params import load_params
from tasks.project.scratch import run_stages
from tasks.views import bakeoff as views
from tasks.views.bakeoff import Gain, Result, front, gain, reasons

SIZE = Size(base="r0", rounds=2, seeds=1, prompts=6, token_budget=10_000, problems=7, samples=2, gold=7)
PHASED = {
    "title": "Two phases of a test",
    "anchor": "first",
    "phases": {"first": {"stages": projects.SMALL}},
    "stages": projects.SMALL,
}


@pytest.fixture
def root(project):
    from ruamel.yaml import YAML

    root = project(rounds=1, git=False)
    YAML().dump(recipes.plain(PHASED), root / "recipes/phased.yaml")
    return root


@pytest.fixture
def place(root, monkeypatch):
    """The bake-off's project, with the branches of two recipes, as the working directory."""
    prepare(root, root / bakeoff.PLACE, ["small", "phased"], SIZE)
    monkeypatch.chdir(root / bakeoff.PLACE)
    return root / bakeoff.PLACE


def test_all_branches_start_from_one_base_on_the_same_prompts_and_budgets(place):
    blocks = load_params(place).blocks
    assert list(blocks) == [
        "r0",
        "small_s1_1",
        "small_s1_2",
        "phased_s1_1a",
        "phased_s1_1",
        "phased_s1_2a",
        "phased_s1_2",
    ]
    assert {b.base for b in blocks.values()} == {"r0"}
    seeds = [b.values["prompts"]["seeds"] for b in blocks.values() if not b.is_base]
    assert all((s["split"], s["count"]) == ("train", 6) for s in seeds)
    assert blocks["small_s1_2"].engine.token_budget == 10_000
    assert {blocks[n].engine.token_budget for n in blocks if n.startswith("phased")} == {5_000}, "phases share it"
    assert blocks["phased_s1_2"].anchor == "phased_s1_2a"
    assert blocks["r0"].engine.token_budget is None, "the exam has no budget"


def test_a_recipe_that_draws_many_answers_takes_fewer_prompts(root):
    """Answers come first: where they take the whole budget, nothing is judged and nothing trained."""
    size = SIZE.model_copy(update={"prompts": 200, "token_budget": 60_000, "answer_tokens": 30})
    names = ("temporal_self_rewarding", "self_rewarding")
    counts = {
        name: block["set"]["prompts.seeds.count"]
        for recipe in names
        for name, block in branch_rounds(root, recipe, 1, size).items()
    }
    # 4 answers of each prompt; 4 of the parent, the base and the future model, in half of the budget
    assert counts["self_rewarding_s1_1"] == 200
    assert counts["temporal_self_rewarding_s1_1a"] == 30_000 // (2 * 30 * 8)
    assert counts["temporal_self_rewarding_s1_1"] == 30_000 // (2 * 30 * 12)


def test_each_seed_draws_otherwise(root):
    one, two = (branch_rounds(root, "small", seed, SIZE) for seed in (1, 2))
    assert not {b["seed"] for b in one.values()} & {b["seed"] for b in two.values()}


def test_a_branch_is_run_and_goes_on_where_it_was_stopped(place):
    run_stages(place, stages_to_run(place, "r0"))
    assert list(stages_to_run(place, "r0")) == []
    every = list(stages_to_run(place, "phased_s1"))
    assert ("phased_s1_1a", "evaluate") not in every, "a phase is no result"
    assert ("phased_s1_1", "evaluate") in every
    assert not [stage for _, stage in every if stage == "gate"]
    run_stages(place, stages_to_run(place, "phased_s1"))
    assert list(stages_to_run(place, "phased_s1")) == []
    (place / "data/round=phased_s1_2/manifests/judge.json").unlink()
    left = list(stages_to_run(place, "phased_s1"))
    assert left[0] == ("phased_s1_2", "judge")
    assert {name for name, _ in left} == {"phased_s1_2"}
    rows = store.read(place, "phased_s1_2", "prompts")
    assert set(rows["problem"]) == set(store.read(place, "phased_s1_1a", "prompts")["problem"])


def test_a_branch_that_fails_is_a_result_and_stops_no_other(place):
    (place / "data/plan/phased_s1_1/judge.json").unlink()
    told: list[str] = []
    failures = bakeoff.run(place, ["phased", "small"], SIZE, 1, told.append)
    assert list(failures) == ["phased_s1"]
    assert "no plan of judge@phased_s1_1" in failures["phased_s1"]
    assert told == [f"phased_s1: {failures['phased_s1']}", "small_s1: done"]
    row, missing = views.results(place, ["phased", "small"], SIZE, failures)
    assert (row.recipe, row.seeds, row.tokens > 0) == ("small", 1, True)
    assert "trained nothing" in row.remark
    assert (missing.recipe, missing.sampled) == ("phased", None)
    assert "no plan of judge" in missing.remark
    assert "| small" in views.markdown(place, [row, missing], [], SIZE, "flywheel bakeoff")


def test_an_unknown_base_or_recipe_is_told(root):
    with pytest.raises(UnknownName, match="known: r0"):
        prepare(root, root / bakeoff.PLACE, ["small"], Size(base="r9"))
    with pytest.raises(UnknownName, match="'small'"):
        views.run(root, "smal", SIZE, 1, 0, False, print)


def rates(*values: float) -> pl.DataFrame:
    return pl.DataFrame({"item": [f"i{n}" for n in range(len(values))], "mode": "sampled", "rate": values})


def test_a_gain_is_paired_by_problem_and_averaged_over_seeds():
    found = gain(rates(0.0, 0.5, 1.0), [rates(0.5, 0.5, 1.0), rates(1.0, 0.5, 1.0)], "sampled")
    changes = [75.0, 0.0, 0.0]
    half = 1.96 * (sum((c - 25) ** 2 for c in changes) / 2 / 3) ** 0.5
    assert (found.value, found.low, found.high) == pytest.approx((25.0, 25 - half, 25 + half))
    assert gain(rates(0.0, 0.5), [rates(0.5)], "sampled") is None


def test_the_front_is_what_no_cheaper_recipe_reaches():
    rows = [
        Result(name, 1, Gain(value, value, value), None, tokens=tokens)
        for name, value, tokens in [("dear", 9.0, 30), ("cheap", 5.0, 10), ("worse", 4.0, 20), ("equal", 5.0, 11)]
    ]
    assert front([*rows, Result("failed", 0, None, None)]) == {"cheap", "dear"}


@pytest.mark.parametrize(
    ("measures", "word"),
    [
        ({"trained": 0.0}, "trained nothing"),
        ({"preferences": 12.0}, "12 pairs"),
        ({"training_rows": 500.0, "exploration_auroc": 0.5}, "AUROC 0.50"),
        ({"training_rows": 500.0, "entropy": 0.001}, "spread"),
        ({"training_rows": 500.0, "entropy": 0.09}, "less certain"),
        ({"training_rows": 500.0, "sft_loss": 4.75}, "not learnt (loss 4.8"),
        ({"training_rows": 500.0}, "no monitor"),
    ],
)
def test_a_recipe_that_does_not_help_has_a_reason(measures, word):
    row = Result("some", 1, Gain(0.1, -1.0, 1.2), None, measures)
    assert word in reasons(row, Path(), [], {"entropy": 0.08})[0]
    assert reasons(Result("some", 1, Gain(2.0, 1.0, 3.0), None, measures), Path(), [], {}) == []
