"""dvc.yaml: rendered from the stages, committed, and read by DVC as it is meant."""

from pathlib import Path

import projects
import pytest
from ruamel.yaml import YAML
from wrong import edited

from tasks.core.errors import ParamsError
from tasks.core.stage import stages
from tasks.project import addresses, pipeline
from tasks.project.edit import add_round
from tasks.project.params import Pipeline, load_params, stages_of, validate


@pytest.fixture(scope="module")
def params(written) -> Pipeline:
    return load_params(written)


@pytest.fixture(scope="module")
def entries(written) -> dict:
    """What DVC makes of dvc.yaml: its stages by address."""
    return parsed(written)


def parsed(root: Path) -> dict:
    with projects.dvc(root) as repo:
        return {s.name: s for s in repo.index.stages}


def deps(stage) -> list[str]:
    return [d.def_path for d in stage.deps]


def outs(stage) -> list[str]:
    return [o.def_path for o in stage.outs]


def test_the_committed_file_is_the_rendering():
    text = (projects.HERE / "dvc.yaml").read_text()
    assert text == pipeline.render(load_params(projects.HERE)), "run `flywheel render`, and commit dvc.yaml"


def test_rendering_says_whether_it_changed_anything(tmp_path, params):
    assert pipeline.write(tmp_path, params)
    assert not pipeline.write(tmp_path, params)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    assert pipeline.write(tmp_path, params)
    assert (tmp_path / "dvc.yaml").read_text() == pipeline.render(params)
    assert [p.name for p in tmp_path.iterdir()] == ["dvc.yaml"]


def test_dvc_has_a_stage_for_every_block_that_has_it(entries, params):
    expected = {pipeline.address(s, b): (s, b) for b in params.blocks.values() for s in stages_of(b)}
    assert set(entries) == {"plan", *expected}
    assert len(expected) == 2 + 2 * 10
    for address, (stage, block) in expected.items():
        assert entries[address].cmd == f'flywheel stage {stage.name} "$DVC_STAGE"'
        assert addresses.block_name(address, stage.name) == block.name


def test_the_plan_depends_on_all_that_a_person_edits_and_nothing_else_does(entries):
    assert set(deps(entries["plan"])) == {"params.yaml", "recipes", "data/seeds", "tasks"}
    [out] = entries["plan"].outs
    assert (out.def_path, out.use_cache) == ("data/plan", False)
    for address, entry in entries.items():
        if address != "plan":
            assert not set(deps(entry)) & set(deps(entries["plan"])), address
            assert "params" not in str([d.hash_info for d in entry.deps]).split()


def test_a_stage_depends_on_its_plan_and_on_what_it_reads(entries, params):
    dependencies = pipeline.dependencies(params)
    for block in params.blocks.values():
        for stage in stages_of(block):
            reads = [f"data/round={owner}/{need.name}" for need, owner in dependencies[block.name, stage.name]]
            entry = entries[pipeline.address(stage, block)]
            assert set(deps(entry)) == {f"data/plan/{block.name}/{stage.name}.json", *reads}


def test_every_out_persists_and_none_is_written_twice(entries):
    assert all(o.persist for entry in entries.values() for o in entry.outs)
    paths = [p for entry in entries.values() for p in outs(entry)]
    assert len(paths) == len(set(paths))


def test_everything_that_is_read_is_written_by_a_stage(entries):
    made = {p for entry in entries.values() for p in outs(entry)}
    for address, entry in entries.items():
        for path in deps(entry) if address != "plan" else ():
            assert path in made or path.startswith("data/plan/"), (address, path)


def test_a_manifest_is_an_out_of_its_stage_and_a_dependency_of_nobody(entries, params):
    for block in params.blocks.values():
        for stage in stages_of(block):
            entry = entries[pipeline.address(stage, block)]
            assert [p for p in outs(entry) if "/manifests/" in p] == [
                f"data/round={block.name}/manifests/{stage.name}.json"
            ]
            assert not [p for p in deps(entry) if "manifests" in p]


def test_dvc_shows_one_metrics_file_of_a_block_that_of_its_last_stage(entries, params):
    shown = [o.def_path for entry in entries.values() for o in entry.outs if o.metric]
    assert sorted(shown) == [
        f"data/round={b.name}/metrics/{'evaluate' if b.is_base else 'gate'}.json" for b in params.blocks.values()
    ]
    for block in params.blocks.values():
        for stage in stages_of(block):
            assert f"data/round={block.name}/metrics/{stage.name}.json" in outs(entries[pipeline.address(stage, block)])


def test_plots_name_files_that_stages_write_for_every_round_of_a_base(entries, params):
    content = YAML(typ="safe").load(pipeline.render(params))
    made = {p for entry in entries.values() for p in outs(entry)}
    plots = {name: plot for entry in content["plots"] for name, plot in entry.items()}
    assert list(plots) == ["exam-r0", "pass_at_1-r0", "greedy-r0", "loss-r0"]
    for name, plot in plots.items():
        assert set(plot["y"]) <= made, name
        assert (projects.HERE / f".dvc/plots/{plot['template']}.json").is_file()
        rounds = [path.split("=")[1].split("/")[0] for path in plot["y"]]
        assert rounds == (["r1", "r2"] if name == "loss-r0" else ["r0", "r1", "r2"])
    assert not [o for entry in entries.values() for o in entry.outs if o.plot], "a chart a round"


def test_a_base_without_rounds_has_no_plots(written):
    values = projects.values(written)
    values["bases"]["alone"] = values["bases"]["r0"]
    params = validate(values, written)
    content = YAML(typ="safe").load(pipeline.render(params))
    assert not [name for plot in content["plots"] for name in plot if "alone" in name]
    assert "alone" in content["artifacts"]


def test_every_model_is_an_artifact(written, entries, params):
    made = {p for entry in entries.values() for p in outs(entry)}
    with projects.dvc(written) as repo:
        artifacts = repo.artifacts.read()["dvc.yaml"]
    assert {name: a.path for name, a in artifacts.items()} == {n: f"data/round={n}/model" for n in params.blocks}
    assert {a.path for a in artifacts.values()} <= made
    assert {a.type for a in artifacts.values()} == {"model"}
    assert artifacts["r2"].desc == "Round r2, trained from r1"


def test_a_round_that_a_person_adds_by_hand_is_plotted_without_a_word(root):
    projects.rewrite(root, lambda c: c["rounds"].update(r3={"parent": "r2", "base": "r0", "seed": 3}))
    params = load_params(root)
    assert pipeline.is_outdated(root, params)
    assert not pipeline.lacks_dependencies(root, params), "so that `flywheel plan` renders it and goes on"
    pipeline.write(root, params)
    assert not pipeline.is_outdated(root, params)


def test_a_base_writes_every_table_that_a_round_may_ask_of_an_ancestor():
    base = {o for s in stages().values() if s.bases != "no" for o in pipeline.written(s)}
    asked = {i.name for s in stages().values() for i in s.inputs if i.ancestor}
    assert asked <= base


# Optional tables


READS = {
    "exploration={}": {"key/prompts", "key/responses", "key/judgments"},
    "forgetting={problems: 7}": {"item.parent/evals", "item.base/evals", "item.parent/prompts", "item.parent/training"},
    "collapse={}": {"key/prompts", "item.parent/model"},
}


@pytest.mark.parametrize("member", READS)
def test_an_optional_table_is_a_dependency_where_an_exam_reads_it(written, member):
    before = YAML(typ="safe").load(pipeline.render(load_params(written)))["stages"]
    params = validate(edited(projects.values(written), f"bases/r0/evaluate/{member}"), written)
    after = YAML(typ="safe").load(pipeline.render(params))["stages"]
    more = {
        name: set(after[name]["do"]["deps"]) - set(before[name]["do"]["deps"]) for name in after if "do" in after[name]
    }
    paths = {f"data/round=${{{owner}}}/{name}" for owner, name in (read.split("/") for read in READS[member])}
    assert {name: deps for name, deps in more.items() if deps} == {"evaluate": paths}, "a base has none of them"


def test_a_gate_on_a_probe_that_the_exam_lacks_is_refused(written):
    values = edited(projects.values(written), "bases/r0/gate/alignment={}")
    with pytest.raises(ParamsError, match=r"bases\.r0\.gate\.alignment.*'alignment'"):
        validate(values, written)
    validate(edited(values, "bases/r0/evaluate/alignment={}"), written)


# Ancestors that not every round has


ASKS = {
    "rounds/r2={parent: r1, base: r0, anchor: r0, set: {generate.sample.model: anchor}}": {
        "r1": {"anchor": "r0"},
        "r2": {},
    },
    "rounds/r2/set={generate.sample.model: grandparent}": {"r1": {"grandparent": "r0"}, "r2": {"grandparent": "r0"}},
    "rounds/r2/set={collect.replay.of: grandparent}": {"r1": {"grandparent": "r0"}, "r2": {"grandparent": "r0"}},
}


@pytest.mark.parametrize("edit", ASKS)
def test_dvc_gets_anchors_and_grandparents_where_a_round_asks_for_one(written, edit):
    params = validate(edited(projects.values(written), edit), written)
    content = YAML(typ="safe").load(pipeline.render(params))
    assert content["vars"] == [{"rounds": ASKS[edit]}]
    stage = "collect" if "collect" in edit else "generate"
    kind = "anchor" if "anchor" in edit else "grandparent"
    assert any(f"item.{kind}" in d for d in content["stages"][stage]["do"]["deps"])
    assert not any(f"item.{kind}" in d for d in content["stages"]["judge"]["do"]["deps"]), "which does not ask"


def test_where_no_round_asks_for_them_dvc_gets_none(params):
    text = pipeline.render(params)
    assert not {"vars", "anchor", "grandparent"} & set(text.replace(":", " ").replace(".", " ").split())
    assert "item.base" not in text.replace("${item.base}/evals", "").replace("${item.base}/measures", "")


def test_a_file_that_lacks_them_is_noticed(root):
    assert not pipeline.is_outdated(root, load_params(root))
    projects.rewrite(root, lambda c: c["rounds"]["r2"].update(set={"generate.sample.model": "grandparent"}))
    assert pipeline.is_outdated(root, load_params(root))
    pipeline.write(root, load_params(root))
    assert not pipeline.is_outdated(root, load_params(root))
    projects.rewrite(root, lambda c: c["rounds"]["r2"].pop("set"))
    assert pipeline.is_outdated(root, load_params(root))
    (root / "dvc.yaml").unlink()
    assert not pipeline.is_outdated(root, load_params(root)), "it is rendered before it is asked about"


def test_dvc_knows_an_anchor_as_a_dependency(project):
    root = project(git=False)
    parsed_before = parsed(root)
    add_round(root, "t1", "r0")
    add_round(root, "r3", "r2", ["generate.sample.model=anchor"], anchor="t1")
    entries = parsed(root)
    assert {p for p in deps(entries["generate@r3"]) if "model" in p} == {"data/round=t1/model", "data/round=r2/model"}
    assert set(deps(entries["generate@r2"])) == set(deps(parsed_before["generate@r2"])), (
        "who asks for none is left alone"
    )
    assert not [d for d in deps(entries["generate@r1"]) if "t1" in d]
