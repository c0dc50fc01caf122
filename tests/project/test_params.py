"""params.yaml: everything that is wrong at once, each with its place, value and fix."""

import copy
import re
from contextlib import suppress
from pathlib import Path

import projects
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from wrong import EXAM, RECIPES, SET, WRONG, edit_recipe, edited

from tasks.core.errors import ParamsError, UnknownName
from tasks.project.params import load_params, validate


@pytest.fixture(scope="module")
def good(written) -> dict:
    """Two rounds, valid."""
    return projects.values(written)


def problems(content: dict, root: Path) -> list[str]:
    with pytest.raises(ParamsError) as raised:
        validate(content, root)
    first, *lines = str(raised.value).split("\n  ")
    assert re.fullmatch(rf"params\.yaml has {len(lines)} problems?:", first.strip())
    return lines


def assert_named(lines: list[str], place: str, word: str) -> None:
    assert [line for line in lines if line.startswith(f"{place}: ") and word in line], lines


@pytest.mark.parametrize("edit", WRONG)
def test_what_is_wrong_is_named_with_its_place_and_fix(good, written, edit):
    lines = problems(edited(good, edit), written)
    place, word = WRONG[edit]
    assert_named(lines, place, word)
    assert all(line.startswith(place) for line in lines) or edit in ("bases-", "bases={}"), (
        lines
    )  # then parents lack, too


@pytest.mark.parametrize("edit", RECIPES)
def test_what_is_wrong_in_a_recipe_is_named_once_for_all_its_rounds(good, root, edit):
    edit_recipe(root, edit)
    lines = problems(good, root)
    place, word = RECIPES[edit]
    if place.endswith(".yaml"):
        assert lines[0].startswith(place)
        assert word in lines[0]
    else:
        assert_named(lines, place, word)
    assert len(lines) == (2 if "anchor" in edit else 1), lines  # the fix is another one for each round


def test_all_that_is_wrong_is_named_at_once(good, root):
    edits = ["campain={}", "bases/r0/seed=0.5", "rounds/r2/base=r1", "rounds/r1/genrate={}", "rounds/r1/seed=-3",
             "models={t: {engine: {strategy: vlm}}}",
             "rounds/r1/set={generate.sample.temperature: -1, generate.smaple.samples: 1, judge.reward: votes}"]  # fmt: skip
    edit_recipe(root, "stages/judge/self_judge/likliest=2")
    lines = problems(edited(good, *edits), root)
    places = {"campain", "bases.r0.seed", "rounds.r2.base", "rounds.r1.genrate", "rounds.r1.seed", "models.t.engine",
              f"{SET}.generate.sample.temperature", f"{SET}.generate.smaple",
              "recipes/small.yaml: stages.judge.self_judge.likliest"}  # fmt: skip
    assert {p for p in places if any(line.startswith(f"{p}: ") for line in lines)} == places
    assert len(lines) == len(places)


@pytest.mark.parametrize("change", EXAM)
def test_a_round_cannot_choose_its_exam(good, written, change):
    lines = problems(edited(good, f"rounds/r2/set={{{change}}}"), written)
    assert len(lines) == 1
    assert_named(lines, f"rounds.r2.set.{EXAM[change]}", f"bases.r0.{EXAM[change].partition('.')[0]}")


@pytest.mark.parametrize("key", ["evaluate", "gate", "domain"])
def test_a_round_cannot_bring_its_exam(good, written, key):
    lines = problems(edited(good, f"rounds/r2/{key}={{}}"), written)
    assert len(lines) == 1
    assert_named(lines, "rounds.r2", key)


def test_every_round_of_a_base_sits_its_exam_with_its_engine(good, written):
    content = edited(good, "rounds/r2/set={engine.error_rate: 0.5}", "bases/r0/evaluate/answers/temperature=0.7")
    blocks = validate(content, written).blocks
    for name in ("r1", "r2"):
        assert blocks[name].stages["evaluate"] is blocks["r0"].stages["evaluate"]
        assert blocks[name].stages["gate"] is blocks["r0"].stages["gate"]
        assert blocks[name].domain is blocks["r0"].domain
        assert blocks[name].exam_engine is blocks["r0"].engine
    assert blocks["r1"].values["evaluate"]["answers"]["temperature"] == 0.7
    assert (blocks["r1"].engine.error_rate, blocks["r2"].engine.error_rate) == (0.0, 0.5)


def test_rounds_of_the_old_format_are_one_error(good, written):
    old = "{parent: r0, base: r0, seed: 1, domain: {strategy: arithmetic}, generate: {strategy: sample}, judge: {panel: {}}}"
    content = edited(good, f"rounds/r1={old}", f"rounds/r2={old.replace('parent: r0', 'parent: r1')}")
    content["rounds"]["r3"] = {"parent": "r2", "base": "r0"}
    lines = problems(content, written)
    assert len(lines) == 1
    for word in ("recipes/NAME.yaml", "`panel`", "collect", "r2)", "recipe show"):
        assert_named(lines, "rounds.r1", word)


OLD = """
campaign: {name: arithmetic}
bases:
  r0: &r0
    seed: 0
    files: data/seeds/none
    domain: {strategy: arithmetic}
    engine: {strategy: transformers}
    base: {strategy: local, path: data/base}
    evaluate: {panel: {answers: {}, judging: {}, critiques: {}}}
rounds:
  r1: &r1
    parent: r0
    base: r0
    seed: 1
    files: data/seeds/none
    domain: {strategy: arithmetic}
    engine: {strategy: transformers}
    prompts: {strategy: pool, count: 700}
    generate: {strategy: sample, samples: 8}
    judge: {reward: self_consistency, panel: {self_consistency: {}}}
    filter: {strategy: threshold, least: 0.4}
    train: {strategy: sft}
    evaluate: {panel: {answers: {}}}
    gate: {panel: {improves: {}}}
  r2: {<<: *r1, parent: r1, seed: 2}
"""


def test_a_whole_file_of_the_old_way_is_an_error_for_its_bases_and_one_for_its_rounds(written):
    lines = problems(YAML(typ="safe").load(OLD), written)
    assert [line.partition(":")[0] for line in lines] == ["rounds.r1", "bases.r0"]


def test_an_engine_that_lacks_what_a_strategy_needs(good, written, monkeypatch):
    monkeypatch.setattr("tasks.engines.fake.Fake.samples", False)
    lines = problems(good, written)
    assert {line.partition(": needs")[0] for line in lines} == {
        "bases.r0.evaluate.answers", "bases.r0.evaluate.judging", "bases.r0.evaluate.critiques",
        "recipes/small.yaml: stages.generate.sample", "recipes/small.yaml: stages.judge.self_judge",
        "recipes/small.yaml: stages.critique.auto_math"}  # fmt: skip
    assert all("samples, which fake lacks" in line for line in lines)


def test_a_model_of_the_roster_is_asked_with_its_own_engine(good, written, monkeypatch):
    teacher = "models={teacher: {engine: {strategy: openai, model: big}}}"
    setting = "rounds/r1/set={generate.cold: {strategy: sample, model: teacher}}"
    assert validate(edited(good, teacher, setting), written).roster["teacher"].engine.model == "big"
    monkeypatch.setattr("tasks.engines.openai.Openai.samples", False, raising=False)
    lines = problems(edited(good, teacher, setting), written)
    assert len(lines) == 1
    assert_named(lines, f"{SET}.generate.cold", "openai")


def test_a_good_one(good, written):
    pipeline = validate(good, written)
    assert list(pipeline.blocks) == ["r0", "r1", "r2"]
    assert list(pipeline.rounds) == ["r1", "r2"]
    assert [b.name for b in pipeline.lineage("r2")] == ["r0", "r1", "r2"]
    blocks = pipeline.blocks
    assert blocks["r0"].is_base
    kinds = ("parent", "base", "anchor", "grandparent")
    assert [blocks["r0"].ancestor(k) for k in kinds] == [None, "r0", None, None]
    assert [blocks["r1"].ancestor(k) for k in kinds] == ["r0", "r0", None, None]
    assert [blocks["r2"].ancestor(k) for k in kinds] == ["r1", "r0", None, "r0"]
    assert set(pipeline.judges_of(blocks["r0"])) == set(pipeline.judges_of(blocks["r1"])) > {"self_judge", "verifier"}
    with pytest.raises(UnknownName, match="'r2'"):
        pipeline.block("r22")


def test_ancestors_come_first_wherever_they_stand(good, written):
    turned = good | {"rounds": dict(reversed(good["rounds"].items()))}
    assert list(validate(turned, written).blocks) == ["r0", "r1", "r2"]
    anchored = edited(turned, "rounds/r3={parent: r0, base: r0}", "rounds/r1/anchor=r3")
    blocks = validate(anchored, written).blocks
    assert list(blocks) == ["r0", "r3", "r1", "r2"]
    assert blocks["r1"].ancestor("anchor") == "r3"


def test_an_anchor_may_be_another_base(good, written):
    content = edited(good, "rounds/r2/anchor=teacher", "rounds/r2/set={generate.sample.model: anchor}")
    content["bases"]["teacher"] = content["bases"]["r0"]
    blocks = validate(content, written).blocks
    assert (blocks["r2"].ancestor("anchor"), blocks["r2"].base) == ("teacher", "r0")


def test_files_that_are_no_params(tmp_path):
    with pytest.raises(ParamsError, match="root"):
        load_params(tmp_path)
    for text, word in {
        "bases: {r0: [}": "line 1",
        "bases:\n  r0: 1\n  r0: 2\n": "duplicate key",
        "- a\n- b\n": "campaign, defaults, prices, models, bases and rounds",
        "": "campaign, defaults, prices, models, bases and rounds",
        "? [a, b]\n: c\n": "params.yaml",
        "bases: &a\n  r0: *a\n": "params.yaml",
    }.items():
        (tmp_path / "params.yaml").write_text(text)
        with pytest.raises(ParamsError, match=word):
            load_params(tmp_path)
    (tmp_path / "params.yaml").write_bytes(b"bases: \xff\xfe\n")
    with pytest.raises(ParamsError, match="YAML"):
        load_params(tmp_path)


def test_the_project_s_own_file_is_short_and_its_rounds_are_its_recipe_s():
    assert len((projects.HERE / "params.yaml").read_text().splitlines()) < 30
    pipeline = load_params(projects.HERE)
    assert {b.recipe for b in pipeline.rounds.values()} == {"sharpen"}
    assert [b.stages["generate"].members["sample"].samples for b in pipeline.rounds.values()] == [8, 8, 8]


# Whatever is written there, it is valid or a problem


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(["r1", "r0", "sample", "pool", "anchor"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["strategy", "panel", "parent", "x", "generate.sample", "engine", "filter.strategy"]), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_random_edits_are_valid_or_problems(good, written, data):
    content = copy.deepcopy(good)
    for _ in range(data.draw(st.integers(1, 3))):
        at = content
        while True:
            key = data.draw(st.sampled_from([*at, "new", "r3", "set", "anchor", "models"]))
            inside = at.get(key)
            if not (isinstance(inside, dict) and inside) or data.draw(st.integers(0, 5)) == 0:
                break
            at = inside
        if data.draw(st.booleans()) and key in at and len(at) > 1:
            del at[key]
        else:
            at[key] = data.draw(values)
    with suppress(ParamsError):
        validate(content, written)


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="abr01:{}[]&*!?-|> \n\t#'\"%@", max_size=40))
def test_random_texts_are_valid_or_problems(tmp_path_factory, text):
    root = tmp_path_factory.getbasetemp()
    (root / "params.yaml").write_text(text)
    with pytest.raises(ParamsError):
        load_params(root)
