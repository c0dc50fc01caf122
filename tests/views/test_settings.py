"""How rounds are made, for a person to read."""

import io

import projects
import pytest
from rich.console import Console

from tasks.core.errors import UnknownName
from tasks.project.params import load_params
from tasks.views.settings import show_recipe, show_recipes, show_round, values


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = projects.make(tmp_path_factory.mktemp("shown"), git=False)
    projects.set_values(root, "r2", ["generate.sample.temperature=0.9", "generate.hot={strategy: sample}",
                                     "engine.seconds=0.5", "filter.top_fraction={}"])  # fmt: skip
    projects.rewrite(root, lambda c: c["rounds"]["r2"].update(anchor="r0"))
    return root


def shown(show, *arguments) -> str:
    out = io.StringIO()
    show(*arguments, Console(file=out, width=160))
    return out.getvalue()


def test_every_value_of_a_round_says_where_it_comes_from(root):
    block = load_params(root).block("r2")
    by_path = {path: (value, origin) for path, value, origin in values(block)}
    expected = {
        "seed": (2, "params.yaml"),
        "domain.strategy": ("arithmetic", "base r0"),
        "engine.strategy": ("fake", "base r0"),
        "engine.seconds": (0.5, "set"),
        "prompts.seeds.count": (12, "recipe small"),
        "generate.sample.strategy": ("sample", "recipe small"),
        "generate.sample.samples": (3, "recipe small"),
        "generate.sample.temperature": (0.9, "set"),
        "generate.sample.top_p": (1.0, "default"),
        "generate.hot.strategy": ("sample", "set"),
        "generate.hot.samples": (8, "default"),
        "judge.reward": ("self_consistency", "recipe small"),
        "filter.top_fraction.strategy": ("top_fraction", "set"),
        "collect.max_length": (512, "default"),
        "evaluate.answers.greedy": (14, "base r0"),
    }
    assert {path: by_path[path] for path in expected} == expected
    assert "filter.threshold.strategy" not in by_path
    assert {"gate.improves.min_gain", "train.sft.epochs"} <= set(by_path)


def test_values_are_those_of_the_block_and_in_the_order_of_its_stages(root):
    for block in load_params(root).blocks.values():
        keys = [path.partition(".")[0] for path, _, _ in values(block)]
        order = list(dict.fromkeys(keys))
        assert set(order) <= set(block.values)
        assert order == [k for k in ("seed", "domain", "engine", "base", "prompts", "generate", "judge", "filter", "critique",
                                     "pair", "collect", "train", "evaluate", "gate") if k in order]  # fmt: skip


def test_a_base_s_values_are_its_own(root):
    by_path = {path: origin for path, _, origin in values(load_params(root).block("r0"))}
    assert by_path["evaluate.answers.greedy"] == by_path["base.local.path"] == "bases.r0"
    assert by_path["evaluate.answers.temperature"] == "default"
    assert (by_path["engine.strategy"], by_path["engine.seconds"]) == ("bases.r0", "default")
    assert (by_path["domain.strategy"], by_path["domain.hardest"], by_path["seed"]) == (
        "bases.r0",
        "default",
        "params.yaml",
    )


def test_a_round_is_shown_with_its_ancestors(root):
    text = shown(show_round, root, "r2")
    for words in ("r2: parent r1, base r0, recipe small, anchor r0", "generate.sample.temperature", "0.9", "null"):
        assert words in text
    [line] = [line for line in text.splitlines() if line.startswith("generate.sample.temperature")]
    assert line.split() == ["generate.sample.temperature", "0.9", "set"]
    assert "r0: a base" in shown(show_round, root, "r0")
    with pytest.raises(UnknownName, match="'r2'"):
        shown(show_round, root, "r22")


def test_recipes_are_listed_with_what_they_do(root):
    lines = shown(show_recipes, root).splitlines()
    assert {"recipe", "sharpen", "small"} <= {line.split()[0] for line in lines}
    [small] = [line for line in lines if line.startswith("small ")]
    assert "The recipe small of a test" in small


def test_a_recipe_is_shown_with_its_paper_and_settings():
    text = shown(show_recipe, projects.HERE, "sharpen")
    for words in (
        "sharpen: ",
        "Paper",
        "arXiv:2203.11171",
        "Loop",
        "Differs",
        "Settings",
        "self_judge:",
        "likeliest: 2",
    ):
        assert words in text
    with pytest.raises(UnknownName, match="'sharpen'"):
        shown(show_recipe, projects.HERE, "sharpn")


def test_a_phase_that_a_recipe_does_not_have_is_not_shown(root):
    with pytest.raises(UnknownName, match=r"no phase 'sharpen\.first'"):
        shown(show_recipe, projects.HERE, "sharpen.first")


def test_a_recipe_without_a_paper_is_shown_without_it(root):
    text = shown(show_recipe, root, "small")
    assert "Paper" not in text
    assert "Settings" in text
