"""params.yaml: everything that is wrong at once, with its key, value and fix; edits that keep comments."""

import copy
import re
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context

import projects
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from tasks.engines.fake import Fake
from tasks.errors import FlywheelError, ParamsError, UnknownName
from tasks.judge.verifier import Verifier
from tasks.params import (
    add_base,
    add_round,
    evaluated,
    load_params,
    plain,
    read,
    remove_round,
    schema,
    validate,
)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> dict:
    """Two rounds, valid."""
    root = tmp_path_factory.mktemp("params")
    return projects.values(projects.make(root, git=False))


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    """The project's own params.yaml, with a second round."""
    root = tmp_path_factory.mktemp("own")
    (root / "params.yaml").write_text((projects.HERE / "params.yaml").read_text())
    projects.rewrite(root, lambda c: [c["rounds"].pop(n) for n in list(c["rounds"]) if n != "r1"])
    add_round(root, "r2", "r1", [])
    return (root / "params.yaml").read_text()


@pytest.fixture
def root(tmp_path, text):
    (tmp_path / "params.yaml").write_text(text)
    return tmp_path


def edited(content: dict, *edits: str) -> dict:
    """A copy with values assigned at paths; `path-` takes a key away."""
    content = copy.deepcopy(content)
    for edit in edits:
        path, _, value = edit.partition("=")
        *parents, last = path.removesuffix("-").split(".")
        at = content
        for key in parents:
            at = at[key]
        if path.endswith("-"):
            del at[last]
        else:
            at[last] = YAML(typ="safe").load(value)
    return content


def problems(content: dict) -> list[str]:
    with pytest.raises(ParamsError) as raised:
        validate(content)
    first, *lines = str(raised.value).split("\n  ")
    assert re.fullmatch(rf"params\.yaml has {len(lines)} problems?:", first.strip())
    return lines


WRONG = {
    "rounds.r1.generate.strategy=smaple": "rounds.r1.generate: there is no generate strategy 'smaple'; did you mean 'sample'?",
    "rounds.r1.domain.strategy=maths": "rounds.r1.domain: there is no domain 'maths'; did you mean 'math'?",
    "rounds.r1.judge.panel.verfier={}": "rounds.r1.judge.panel.verfier: there is no judge strategy 'verfier'; did you mean 'verifier'?",
    "rounds.r1.generate.temprature=1": "rounds.r1.generate.temprature: unknown key; did you mean 'temperature'?",
    "rounds.r1.genrate={}": "rounds.r1.genrate: unknown key; did you mean 'generate' or 'gate'?",
    "bases.r0.generate={}": "bases.r0.generate: unknown key; known: base, domain, engine, evaluate, files, seed",
    "campain={}": "campain: unknown key; did you mean 'campaign'?",
    "campaign.nome=x": "campaign.nome: unknown key; did you mean 'name'?",
    "bases-": "bases: is missing; `flywheel schema` describes what it takes",
    "rounds.r1.gate-": "rounds.r1.gate: is missing; `flywheel schema` describes what it takes",
    "rounds.r2.parent-": "rounds.r2.parent: is missing",
    "rounds.r2.parent=r11": "rounds.r2.parent: there is no base or round 'r11'; did you mean 'r1'",
    "rounds.r1.parent=r2": "rounds.r1.parent: the parents go in a circle (r1 → r2 → r1); one of them must start from a base",
    "rounds.r1.parent=r1": "rounds.r1.parent: the parents go in a circle (r1 → r1); one of them must start from a base",
    "rounds.r2.base=r1": "rounds.r2.base: is 'r1', but the parents lead to 'r0'; write base: r0",
    "bases.r0.parent=r1": "bases.r0.parent: unknown key",
    "rounds.r0={parent: r0}": "rounds.r0: is the name of a base too; rename one of them",
    "rounds.r1.generate.temperature=-1": "rounds.r1.generate.temperature: input should be greater than or equal to 0, not -1",
    "rounds.r1.generate.samples=many": "rounds.r1.generate.samples: input should be a valid integer, unable to parse string as an integer, not 'many'",
    "rounds.r1.seed=-3": "rounds.r1.seed: must be a whole number from 0 to 2147483647, not -3",
    "rounds.r1.seed=true": "rounds.r1.seed: must be a whole number from 0 to 2147483647, not True",
    "rounds.r1.judge.reward=votes": "rounds.r1.judge: value error, reward is 'votes', which is not in the panel; known: ",
    "rounds.r1.judge.panel=[verifier]": "rounds.r1.judge: needs a `panel` of members (",
    "rounds.r1.judge.panel.verifier=3": "rounds.r1.judge.panel.verifier: must be a block of parameters, not 3",
    "rounds.r1.generate=sample": "rounds.r1.generate: must name its strategy, as in {strategy: sample}, not 'sample'",
    "rounds.r1.judge.panel.verifier=false": "rounds.r1.judge.panel.verifier: must be a block of parameters, not False",
    "campaign=[x]": "campaign: must be a block of parameters, not ['x']",
    "rounds.r1.generate=": "rounds.r1.generate: must name its strategy, as in {strategy: sample}, not None",
    "rounds.r1.engine=": "rounds.r1.engine: must name its strategy, as in {strategy: fake}, not None",
    "rounds.r1=[]": "rounds.r1: must be a block with its strategies, not []",
    "rounds=[r1]": "rounds: must map names to blocks, not ['r1']",
    "rounds.R 9={}": "rounds.R 9: a name is a lower-case letter followed by letters, digits or _",
    "rounds.r1.parent=[r0]": "rounds.r1.parent: there is no base or round ['r0']",
    "rounds.r1.prompts.path=other/mine.jsonl": "rounds.r1.prompts.path: other/mine.jsonl lies outside data/seeds, where DVC would not see its edits; put it there",
    "rounds.r1.prompts.path=data/seeds/../mine.jsonl": "rounds.r1.prompts.path: data/seeds/../mine.jsonl lies outside data/seeds",
    "rounds.r1.domain={strategy: math, train: /data/a, test: data/seeds/b}": "rounds.r1.domain.train: /data/a lies outside data/seeds",
    "rounds.r1.domain={strategy: math, test: data/seeds/b}": "rounds.r1.domain.train: is missing; `flywheel schema`",
    "rounds.r1.prompts.path=data/seeds/a/mine.jsonl": "rounds.r1.files: is data/seeds/none, so DVC would not see edits of data/seeds/a/mine.jsonl (prompts.path); write files: data/seeds/a/mine.jsonl",
    "rounds.r1.domain={strategy: math, train: data/seeds/m/a, test: data/seeds/m/b}": "rounds.r1.files: is data/seeds/none, so DVC would not see edits of data/seeds/m/b (domain.test); write files: data/seeds/m",
    "rounds.r1.files=data/base": "rounds.r1.files: must be a file or folder of data/seeds (data/seeds/none for none), not 'data/base'",
    "rounds.r1.files=3": "rounds.r1.files: must be a file or folder of data/seeds",
    "bases.r0.files-": "bases.r0.files: is missing",
    "rounds.r1.filter.require={verfier: 1}": "rounds.r1.filter.require.verfier: there is no judge 'verfier' in judge.panel; did you mean 'verifier'?",
    "rounds.r1.filter.rank_by=log_prob": "rounds.r1.filter.rank_by: there is no judge 'log_prob' in judge.panel; did you mean 'logprob'?",
    "rounds.r2.evaluate.panel.answers.greedy=21": "rounds.r1.prompts.evaluation: keeps prompts clear of 20 heldout items, and evaluate of r2 asks for 21; write heldout: 21 there, or more",
    "rounds.r2.prompts.evaluation={heldout: 50}": "rounds.r2.prompts.evaluation: keeps prompts clear of 0 gold items, and evaluate of r2 asks for 7; write gold: 7",
    "rounds.r1.judge.panel.jury={jury: {big: {engine: {strategy: fake}, model: data/round=r00/model}}}": "rounds.r1.judge.panel.jury.jury.big.model: data/round=r00/model is not pinned, and 'r00' is no base or round; did you mean 'r0'",
    "rounds.r1.judge.panel.jury={jury: {big: {engine: {strategy: fake}, model: data/round=r2/model}}}": "rounds.r1.judge.panel.jury.jury.big.model: data/round=r2/model is made only after r1 (r1 → r2 → r1); take a model that comes before",
    "rounds.r2.judge.panel.jury={jury: {big: {engine: {strategy: fake}, model: data/round=r2/model}}}": "rounds.r2.judge.panel.jury.jury.big.model: data/round=r2/model is made only after r2 (r2 → r2); take",
    "campaign.name=tom's": "campaign.name: string should match pattern",
}


@pytest.mark.parametrize("edit", WRONG)
def test_what_is_wrong_is_named_with_its_key_value_and_fix(good, edit):
    assert any(p.startswith(WRONG[edit]) for p in problems(edited(good, edit))), problems(edited(good, edit))


def test_all_that_is_wrong_is_told_at_once(good):
    apart = (
        "rounds.r1.generate.",
        "rounds.r1.genrate",
        "campain",
        "rounds.r2.base",
        "rounds.r1.seed=-3",
        "rounds.r1.prompts.path=o",
    )
    edits = [e for e in WRONG if e.startswith(apart) and "strategy" not in e]
    told = problems(edited(good, *edits))
    assert len(told) == len(edits) == 8
    for edit in edits:
        assert any(p.startswith(WRONG[edit]) for p in told), edit


def test_an_engine_that_lacks_what_a_strategy_needs(good, monkeypatch):
    monkeypatch.setattr(Verifier, "needs", frozenset({"scores", "samples"}))
    monkeypatch.setattr(Fake, "scores", False)
    says = "judge: verifier needs an engine with scores, which fake lacks; choose another engine or leave it out"
    assert problems(good) == [f"rounds.r1.{says}", f"rounds.r2.{says}"]


def test_a_good_one(good):
    pipeline = validate(good)
    assert list(pipeline.blocks) == ["r0", "r1", "r2"]
    assert list(pipeline.rounds) == ["r1", "r2"]
    assert [b.name for b in pipeline.lineage("r2")] == ["r0", "r1", "r2"]
    assert pipeline.block("r2").base == "r0"
    assert pipeline.block("r0").is_base
    with pytest.raises(UnknownName, match="there is no round or base 'r22'; did you mean"):
        pipeline.block("r22")


def test_a_juror_may_be_a_model_that_is_not_made_yet(good):
    teacher = {"bases": good["bases"] | {"teacher": good["bases"]["r0"]}}
    big = "{jury: {big: {engine: {strategy: transformers}, model: data/round=teacher/model}}}"
    assert "teacher" in validate(edited(good | teacher, f"rounds.r1.judge.panel.jury={big}")).blocks


def test_parents_come_first_wherever_they_stand(good):
    turned = good | {"rounds": dict(reversed(good["rounds"].items()))}
    assert list(validate(turned).blocks) == ["r0", "r1", "r2"]


def test_files_that_are_no_params(tmp_path):
    with pytest.raises(ParamsError, match="there is no params.yaml in .*; run this in a project's root"):
        load_params(tmp_path)
    for text, says in {
        "bases: {r0: [}": "(?s)params.yaml is not valid YAML: .*line 1",
        "bases:\n  r0: 1\n  r0: 2\n": "(?s)params.yaml is not valid YAML: .*duplicate key",
        "- a\n- b\n": "must hold the keys campaign, bases and rounds",
        "": "must hold the keys campaign, bases and rounds",
        "? [a, b]\n: c\n": "params.yaml",
        "bases: &a\n  r0: *a\n": "params.yaml",
    }.items():
        (tmp_path / "params.yaml").write_text(text)
        with pytest.raises(ParamsError, match=says):
            load_params(tmp_path)
    (tmp_path / "params.yaml").write_bytes(b"bases: \xff\xfe\n")
    with pytest.raises(ParamsError, match="params.yaml is not valid YAML"):
        load_params(tmp_path)


# Whatever is written there, it is told as a problem


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(["r1", "r0", "sample", "pool"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["strategy", "panel", "parent", "x"]), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_random_edits_are_valid_or_told(good, data):
    content = copy.deepcopy(good)
    for _ in range(data.draw(st.integers(1, 3))):
        at = content
        while True:
            key = data.draw(st.sampled_from([*at, "new", "r3"]))
            inside = at.get(key)
            if not (isinstance(inside, dict) and inside) or data.draw(st.integers(0, 5)) == 0:
                break
            at = inside
        if data.draw(st.booleans()) and key in at and len(at) > 1:
            del at[key]
        else:
            at[key] = data.draw(values)
    with suppress(ParamsError):
        validate(content)


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="abr01:{}[]&*!?-|> \n\t#'\"%@", max_size=40))
def test_random_texts_are_valid_or_told(tmp_path_factory, text):
    root = tmp_path_factory.getbasetemp()
    (root / "params.yaml").write_text(text)
    with pytest.raises(ParamsError):
        load_params(root)


# Edits


def comments(root) -> list[str]:
    return re.findall(r"#.*", (root / "params.yaml").read_text())


def test_a_round_is_added_and_comments_stay(root):
    before = (root / "params.yaml").read_text()
    assert len(comments(root)) > 4
    add_round(root, "r3", "r2", ["generate.temperature=0.9", "judge.reward=verifier", "judge.panel.random={}"])
    after = (root / "params.yaml").read_text()
    assert after.startswith(before)
    block = load_params(root).block("r3")
    assert (block.parent, block.base, block.stages["generate"].temperature) == ("r2", "r0", 0.9)
    assert block.stages["judge"].reward == "verifier"
    assert "random" in block.stages["judge"].panel
    assert len({b.seed for b in load_params(root).rounds.values()}) == 3
    remove_round(root, "r3")
    assert (root / "params.yaml").read_text() == before


def test_a_round_whose_model_judges_another_stays(root):
    add_round(root, "t1", "r0", [])
    add_round(
        root, "r3", "r2", ["judge.panel.jury={jury: {big: {engine: {strategy: fake}, model: data/round=t1/model}}}"]
    )
    with pytest.raises(FlywheelError, match="the model of t1 is named by r3; remove these first"):
        remove_round(root, "t1")
    remove_round(root, "r3")
    remove_round(root, "t1")


def test_a_branch_copies_the_round_it_is_told_to(root):
    add_round(root, "r3", "r2", ["generate.samples=4"])
    add_round(root, "b1", "r0", [], like="r3")
    add_round(root, "b2", "r1", [])
    blocks = load_params(root).blocks
    assert (blocks["b1"].parent, blocks["b1"].stages["generate"].samples) == ("r0", 4)
    assert blocks["b2"].stages["generate"].samples == blocks["r1"].stages["generate"].samples


def test_another_strategy_starts_from_its_own_defaults(root):
    add_round(root, "r3", "r2", ["generate.samples=4", "filter={strategy: threshold, least: 0.3}"])
    add_round(root, "r4", "r3", ["filter.strategy=top_fraction", "filter.fraction=0.25"])
    assert plain(read(root))["rounds"]["r4"]["filter"] == {"strategy": "top_fraction", "fraction": 0.25}


def test_settings_do_not_depend_on_their_order(root):
    add_round(root, "r3", "r2", ["prompts.count=5", "prompts.path=data/seeds/a/x.jsonl", "prompts.strategy=seeds"])
    block = load_params(root).block("r3")
    assert (block.stages["prompts"].strategy_name(), block.stages["prompts"].count) == ("seeds", 5)
    assert block.raw["files"] == "data/seeds/a/x.jsonl", "DVC watches what is read"
    add_round(root, "r4", "r3", ["prompts.path=data/seeds/a/y.jsonl", "files=data/seeds/a"])
    assert load_params(root).block("r4").raw["files"] == "data/seeds/a"


def add_one(root, name):
    add_round(root, name, "r2", [])


def test_edits_at_the_same_time_are_all_there(root):
    with ProcessPoolExecutor(4, mp_context=get_context("forkserver")) as pool:
        list(pool.map(add_one, [root] * 4, ["a1", "a2", "a3", "a4"]))
    assert {"a1", "a2", "a3", "a4"} < set(load_params(root).rounds)


def test_what_the_default_prompts_keep_clear_of_is_all_that_the_default_evaluation_asks_for():
    content = projects.values(projects.HERE)
    assert "evaluation" not in content["rounds"]["r1"]["prompts"]
    for block in validate(content).rounds.values():
        assert all(block.stages["prompts"].evaluation[split] >= n for split, n in evaluated(block).items())
        assert set(evaluated(block)) == {"heldout", "validation", "gold"}


REFUSED = {
    "the name of a round": (lambda root: add_round(root, "r1", "r1", []), "params.yaml has a 'r1' already; choose another name"),
    "the name of a base": (lambda root: add_round(root, "r0", "r1", []), "has a 'r0' already"),
    "a name that is none": (lambda root: add_round(root, "Round 3", "r1", []), "a name is a lower-case letter"),
    "no parent": (lambda root: add_round(root, "r3", "r12", []), "there is no base or round 'r12'; did you mean"),
    "nothing to copy": (lambda root: add_round(root, "r3", "r1", [], like="r9"), "there is no round to copy from 'r9'"),
    "no value": (lambda root: add_round(root, "r3", "r1", ["generate.samples"]), "write KEY=VALUE, as in"),
    "an unknown stage": (lambda root: add_round(root, "r3", "r1", ["genrate.samples=2"]), "there is no key 'genrate'; did you mean"),
    "an unknown key": (lambda root: add_round(root, "r3", "r1", ["generate.sample=2"]), "unknown key; did you mean 'samples'"),
    "out of range": (lambda root: add_round(root, "r3", "r1", ["generate.samples=0"]), "greater than 0, not 0"),
    "no strategy": (lambda root: add_round(root, "r3", "r1", ["filter.strategy=best"]), "there is no filter strategy 'best'"),
    "broken YAML": (lambda root: add_round(root, "r3", "r1", ["generate.samples=[1"]), r"--set generate.samples=\[1"),
    "inside of a number": (lambda root: add_round(root, "r3", "r1", ["seed.deep=1"]), "--set seed.deep=1"),
    "inside of nothing": (lambda root: add_round(root, "r3", "r1", ["seed.deep.er=1"]), "--set seed.deep.er=1"),
    "a parent in a setting": (lambda root: add_round(root, "r3", "r2", ["parent=r1"]), "parent is not for --set: --parent names it"),
    "a base in a setting": (lambda root: add_round(root, "r3", "r2", ["base=r1"]), "base is not for --set"),
    "files that are not those that are read": (
        lambda root: add_round(root, "r3", "r2", ["prompts={strategy: seeds, path: data/seeds/a}", "files=data/seeds/b"]),
        "rounds.r3.files: is data/seeds/b, so DVC would not see edits of data/seeds/a"),
    "an empty key": (lambda root: add_round(root, "r3", "r1", ["=1"]), "unknown key|there is no key"),
    "a parent of others": (lambda root: remove_round(root, "r1"), "r1 is the parent of r2; remove these first"),
    "a name of a base": (lambda root: add_round(root, "r0", "r1", []), "has a 'r0' already; choose another name$"),
    "a base": (lambda root: remove_round(root, "r0"), "there is no round 'r0'; known: r1, r2"),
    "a base that is there": (lambda root: add_base(root, "r0", {"strategy": "local", "path": "x"}, []), "has a 'r0' already"),
    "a base of no strategy": (lambda root: add_base(root, "q0", {"strategy": "lokal"}, []), "did you mean 'local'"),
    "a branch name as a revision": (
        lambda root: add_base(root, "q0", {"strategy": "hub", "repo": "a/b", "revision": "main"}, []), "q0.base.revision: string should match"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_an_edit_that_cannot_be_is_refused_and_nothing_is_written(root, what):
    edit, says = REFUSED[what]
    before = (root / "params.yaml").read_bytes()
    with pytest.raises(FlywheelError, match=says):
        edit(root)
    assert (root / "params.yaml").read_bytes() == before
    assert {p.name for p in root.iterdir()} <= {"params.yaml", ".flywheel"}
    assert not (root / ".flywheel" / "params.yaml").exists()


def test_an_edit_of_a_broken_file_says_what_is_broken(root):
    (root / "params.yaml").write_text("rounds:\n  r1: 3\n")
    for edit in (
        lambda: add_round(root, "r3", "r1", []),
        lambda: add_base(root, "q0", {"strategy": "local", "path": "x"}, []),
        lambda: remove_round(root, "r2"),
    ):
        with pytest.raises(FlywheelError, match=r"bases: is missing|there is no round 'r2'"):
            edit()


def test_a_base_is_added(root):
    add_base(root, "q0", {"strategy": "hub", "repo": "a/b", "revision": "0" * 40}, ["engine.strategy=fake"])
    add_round(root, "q1", "q0", [])
    blocks = load_params(root).blocks
    assert blocks["q0"].stages["base"].repo == "a/b"
    assert blocks["q0"].engine.strategy_name() == "fake"
    assert blocks["q1"].base == "q0"


# The JSON schema


@pytest.fixture(scope="module")
def accepts():
    validator = Draft202012Validator(schema())
    Draft202012Validator.check_schema(schema())
    return validator.is_valid


def test_the_schema_accepts_what_is_valid(accepts, good):
    assert accepts(plain(read(projects.HERE)))
    assert accepts(good)
    assert accepts(edited(good, "rounds.r1.train={strategy: sft, adapter: {rank: 8}}"))
    assert accepts(edited(good, "rounds.r1.domain={strategy: math, train: data/seeds/a, test: data/seeds/b}"))
    assert accepts(edited(good, "rounds.r1.judge.panel.verifier="))
    assert accepts(edited(good, "rounds.r1.judge.panel.jury={jury: {a: {engine: {strategy: openai, model: big}}}}"))


BEYOND_IT = r"parent=r|base=r1|r0=|reward=|R 9|path=|/data/a|seeds/m|files=data|filter\.|r2\.(evaluate|prompts)|round="
IN_THE_SCHEMA = [e for e in WRONG if not re.search(BEYOND_IT, e)]


@pytest.mark.parametrize("edit", IN_THE_SCHEMA)
def test_the_schema_refuses_what_an_editor_can_know(accepts, good, edit):
    assert not accepts(edited(good, edit))


def test_the_schema_explains_every_key_that_has_a_docstring():
    text = str(schema())
    assert "Answers a prompt, K." in text
    assert "The member whose score filters, pairs and trains." in text
