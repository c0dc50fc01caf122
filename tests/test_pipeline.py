"""dvc.yaml: rendered from the stages, committed, and about files that exist."""

import re

import projects
import pytest
from ruamel.yaml import YAML

from tasks import pipeline
from tasks.params import Block, load_params, stages_of
from tasks.stage import stages


@pytest.fixture(scope="module")
def entries():
    """The stages of the committed dvc.yaml by group name."""
    groups = YAML(typ="safe").load(projects.HERE / "dvc.yaml")["stages"]
    return {name: group["do"] for name, group in groups.items()}


def blocks() -> list[Block]:
    return list(load_params(projects.HERE).blocks.values())


def filled(template: str, block: Block) -> str:
    """What DVC makes of a template of dvc.yaml for a block."""
    value = re.sub(r"\$\{item\.([\w.]+)\}", lambda m: _at(block.raw, m[1]), template)
    return value.replace("${key}", block.name)


def _at(raw, path: str) -> str:
    for key in path.split("."):
        raw = raw[key]
    return raw


def places(entry, *kinds: str) -> list[str]:
    """Paths of outs, metrics, plots or deps of an entry."""
    return [next(iter(o)) if isinstance(o, dict) else o for kind in kinds for o in entry.get(kind, [])]


def test_the_committed_file_is_the_rendering():
    assert (projects.HERE / "dvc.yaml").read_text() == pipeline.render(), "run `flywheel render`, and commit dvc.yaml"


def test_the_engine_of_a_juror_is_code_of_its_stage():
    block = load_params(projects.HERE).block("r1")
    used = {name: pipeline.code_files(projects.HERE, stages()[name], block) for name in ("judge", "evaluate")}
    file = projects.HERE / "tasks/engines/openai.py"
    assert file in used["judge"] and file not in used["evaluate"]


def test_rendering_says_whether_it_changed_anything(tmp_path):
    assert pipeline.write(tmp_path)
    assert not pipeline.write(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    assert pipeline.write(tmp_path)
    assert (tmp_path / "dvc.yaml").read_text() == pipeline.render()


def test_every_out_persists(entries):
    for name, entry in entries.items():
        for out in [*entry["outs"], *entry["metrics"], *entry.get("plots", [])]:
            assert next(iter(out.values()))["persist"] is True, (name, out)


def test_every_stage_has_an_entry_for_the_blocks_that_have_it(entries):
    expected = {pipeline.address(s, b).partition("@")[0] for b in blocks() for s in stages_of(b)}
    assert set(entries) == expected
    for block in blocks():
        for stage in stages_of(block):
            entry = entries[pipeline.address(stage, block).partition("@")[0]]
            assert filled(entry["cmd"], block) == f"flywheel stage {stage.name} {block.name}"


def test_every_dependency_is_a_file_of_the_project_or_an_out(entries):
    made, needed = set(), set()
    for block in blocks():
        for stage in stages_of(block):
            entry = entries[pipeline.address(stage, block).partition("@")[0]]
            made |= {filled(p, block) for p in places(entry, "outs", "metrics", "plots")}
            needed |= {filled(p, block) for p in places(entry, "deps")}
    assert made.isdisjoint(n for n in needed if not n.startswith("data/round="))
    for path in needed - made:
        assert not path.startswith("data/round="), f"nobody makes {path}"
        assert (projects.HERE / path).exists(), path


def test_a_manifest_is_an_out_of_its_stage_and_a_dependency_of_nobody(entries):
    for name, entry in entries.items():
        own = f"data/round=${{key}}/manifests/{name.removesuffix('-base')}.json"
        assert [p for p in places(entry, "outs") if "manifests" in p] == [own]
        assert not [p for p in places(entry, "deps") if "manifests" in p]


def test_every_parameter_exists_in_its_block(entries):
    for block in blocks():
        for stage in stages_of(block):
            for key in entries[pipeline.address(stage, block).partition("@")[0]]["params"]:
                kind, name, last = filled(key, block).split(".")
                assert (kind, name) == ("bases" if block.is_base else "rounds", block.name)
                assert last in block.raw


def test_stages_come_after_what_they_read():
    order = list(stages())
    writers = {o: s.name for s in stages().values() if s.bases != "only" for o in s.outputs}
    for stage in stages().values():
        for need in stage.inputs:
            if not need.ancestor and need.name in writers:
                assert order.index(writers[need.name]) < order.index(stage.name), (need, stage.name)


def test_a_base_writes_every_table_that_a_round_may_ask_of_an_ancestor():
    base = {o for s in stages().values() if s.bases != "no" for o in pipeline.written(s)}
    asked = {i.name for s in stages().values() for i in s.inputs if i.ancestor}
    assert asked <= base
