"""Edits of params.yaml: they keep its comments, and are whole or not there at all."""

import re
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import projects
import pytest
from ruamel.yaml import YAML

from tasks.core.errors import FlywheelError
from tasks.project import pipeline
from tasks.project.edit import add_base, add_round, remove_base, remove_round
from tasks.project.params import load_params


@pytest.fixture
def root(root):
    """The project's own params.yaml, with a second round."""
    (root / "params.yaml").write_text((projects.HERE / "params.yaml").read_text())
    projects.rewrite(root, lambda c: [c["rounds"].pop(n) for n in list(c["rounds"]) if n != "r1"])
    shutil.copy(root / "recipes/sharpen.yaml", root / "recipes/other.yaml")
    add_round(root, "r2", "r1")
    return root


def text(root) -> str:
    return (root / "params.yaml").read_text()


def written(root, name: str) -> dict:
    """A round as it is written."""
    return projects.values(root)["rounds"][name]


def test_a_round_is_added_in_one_line_and_comments_stay(root):
    before = text(root)
    assert len(re.findall("#.*", before)) > 4
    add_round(root, "r3", "r2", ["generate.sample.temperature=0.9", "judge.random={}", "collect.answers="])
    assert text(root).startswith(before)
    [line] = text(root).removeprefix(before).splitlines()
    assert YAML(typ="safe").load(line)["r3"] == {
        "parent": "r2", "base": "r0", "seed": 3,
        "set": {"generate.sample.temperature": 0.9, "judge.random": {}, "collect.answers": None}}  # fmt: skip
    block = load_params(root).block("r3")
    assert (block.parent, block.base, block.seed, block.recipe) == ("r2", "r0", 3, "sharpen")
    assert block.stages["generate"].members["sample"].temperature == 0.9
    assert "random" in block.stages["judge"].members
    assert "answers" not in block.stages["collect"].members
    remove_round(root, "r3")
    assert text(root) == before


def test_addresses_can_be_read_again(root):
    urls = ["http://127.0.0.1:8000/v1", "http://other:8000/v1"]
    add_round(root, "r3", "r2", ["engine={strategy: openai, model: m}", f"engine.base_urls={urls}"])
    add_round(root, "r4", "r3", [f"engine={{strategy: openai, model: m, base_url: '{urls[1]}'}}"])
    add_round(root, "r5", "r3", like="r3")
    rounds = load_params(root).rounds
    assert list(rounds["r3"].engine.base_urls) == urls
    assert rounds["r4"].engine.base_url == urls[1]
    assert rounds["r5"].engine == rounds["r3"].engine


def test_a_round_with_a_recipe_and_an_anchor(root):
    add_round(root, "r3", "r1", ["generate.sample.model=anchor", "seed=9"], recipe="other", anchor="r2")
    assert written(root, "r3") == {
        "parent": "r1", "base": "r0", "seed": 9, "recipe": "other", "anchor": "r2", "set": {"generate.sample.model": "anchor"}}  # fmt: skip
    block = load_params(root).block("r3")
    assert (block.recipe, block.anchor) == ("other", "r2")
    assert (root / "dvc.yaml").read_text() == pipeline.render(load_params(root))
    remove_round(root, "r3")
    assert "vars:" not in pipeline.render(load_params(root))
    assert (root / "dvc.yaml").read_text() == pipeline.render(load_params(root))


def test_a_branch_takes_over_what_the_round_has_that_it_is_like(root):
    add_round(root, "r3", "r2", ["generate.sample={samples: 4}"], recipe="other", anchor="r1")
    add_round(root, "b1", "r0", ["generate.sample.samples=5", "collect.answers={}"], like="r3")
    assert written(root, "b1") == {
        "parent": "r0", "base": "r0", "seed": 4, "recipe": "other", "anchor": "r1",
        "set": {"generate.sample.samples": 5, "collect.answers": {}}}  # fmt: skip
    add_round(root, "b2", "r0", recipe="sharpen", anchor="r2", like="r3")
    assert (written(root, "b2")["recipe"], written(root, "b2")["anchor"]) == ("sharpen", "r2")
    add_round(root, "b3", "r0")
    assert written(root, "b3") == {"parent": "r0", "base": "r0", "seed": 6}


def test_another_strategy_starts_from_its_own_defaults(root):
    add_round(root, "r3", "r2", ["generate.sample.samples=4", "filter.threshold.min_reward=0.3"])
    add_round(root, "r4", "r3", ["filter.strategy=top_fraction", "filter.fraction=0.25"], like="r3")
    assert written(root, "r4")["set"] == {
        "generate.sample.samples": 4, "filter.top_fraction": {}, "filter.top_fraction.fraction": 0.25}  # fmt: skip
    assert {n: m.fraction for n, m in load_params(root).block("r4").stages["filter"].members.items()} == {
        "top_fraction": 0.25}  # fmt: skip


def test_the_order_of_settings_does_not_matter(root):
    settings = [
        "prompts.pool=",
        "prompts.seeds.count=5",
        "prompts.seeds={path: data/seeds/a.jsonl}",
        "train.sft.epochs=1",
    ]
    add_round(root, "r3", "r2", settings)
    add_round(root, "r4", "r2", settings[::-1])
    one, other = (load_params(root).block(n) for n in ("r3", "r4"))
    assert set(one.stages["prompts"].members) == {"seeds"}
    assert one.values | {"seed": 0} == other.values | {"seed": 0}


def add_one(root, name):
    add_round(root, name, "r2")


def test_edits_at_the_same_time_are_all_there(root):
    with ProcessPoolExecutor(4, mp_context=get_context("forkserver")) as pool:
        list(pool.map(add_one, [root] * 4, ["a1", "a2", "a3", "a4"]))
    blocks = load_params(root).rounds
    assert {"a1", "a2", "a3", "a4"} < set(blocks)
    assert len({b.seed for b in blocks.values()}) == len(blocks)


REFUSED = {
    "the name of a round": (lambda root: add_round(root, "r1", "r1"), "round remove r1"),
    "the name of a base": (lambda root: add_round(root, "r0", "r1"), "already; choose another name$"),
    "a name that is none": (lambda root: add_round(root, "Round 3", "r1"), "rounds.Round 3: a name is"),
    "no parent": (lambda root: add_round(root, "r3", "r12"), "base or round 'r12'; did you mean"),
    "no anchor": (lambda root: add_round(root, "r3", "r1", anchor="r12"), "rounds.r3.anchor: .*'r12'"),
    "itself as an anchor": (lambda root: add_round(root, "r3", "r1", anchor="r3"), "rounds.r3.anchor: .*cycle"),
    "no recipe": (lambda root: add_round(root, "r3", "r1", recipe="sharpn"), "rounds.r3.recipe: .*'sharpen'"),
    "nothing to copy": (lambda root: add_round(root, "r3", "r1", like="r9"), "copy from 'r9'"),
    "a base to copy": (lambda root: add_round(root, "r3", "r1", like="r0"), "copy from 'r0'"),
    "no value": (lambda root: add_round(root, "r3", "r1", ["generate.samples"]), "write KEY=VALUE"),
    "an unknown stage": (lambda root: add_round(root, "r3", "r1", ["genrate.sample.samples=2"]), "did you mean 'generate'"),
    "an unknown key": (lambda root: add_round(root, "r3", "r1", ["generate.sample.sample=2"]), "did you mean 'samples'"),
    "out of range": (lambda root: add_round(root, "r3", "r1", ["generate.sample.samples=0"]), "greater than 0"),
    "no strategy": (lambda root: add_round(root, "r3", "r1", ["filter.strategy=best"]), "there is no filter strategy 'best'"),
    "broken YAML": (lambda root: add_round(root, "r3", "r1", ["generate.sample.samples=[1"]), r"--set generate.sample.samples=\[1"),
    "inside of a number": (lambda root: add_round(root, "r3", "r1", ["seed.deep=1"]), "rounds.r3.set.seed.deep"),
    "a parent in a setting": (lambda root: add_round(root, "r3", "r2", ["parent=r1"]), "--set parent: .*--parent"),
    "a base in a setting": (lambda root: add_round(root, "r3", "r2", ["base=r1"]), "--set base"),
    "an exam of its own": (lambda root: add_round(root, "r3", "r2", ["evaluate.answers.temperature=0.1"]), "rounds.r3.set.evaluate.answers.temperature: .*bases.r0.evaluate"),
    "an empty key": (lambda root: add_round(root, "r3", "r1", ["=1"]), "write KEY=VALUE"),
    "a parent of others": (lambda root: remove_round(root, "r1"), "r1 is the parent of r2"),
    "a base": (lambda root: remove_round(root, "r0"), "r0 is a base.*flywheel base remove r0"),
    "a base of rounds": (lambda root: remove_base(root, "r0"), "r0 is the base of r1, r2"),
    "a round as a base": (lambda root: remove_base(root, "r1"), "r1 is a round.*flywheel round remove r1"),
    "a base that is not there": (lambda root: remove_base(root, "r00"), "no base 'r00'; did you mean 'r0'"),
    "a round that is not there": (lambda root: remove_round(root, "r22"), "no round 'r22'; did you mean 'r2'"),
    "a base that is there": (lambda root: add_base(root, "r0", {"strategy": "local", "path": "x"}), "has a 'r0' already"),
    "a base with the name of a round": (lambda root: add_base(root, "r1", {"strategy": "local", "path": "x"}), "has a 'r1' already"),
    "a base of no strategy": (lambda root: add_base(root, "q0", {"strategy": "lokal"}), "did you mean 'local'"),
    "a branch name as a revision": (lambda root: add_base(root, "q0", {"strategy": "hub", "repo": "a/b", "revision": "main"}), r"bases\.q0\.base\.hub\.revision"),
    "a key within a number": (lambda root: add_base(root, "q0", {"strategy": "local", "path": "x"}, ["seed.deep=1"]), "--set seed.deep"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_an_edit_that_cannot_be_is_refused_and_nothing_is_written(root, what):
    edit, words = REFUSED[what]
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    with pytest.raises(FlywheelError, match=words):
        edit(root)
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before


def test_an_anchor_of_others_stays(root):
    add_round(root, "t1", "r0")
    add_round(root, "r3", "r2", anchor="t1")
    with pytest.raises(FlywheelError, match="anchor of r3"):
        remove_round(root, "t1")
    remove_round(root, "r3")
    remove_round(root, "t1")
    assert set(load_params(root).rounds) == {"r1", "r2"}


def test_an_edit_of_a_broken_file_says_what_is_broken(root):
    (root / "params.yaml").write_text("rounds:\n  r1: 3\n")
    for edit in (
        lambda: add_round(root, "r3", "r1"),
        lambda: add_base(root, "q0", {"strategy": "local", "path": "x"}),
        lambda: remove_round(root, "r2"),
        lambda: remove_round(root, "r1"),
    ):
        with pytest.raises(FlywheelError, match="bases: is missing"):
            edit()


def test_a_base_is_added(root):
    add_base(root, "q0", {"strategy": "hub", "repo": "a/b", "revision": "0" * 40},
             ["evaluate.answers.greedy=5", "engine.seconds=1", "engine.strategy=fake"])  # fmt: skip
    add_round(root, "q1", "q0")
    blocks = load_params(root).blocks
    assert blocks["q0"].stages["base"].members["hub"].repo == "a/b"
    assert blocks["q0"].engine.model_dump() == blocks["q1"].engine.model_dump()
    assert (blocks["q0"].engine.strategy_name(), blocks["q0"].engine.seconds) == ("fake", 1)
    assert blocks["q1"].base == "q0"
    assert blocks["q1"].stages["evaluate"].members["answers"].greedy == 5
    assert blocks["r1"].stages["evaluate"].members["answers"].greedy == 350
    assert projects.values(root)["bases"]["q0"]["gate"] == projects.values(root)["bases"]["r0"]["gate"]


def test_a_base_is_removed(root):
    before = text(root)
    assert add_base(root, "q0", {"strategy": "local", "path": "data/base"}) == "r0"
    add_round(root, "q1", "q0")
    with pytest.raises(FlywheelError, match="base of q1"):
        remove_base(root, "q0")
    remove_round(root, "q1")
    remove_base(root, "q0")
    assert projects.values(root) == YAML(typ="safe").load(before)
    assert (root / "dvc.yaml").read_text() == pipeline.render(load_params(root))


def test_the_only_base_stays(root):
    projects.rewrite(root, lambda c: c.update(bases={"r0": c["bases"]["r0"]}, rounds=None))
    with pytest.raises(FlywheelError, match="the only base"):
        remove_base(root, "r0")


def test_a_round_of_another_base_copies_nothing(root):
    add_round(root, "r3", "r2", ["generate.sample.samples=4"])
    add_base(
        root, "q0", {"strategy": "local", "path": "data/base"}, ["domain={strategy: chat, path: data/seeds/mine.jsonl}"]
    )
    add_round(root, "q1", "q0", ["generate.sample.samples=2"])
    assert written(root, "q1") == {
        "parent": "q0", "base": "q0", "seed": 4, "set": {"generate.sample.samples": 2}}  # fmt: skip
    assert load_params(root).block("q1").domain.strategy_name() == "chat"
