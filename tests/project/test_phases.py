"""Recipes of several phases: `flywheel round add` writes a round for each, and params.yaml, plans and dvc.yaml see rounds."""

import sys
from pathlib import Path

import projects
import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML
from wrong import edited

from tasks.__main__ import app, guarded
from tasks.core.errors import FlywheelError, ParamsError, UnknownName
from tasks.core.stage import stages
from tasks.project import pipeline, recipes, schema
from tasks.project.edit import add_round, remove_round
from tasks.project.params import load_params
from tasks.project.plan import plans

SEEDED = projects.SMALL | {"generate": {"sample": {"samples": 2}}}
ANCHORED = projects.SMALL | {"generate": {"sample": {}, "past": {"strategy": "sample", "model": "anchor"}}}
TEMPORAL = {
    "title": "Two steps of DPO a round",
    "anchor": "seed",
    "parent": "first",
    "phases": {
        "seed": {"when": "from_base", "stages": SEEDED},
        "first": {"parent": "seed", "anchor": "base", "stages": ANCHORED},
    },
    "stages": ANCHORED,
}
"""A round is trained twice; from a base, a seed model comes first, which stays the anchor of all rounds after it."""
OLDER = {
    "title": "Relatives of all kinds",
    "anchor": "parent",
    "parent": "last",
    "phases": {
        "first": {"anchor": "grandparent", "stages": ANCHORED},
        "last": {"parent": "first", "anchor": "first", "stages": ANCHORED},
    },
    "stages": ANCHORED,
}


def write(root: Path, name: str, content: dict) -> None:
    YAML().dump(recipes.plain(content), root / f"recipes/{name}.yaml")


@pytest.fixture
def root(root):
    """The rounds r1 and r2 of `small`, with two recipes of several phases."""
    write(root, "temporal", TEMPORAL)
    write(root, "older", OLDER)
    projects.rewrite(root, lambda c: c["bases"].update(q0=c["bases"]["r0"]))
    return root


@pytest.fixture
def flywheel(monkeypatch, capsys):
    """Runs a command in this process; gives what it printed."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["flywheel", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            guarded(app)
        printed = capsys.readouterr()
        assert not ended.value.code, printed.err
        return printed.out

    return run


def relatives(root: Path, *names: str) -> list[tuple]:
    """Parent, anchor and recipe of rounds as they are written."""
    rounds = projects.values(root)["rounds"]
    return [tuple(rounds[n].get(key) for key in ("parent", "anchor", "recipe")) for n in names]


def test_the_command_writes_a_round_for_each_phase_and_plans_and_dvc_see_rounds(project, flywheel):
    root = project(rounds=1, git=False)
    write(root, "temporal", TEMPORAL)
    before = (root / "params.yaml").read_text()
    assert "r0" in flywheel("round", "list")
    assert "params.yaml has q1a, q1b, q1 now" in flywheel(
        "round", "add", "q1", "--parent", "r0", "--recipe", "temporal"
    )
    added = (root / "params.yaml").read_text().removeprefix(before)
    assert added.splitlines() == [
        "  q1a: {parent: r0, base: r0, seed: 2, recipe: temporal.seed}",
        "  q1b: {parent: q1a, base: r0, seed: 3, recipe: temporal.first, anchor: r0}",
        "  q1: {parent: q1b, base: r0, seed: 4, recipe: temporal, anchor: q1a}",
    ]
    params = load_params(root)
    assert (root / "dvc.yaml").read_text() == pipeline.render(params)
    made = plans(root, params)
    assert [made[n, "generate"].ancestors for n in ("q1b", "q1")] == [
        {"anchor": "r0", "parent": "q1a"}, {"anchor": "q1a", "parent": "q1b"}]  # fmt: skip
    samples = [{m: v["samples"] for m, v in made[n, "generate"].members.items()} for n in ("q1a", "q1b", "q1")]
    assert samples == [{"sample": 2}, {"past": 8, "sample": 8}, {"past": 8, "sample": 8}]
    shown = flywheel("round", "show", "q1b")
    assert "recipe temporal.first" in shown
    assert "q1b" in flywheel("round", "list")
    assert "params.yaml no longer has q1a, q1b, q1." in flywheel("round", "remove", "q1")
    assert (root / "params.yaml").read_text() == before


def test_dvc_reads_the_anchors_of_phases(project):
    root = project(rounds=1, git=False)
    write(root, "temporal", TEMPORAL)
    add_round(root, "q1", "r0", recipe="temporal")
    with projects.dvc(root) as repo:
        deps = {s.name: [d.def_path for d in s.deps] for s in repo.index.stages}
    assert "data/round=r0/model" in deps["generate@q1b"]
    assert {"data/round=q1a/model", "data/round=q1b/model"} <= set(deps["generate@q1"])


def test_a_phase_that_is_only_from_a_base_is_left_out_elsewhere(root):
    assert add_round(root, "r3", "r0", recipe="temporal") == ["r3a", "r3b", "r3"]
    assert add_round(root, "r4", "r3", recipe="temporal") == ["r4b", "r4"]
    assert relatives(root, "r4b", "r4") == [("r3", "r0", "temporal.first"), ("r4b", "r3a", "temporal")]
    assert load_params(root).block("r4").anchor == "r3a"


def test_an_anchor_that_no_ancestor_was_made_by_is_refused_or_named(root):
    before = (root / "params.yaml").read_text()
    with pytest.raises(FlywheelError, match=r"recipes/temporal.yaml: anchor: r3 has no anchor 'seed': .*--anchor"):
        add_round(root, "r3", "r2", recipe="temporal")
    assert (root / "params.yaml").read_text() == before
    assert add_round(root, "r3", "r2", recipe="temporal", anchor="r1") == ["r3b", "r3"]
    assert relatives(root, "r3b", "r3") == [("r2", "r0", "temporal.first"), ("r3b", "r1", "temporal")]


def test_anchors_by_kinship(root):
    assert add_round(root, "r3", "r2", recipe="older") == ["r3a", "r3b", "r3"]
    assert relatives(root, "r3a", "r3b", "r3") == [
        ("r2", "r1", "older.first"), ("r3a", "r3a", "older.last"), ("r3b", "r3b", "older")]  # fmt: skip
    write(root, "older", OLDER | {"anchor": "grandparent"})
    add_round(root, "r4", "r1", recipe="older")
    assert relatives(root, "r4") == [("r4b", "r4a", "older")], "of the parent that it has in the end"


def test_a_base_has_no_parent_to_be_a_grandparent(root):
    write(root, "oldest", {"title": "t", "anchor": "grandparent", "stages": ANCHORED})
    before = (root / "params.yaml").read_text()
    with pytest.raises(
        FlywheelError, match=r"oldest.yaml: anchor: q1 has no anchor 'grandparent': .*q0 is a base.*--anchor"
    ):
        add_round(root, "q1", "q0", recipe="oldest")
    with pytest.raises(
        FlywheelError, match=r"older.yaml: phases.first.anchor: q1a has no anchor 'grandparent': .*q0"
    ) as no:
        add_round(root, "q1", "q0", recipe="older", anchor="r1")
    assert "--anchor" not in str(no.value), "which is the main round's"
    assert (root / "params.yaml").read_text() == before
    assert add_round(root, "q1", "q0", recipe="oldest", anchor="r1") == ["q1"]


def test_a_phase_alone_is_a_round_too(root):
    add_round(root, "r3", "r0", recipe="temporal")
    assert add_round(root, "b1", "r3", recipe="temporal.first") == ["b1"]
    assert relatives(root, "b1") == [("r3", "r0", "temporal.first")]
    assert add_round(root, "b2", "r3", recipe="older.last", anchor="r1") == ["b2"]


def test_a_copy_has_anchors_and_phases_of_its_own_and_the_settings_of_each(root):
    add_round(root, "r3", "r0", ["generate.sample.samples=3"], recipe="temporal")
    projects.set_values(root, "r3b", ["generate.sample.samples=5"])
    assert add_round(root, "r4", "r3", ["generate.past.samples=1"], like="r3") == ["r4b", "r4"]
    assert relatives(root, "r4b", "r4") == [("r3", "r0", "temporal.first"), ("r4b", "r3a", "temporal")]
    samples = [load_params(root).block(n).stages["generate"].members["sample"].samples for n in ("r4b", "r4")]
    assert samples == [5, 3]
    assert add_round(root, "q1", "q0", like="r4") == ["q1a", "q1b", "q1"]
    assert relatives(root, "q1b", "q1") == [("q1a", "q0", "temporal.first"), ("q1b", "q1a", "temporal")]
    add_round(root, "r5", "r4", like="r3", anchor="r1")
    add_round(root, "r6", "r5", like="r5")
    assert relatives(root, "r6") == [("r6b", "r1", "temporal")], "an anchor that a person named is copied"


def test_the_default_recipe_may_have_phases(root):
    projects.rewrite(root, lambda c: [c["rounds"].clear(), c["defaults"].update(recipe="temporal")])
    assert add_round(root, "r3", "r0") == ["r3a", "r3b", "r3"]
    assert relatives(root, "r3") == [("r3b", "r3a", None)]
    assert remove_round(root, "r3") == ["r3a", "r3b", "r3"]


def test_a_name_that_is_taken_refuses_all(root):
    add_round(root, "r3b", "r1")
    before = (root / "params.yaml").read_text()
    with pytest.raises(FlywheelError, match="has a 'r3b' already"):
        add_round(root, "r3", "r0", recipe="temporal")
    assert (root / "params.yaml").read_text() == before


def test_phases_that_others_need_stay(root):
    add_round(root, "r3", "r0", recipe="temporal")
    add_round(root, "r4", "r3", recipe="temporal")
    with pytest.raises(FlywheelError, match="r3a is the anchor of r4;"):
        remove_round(root, "r3")
    with pytest.raises(FlywheelError, match="r4b is the parent of r4;"):
        remove_round(root, "r4b")
    assert remove_round(root, "r4") == ["r4b", "r4"]
    assert remove_round(root, "r3") == ["r3a", "r3b", "r3"]


def test_what_is_wrong_in_a_phase_is_named_with_its_place(root):
    write(root, "temporal", edited(recipes.plain(TEMPORAL), "phases/first/stages/generate/sample/sampels=1",
                                   "phases/seed/stages/genrate={}", "stages/judge/verfier={}"))  # fmt: skip
    with pytest.raises(ParamsError) as raised:
        add_round(root, "r3", "r0", recipe="temporal")
    lines = str(raised.value).splitlines()[1:]
    assert len(lines) == 3
    for place, word in {
        "recipes/temporal.yaml: phases.first.stages.generate.sample.sampels": "'samples'",
        "recipes/temporal.yaml: phases.seed.stages.genrate": "'generate'",
        "recipes/temporal.yaml: stages.judge.verfier": "'verifier'",
    }.items():
        assert [line for line in lines if line.strip().startswith(f"{place}: ") and word in line], lines


@pytest.mark.parametrize(("recipe", "word"), [("temporal.frist", "'temporal.first'"), ("temporl.first", "'temporal'"),
                                              ("small.first", "none is known"), ("temporal.", "no phase 'temporal.'")])  # fmt: skip
def test_a_phase_that_does_not_exist(root, recipe, word):
    projects.rewrite(root, lambda c: c["rounds"]["r1"].update(recipe=recipe))
    with pytest.raises(ParamsError, match=rf"rounds\.r1\.recipe: .*{word}"):
        load_params(root)
    with pytest.raises(UnknownName, match=word):
        recipes.part(root, recipe)


WRONG = {
    "anchor=grandparnt": ("anchor", "'grandparent'"),
    "anchor=anchor": ("anchor", "ancestor or phase 'anchor'"),
    "parent=base": ("parent", "phase 'base'"),
    "parent=[first]": ("parent", "string"),
    "phases/seed/parent=first": ("phases.seed.parent", "'first' does not come before it"),
    "phases/first/anchor=first": ("phases.first.anchor", "'first' does not come before it"),
    "phases/first/parent=sead": ("phases.first.parent", "'seed'"),
    "phases/first/whn=always": ("phases.first.whn", "'when'"),
    "phases/first/when=often": ("phases.first.when", "'always' or 'from_base'"),
    "phases/first/stages-": ("phases.first.stages", "missing"),
    "phases/first=3": ("phases.first", "block"),
    "phases/base={stages: {}}": ("phases.base", "no ancestor's"),
    "phases/Third={stages: {}}": ("phases.Third", "lower-case"),
    "phases/third={stages: {}}": ("phases.third", "needed by nothing"),
    "phases=[first]": ("phases", "dictionary"),
    "phase={}": ("phase", "'phases'"),
}
"""By an edit of the recipe `temporal`."""


@pytest.mark.parametrize("edit", WRONG)
def test_what_is_wrong_with_phases_is_named_with_file_and_key(root, edit):
    write(root, "temporal", edited(recipes.plain(TEMPORAL), edit))
    place, word = WRONG[edit]
    with pytest.raises(ParamsError) as raised:
        recipes.read(root, "temporal")
    lines = str(raised.value).splitlines()
    assert [line for line in lines if line.startswith(f"recipes/temporal.yaml: {place}: ") and word in line], lines


def test_all_that_is_wrong_with_a_recipe_is_named_at_once(root):
    edits = ["titel=x", "anchor=grandparnt", "phases/seed/parent=first", "phases/first/whn=always"]
    write(root, "temporal", edited(recipes.plain(TEMPORAL), *edits))
    with pytest.raises(ParamsError) as raised:
        add_round(root, "r3", "r0", recipe="temporal")
    places = [line.strip().split(": ")[:2] for line in str(raised.value).splitlines()[1:]]
    assert sorted(places) == sorted(
        ["recipes/temporal.yaml", key] for key in ("titel", "anchor", "phases.seed.parent", "phases.first.whn")
    )


def test_the_schema_knows_phases():
    valid = Draft202012Validator(schema.of_recipe()).is_valid
    assert valid(recipes.plain(TEMPORAL))
    assert valid(recipes.plain(OLDER))
    assert not valid(edited(recipes.plain(TEMPORAL), "phases/first/stages/genrate={}"))
    assert not valid(edited(recipes.plain(TEMPORAL), "phases/first/stages/generate/sample/sampels=1"))
    assert not valid(edited(recipes.plain(TEMPORAL), "phases/first/when=often"))
    assert not valid(edited(recipes.plain(TEMPORAL), "phases/first/whn=always"))


def test_the_origin_of_a_value_is_its_phase(root):
    add_round(root, "r3", "r0", recipe="temporal")
    origins = load_params(root).block("r3b").origins
    assert origins["generate.past.model"] == "recipe temporal.first"
    assert {origins[s] for s in stages() if s in origins} <= {"recipe temporal.first", "base r0"}


def test_recipes_are_printed_with_their_phases(root, flywheel):
    [line] = [line for line in flywheel("recipes").splitlines() if line.startswith("temporal ")]
    assert line.rstrip().endswith("seed, first")
    for name in ("temporal", "temporal.first"):
        text = flywheel("recipe", "show", name)
        for words in ("Phase temporal.seed (only from a base)", "Phase temporal.first (parent seed, anchor base)",
                      "Settings (parent first, anchor seed)", "samples: 2"):  # fmt: skip
            assert words in text
    assert "Settings\n" in flywheel("recipe", "show", "small")


def test_the_round_of_a_phase_is_no_result(root):
    from tasks.project import graph

    *phases, last = add_round(root, "b1", "r0", recipe="temporal")
    blocks = load_params(root).blocks
    assert all(blocks[name].is_phase for name in phases)
    assert not blocks[last].is_phase
    assert last in graph.rounds(root)
    assert not set(phases) & set(graph.rounds(root))


def test_without_a_parent_a_round_follows_the_last_one(root):
    write(
        root,
        "led",
        {"title": "One phase", "anchor": "first", "phases": {"first": {"stages": SEEDED}}, "stages": ANCHORED},
    )
    assert add_round(root, "r3", None, recipe="led") == ["r3a", "r3"]
    assert [load_params(root).block(name).parent for name in ("r3a", "r3")] == ["r2", "r2"]
    add_round(root, "r4", None)
    assert load_params(root).block("r4").parent == "r3", "not the round of a phase"
    projects.rewrite(root, lambda content: content.update(rounds={}))
    add_round(root, "r1", None)
    assert load_params(root).block("r1").parent == "r0"
