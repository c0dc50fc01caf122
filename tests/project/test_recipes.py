"""Recipes: read, and expanded into the settings of a round: defaults < recipe < set, each value with where it comes from."""

import random
import shutil

import projects
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wrong import edited

from tasks.core.errors import ParamsError, UnknownName
from tasks.core.stage import stages
from tasks.project import recipes
from tasks.project.edit import add_round
from tasks.project.params import Block, load_params, validate

SMALL = recipes.plain(projects.SMALL)


def expand(**changes) -> recipes.Settings:
    return recipes.expand(SMALL, "recipe small", changes, stages())


def block(root, changes: str, name: str = "r1") -> Block:
    """A round whose `set` is this."""
    return validate(edited(projects.values(root), f"rounds/{name}/set={changes}"), root).block(name)


def test_the_round_s_settings_go_over_the_recipe_s_and_these_over_defaults(written):
    made = block(written, "{generate.sample.temperature: 0.5}")
    sample = made.stages["generate"].members["sample"]
    assert (sample.samples, sample.temperature, sample.top_p) == (3, 0.5, 1.0)
    paths = ("samples", "temperature", "top_p")
    assert [made.origins.get(f"generate.sample.{p}") for p in paths] == ["recipe small", "set", None]
    assert made.values["generate"]["sample"] == {
        "strategy": "sample", "model": "parent", "samples": 3, "temperature": 0.5, "top_p": 1.0, "min_p": 0.0, "max_tokens": 128,
    }  # fmt: skip
    assert made.origins["evaluate.answers.greedy"] == made.origins["engine.strategy"] == "base r0"
    assert block(written, "{}").origins.get("generate.sample.temperature") is None


NESTED = {
    "{generate: {sample: {samples: 4}}}": "{generate.sample.samples: 4}",
    "{generate: {sample.samples: 4}}": "{generate.sample: {samples: 4}}",
    "{prompts: {seeds: {evaluation: {gold: 30, heldout: 20, validation: 20}}}}":
        "{prompts.seeds.evaluation: {gold: 30, heldout: 20, validation: 20}}",
    "{judge: {reward: verifier, random: {}}}": "{judge.reward: verifier, judge.random: {}}",
    "{filter: {strategy: top_fraction, fraction: 0.5}}": "{filter.top_fraction.fraction: 0.5}",
    "{filter.strategy: top_fraction, filter.fraction: 0.5}": "{filter: {top_fraction: {fraction: 0.5}}}",
    "{engine: {error_rate: 0.5, answers: {a: b}}}": "{engine.error_rate: 0.5, engine.answers: {a: b}}",
    "{engine: {answers: {a: b}}}": "{engine.answers.a: b}",
}  # fmt: skip


@pytest.mark.parametrize("nested", NESTED)
def test_nested_and_dotted_settings_are_the_same(written, nested):
    one, other = block(written, nested), block(written, NESTED[nested])
    assert one.values == other.values != block(written, "{}").values
    changed = [path for path, origin in other.origins.items() if origin == "set" and path.count(".") == 2]
    assert all(one.origins[path] == "set" for path in changed if not path.startswith("engine"))


def test_null_takes_a_member_away(written):
    made = block(written, "{judge.verifier: , judge: {logprob: }}")
    assert set(made.stages["judge"].members) == {"self_consistency", "self_certainty", "self_judge"}
    assert block(written, "{pair: {best_worst: }}").stages["pair"].members == {}


def test_null_takes_an_option_s_setting_away(written):
    assert block(written, "{collect: {max_length: }}").stages["collect"].options.max_length == 512


def test_an_empty_map_changes_nothing_of_a_member_that_is_there(written):
    made = block(written, "{generate.sample: {}, judge: {random: {}}}")
    assert made.stages["generate"].members["sample"].samples == 3
    assert "random" in made.stages["judge"].members
    assert (made.origins["generate.sample"], made.origins["judge.random"]) == ("recipe small", "set")


def test_two_members_of_one_strategy_stand_side_by_side(written):
    made = block(written, "{generate.hot: {strategy: sample, temperature: 1.5}}")
    members = made.stages["generate"].members
    assert {n: (m.strategy_name(), m.samples, m.temperature) for n, m in members.items()} == {
        "sample": ("sample", 3, 1.0), "hot": ("sample", 8, 1.5)}  # fmt: skip


def test_another_strategy_takes_the_place_of_the_recipe_s_where_there_is_one_only(written):
    made = block(written, "{filter.top_fraction.fraction: 0.25, train.sft_dpo: {}}")
    assert {n: m.fraction for n, m in made.stages["filter"].members.items()} == {"top_fraction": 0.25}
    assert set(made.stages["train"].members) == {"sft_dpo"}
    assert block(written, "{filter.threshold.min_tokens: 1}").stages["filter"].members["threshold"].min_reward == 0.4


def test_a_round_may_have_an_engine_of_its_own(written):
    base = edited(projects.values(written), "bases/r0/engine={strategy: fake, error_rate: 0.25, seconds: 0.5}")
    engines = [
        validate(edited(base, f"rounds/r1/set={changes}"), written).block("r1").engine
        for changes in ("{}", "{engine.seconds: 0}", "{engine: {strategy: openai, model: big}}")
    ]
    assert [e.strategy_name() for e in engines] == ["fake", "fake", "openai"]
    assert [(e.error_rate, e.seconds) for e in engines[:2]] == [(0.25, 0.5), (0.25, 0.0)]
    assert engines[2].max_error_share == 0.05
    made = validate(edited(base, "rounds/r1/set={engine.seconds: 0}"), written).block("r1")
    assert (made.origins["engine.seconds"], made.origins["engine.error_rate"]) == ("set", "base r0")


def test_parameters_that_are_maps_are_replaced_whole_and_by_key_where_that_is_named():
    levels = {"prompts": {"pool": {"levels": {"2": 1, "3": 1}}}}
    assert recipes.expand(levels, "x", {"prompts": {"pool": {"levels": {"4": 1}}}}, stages()).values["prompts"] == {
        "pool": {"levels": {"4": 1}}}  # fmt: skip
    assert recipes.expand(levels, "x", {"prompts.pool.levels.4": 1}, stages()).values["prompts"] == {
        "pool": {"levels": {"2": 1, "3": 1, "4": 1}}}  # fmt: skip


def test_a_recipe_is_not_changed_by_a_round_that_takes_it():
    before = recipes.plain(SMALL)
    expand(**{"judge.self_judge.likeliest": 9, "judge.verifier": None, "filter.top_fraction": {}})
    assert before == SMALL


CHANGES = [
    ("generate.sample.samples", 4), ("generate.sample", {}), ("generate.hot", {"strategy": "sample"}),
    ("generate.hot.temperature", 2.0), ("judge.verifier", None), ("judge", {"reward": "logprob"}),
    ("filter", {"top_fraction": {"fraction": 0.5}}), ("train.sft.epochs", 3), ("collect.answers", {}),
    ("prompts.seeds.count", 5), ("pair.best_worst", None), ("critique.auto_math.limit", 2),
]  # fmt: skip


@given(st.lists(st.sampled_from(CHANGES), unique_by=lambda c: c[0]), st.integers())
def test_the_order_of_settings_does_not_matter(changes, seed):
    turned = random.Random(seed).sample(changes, len(changes))
    one, other = expand(**dict(changes)), expand(**dict(turned))
    assert (one.values, one.origins) == (other.values, other.origins)
    for path, value in changes:
        if "." in path and value is not None and not isinstance(value, dict):
            stage, member, field = path.split(".")
            assert one.values[stage][member][field] == value
            assert one.origins[path] == "set"


def test_recipes_are_found_by_their_file(root):
    projects.write_recipe(root, "other", projects.SMALL)
    assert {"other", "sharpen", "small"} <= set(recipes.names(root))
    assert recipes.read(root, "other").title == "The recipe other of a test"
    with pytest.raises(UnknownName, match="'sharpen'"):
        recipes.read(root, "sharpn")
    with pytest.raises(UnknownName, match="known"):
        recipes.read(root, "../params")


@pytest.mark.parametrize("text", ["stages: [", "- a", "", "title: t\nstages: {}\nstages: {}\n", "title: t", "title: 3\nstages: {}",
                                  "? [a]\n: b", "title: &a [*a]"])  # fmt: skip
def test_files_that_are_no_recipes(root, text):
    (root / "recipes/small.yaml").write_text(text)
    with pytest.raises(ParamsError, match=r"recipes/small\.yaml"):
        recipes.read(root, "small")
    with pytest.raises(ParamsError, match=r"(?s)has 1 problem:.*recipes/small\.yaml"):
        load_params(root)


def test_a_recipe_that_is_no_text_is_named(root):
    (root / "recipes/small.yaml").write_bytes(b"title: \xff\xfe\n")
    with pytest.raises(ParamsError, match=r"recipes/small\.yaml"):
        load_params(root)


def test_a_recipe_that_was_edited_is_read_anew(root):
    assert load_params(root).block("r1").stages["generate"].members["sample"].samples == 3
    small = projects.SMALL | {"generate": {"sample": {"samples": 5}}}
    projects.write_recipe(root, "small", small)
    assert load_params(root).block("r1").stages["generate"].members["sample"].samples == 5


@pytest.mark.parametrize("name", recipes.names(projects.HERE))
def test_every_recipe_of_the_project_makes_valid_rounds_and_says_whose_method_it_is(root, name):
    """From a base, unless it needs a grandparent, and from a round."""
    shutil.copy(projects.HERE / "params.yaml", root)
    text, recipe = (root / f"recipes/{name}.yaml").read_text(), recipes.read(root, name)
    anchor = "r1" if recipe.anchor is None and "anchor" in text else None
    first = "r2" if "grandparent" in text else add_round(root, "b1", "r0", recipe=name, anchor=anchor)[-1]
    *phases, last = add_round(root, "b2", first, recipe=name, anchor=anchor)
    blocks = load_params(root).blocks
    assert blocks[last].recipe == name
    assert {blocks[n].recipe for n in phases} <= {f"{name}.{phase}" for phase in recipe.phases}
    assert "arXiv:" in recipe.paper or recipe.title.startswith("A control: ")
    assert recipe.loop
    assert recipe.differs


def test_an_empty_map_empties_a_parameter_and_leaves_a_member_as_it_is(written):
    made = block(
        written, "{prompts.seeds.evaluation: {validation: 50, heldout: 50, gold: 50}, filter.threshold.require: {}}"
    )
    assert made.stages["filter"].members["threshold"].require == {}
    required = {"filter": {"threshold": {"require": {"self_judge": 0.5}}}}
    changed = recipes.expand(required, "x", {"filter.threshold.require": {}}, stages())
    assert changed.values == {"filter": {"threshold": {"require": {}}}}
    assert changed.origins["filter.threshold.require"] == "set"
    assert recipes.expand(required, "x", {"filter.threshold": {}}, stages()).values == required


def test_the_origins_of_another_engine_are_its_own(written):
    made = block(written, "{engine.strategy: transformers}")
    assert made.origins["engine.strategy"] == "set"
    assert not {"engine.max_error_share", "engine.seconds", "engine.batch_size"} & made.origins.keys()
