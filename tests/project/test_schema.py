"""The JSON schemas of params.yaml and of recipes: they accept what is valid, and refuse what an editor can know."""

import json
import re

import projects
import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML
from wrong import RECIPES, WRONG, edited

from tasks.project import recipes, schema


@pytest.fixture(scope="module")
def params():
    """Whether a params.yaml is valid by the schema."""
    Draft202012Validator.check_schema(schema.of_params())
    return Draft202012Validator(schema.of_params()).is_valid


@pytest.fixture(scope="module")
def recipe():
    """Whether a recipe is valid by the schema."""
    Draft202012Validator.check_schema(schema.of_recipe())
    return Draft202012Validator(schema.of_recipe()).is_valid


@pytest.fixture(scope="module")
def good(written) -> dict:
    return projects.values(written)


SMALL = recipes.plain({"title": "t", "stages": projects.SMALL})


def test_the_shipped_files_are_valid(params, recipe):
    assert params(projects.values(projects.HERE))
    for name in recipes.names(projects.HERE):
        assert recipe(recipes.plain(YAML(typ="safe").load(projects.HERE / f"recipes/{name}.yaml"))), name


VALID = [
    "campaign/budget={tokens: 1_000_000, hours: 0.5}",
    "campaign/budget=",
    "prices={gpu_hour: 2.5, currency: EUR, tokens: {openai: {prompt: 0.15, completion: 0.6}, vllm: 3}}",
    "rounds/r2/anchor=r0",
    "rounds/r2/recipe=small",
    "rounds/r2/set={generate.sample.samples: 4, judge: {random: {}}}",
    "bases/r0/domain={strategy: math, train: data/seeds/a, test: data/seeds/b}",
    "bases/r0/engine={strategy: openai, model: big, max_error_share: 0.1}",
    f"bases/r0/base={{strategy: hub, repo: a/b, revision: {'a' * 40}}}",
    "bases/r0/base={local: {path: data/base}}",
    "bases/r0/evaluate/judging=",
    "bases/r0/evaluate/hard={strategy: answers, greedy: 5}",
    "bases/r0/gate={improves: {min_gain: 0.1}}",
    "models={teacher: {engine: {strategy: openai, model: big}}}",
    f"models={{teacher: {{engine: {{strategy: vllm}}, path: /models/teacher, digest: {'a' * 64}}}}}",
]


@pytest.mark.parametrize("edit", VALID)
def test_the_schema_accepts_what_is_valid(params, good, edit):
    assert params(good)
    assert params(edited(good, edit))


BEYOND = r"money: 5|opnai|r0/gate/|splits=|base=r1|parent=r|anchor=r|R 9|r0=\{parent|recipe=smal|/data/a|greedy=21|set=\{|models=\{(parent|model|The)|`path`|lokal|scratch|bases=\{\}"
IN_THE_SCHEMA = [
    e for e in WRONG if not re.search(BEYOND, e) and WRONG[e][1] not in ("`path`", "digest", "`anchor`", "engine.model")
]


@pytest.mark.parametrize("edit", IN_THE_SCHEMA)
def test_the_schema_refuses_what_an_editor_can_know(params, good, edit):
    assert not params(edited(good, edit))


@pytest.mark.parametrize("edit", ["bases/r0/base={strategy: lokal}", "models={t: {engine: {strategy: fake}, pth: x}}"])
def test_the_schema_refuses_names_that_nothing_answers_to(params, good, edit):
    assert not params(edited(good, edit))


RECIPES_VALID = [
    "paper=Someone 2026, arXiv:2601.00001",
    "stages/generate/hot={strategy: sample, temperature: 1.5}",
    "stages/generate/sample={strategy: sample}",
    "stages/judge/verifier=",
    "stages/filter={strategy: top_fraction, fraction: 0.5}",
    "stages/train={sft: {adapter: {rank: 8}}}",
    "stages/collect={max_length: 100, answers: {}}",
    "stages/prompts={pool: {levels: {2: 1, 3: 2}}}",
]


@pytest.mark.parametrize("edit", RECIPES_VALID)
def test_the_schema_of_recipes_accepts_what_is_valid(recipe, edit):
    assert recipe(SMALL)
    assert recipe(recipes.plain(edited(SMALL, edit)))


OF_RECIPES = [
    e
    for e in RECIPES
    if not re.search(r"generate-|generate=\{\}|reward=votes|model=anchor|filter=\{\}|train=|gold|path", e)
]


@pytest.mark.parametrize("edit", OF_RECIPES)
def test_the_schema_of_recipes_refuses_what_an_editor_can_know(recipe, edit):
    assert not recipe(edited(SMALL, edit))


def test_the_schemas_explain_every_key_that_has_a_docstring():
    text = json.dumps([schema.of_params(), schema.of_recipe()])
    for words in (
        "Answers a prompt, K.",
        "The member whose score filters",
        "Largest share of a stage's requests",
        "Most tokens of prompt",
    ):
        assert words in text
