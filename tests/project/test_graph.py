"""The graph of stages, and which of them are stale: DVC is asked."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import projects
import pytest
from dvc.lock import make_lock

from tasks.core.errors import Busy, FlywheelError, ParamsError, UnknownName
from tasks.project import graph
from tasks.project.edit import add_round
from tasks.project.params import load_params

pytestmark = pytest.mark.xdist_group("campaign")


def test_order_puts_writers_before_readers(made):
    whole = graph.graph(load_params(made), ["r2"])
    order = list(whole)
    assert len(order) == 2 + 10 + 10
    assert all(order.index(before) < order.index(item) for item, needs in whole.items() for before in needs)
    assert "train@r1" in whole["generate@r2"], "a round is written by its parent's model"
    assert "train@r1" not in whole["prompts@r2"], "whose strategy opens no model"
    assert not any("evaluate@r1" in whole[f"{s}@r2"] for s in ("prompts", "generate")), "it can start meanwhile"


def test_the_graph_holds_only_the_lineage(made):
    assert {item.partition("@")[2] for item in graph.graph(load_params(made), ["r1"])} == {"r0", "r1"}


def test_rounds_are_in_the_order_of_the_file(made):
    projects.rewrite(made, lambda c: c.update(rounds={n: c["rounds"][n] for n in ("r2", "r1")}))
    assert graph.rounds(made) == ["r2", "r1"]


@pytest.fixture(scope="module")
def anchored_campaign(campaign, tmp_path_factory) -> Path:
    """The campaign, and r3 that asks its anchor, r2, which is none of its parents; all have run."""
    root = tmp_path_factory.mktemp("anchored") / "project"
    shutil.copytree(campaign, root, symlinks=True)
    settings = ["generate.cold={strategy: sample, model: anchor, samples: 2}", "collect.replay.of=anchor"]
    add_round(root, "r3", "r1", settings, anchor="r2")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        projects.run_all()
        with projects.dvc(root) as repo:
            repo.commit(force=True)
    return root


@pytest.fixture
def anchored(anchored_campaign, tmp_path, monkeypatch) -> Path:
    """A copy of it, as the working directory."""
    root = tmp_path / "anchored"
    shutil.copytree(anchored_campaign, root, symlinks=True)
    monkeypatch.chdir(root)
    return root


def test_an_anchor_is_an_ancestor(anchored):
    whole = graph.graph(load_params(anchored), ["r3"])
    assert {item.partition("@")[2] for item in whole} == {"r0", "r1", "r2", "r3"}
    assert "train@r2" in whole["generate@r3"]
    assert not {"generate@r2", "judge@r2"} & whole["pair@r3"], "whose strategy reads no table of an anchor"
    assert "collect@r2" in whole["collect@r3"]
    assert not any("r2" in item or "r3" in item for item in graph.graph(load_params(anchored), ["r1"]))


def test_dvc_alone_runs_again_what_a_changed_anchor_touches(anchored):
    """The anchor becomes another model under DVC's eyes: no flow and no command of ours takes part."""

    def teacher(content):
        content["bases"]["teacher"] = dict(content["bases"]["r0"], base={"strategy": "local", "path": "data/second"})
        content["rounds"]["r3"]["anchor"] = "teacher"
        del content["rounds"]["r3"]["set"]["collect.replay.of"]  # of another base's rows nothing may be replayed

    for name, value in (("second", 2.0), ("third", 3.0)):
        projects.stub_model(anchored / "data" / name, value)
    projects.rewrite(anchored, teacher)
    assert graph.stale(anchored, "r3")[0] == "base@teacher"
    with projects.dvc(anchored) as repo:
        first = [stage.addressing for stage in repo.reproduce()]
        projects.rewrite(anchored, lambda c: c["bases"]["teacher"]["base"].update(path="data/third"))
        ran = [stage.addressing for stage in repo.reproduce()]
        again = repo.reproduce()
    assert {"base@teacher", "generate@r3"} <= set(first)
    assert ran[:2] == ["plan", "base@teacher"]
    assert "generate@r3" in ran
    assert not {item for item in ran if item.endswith(("@r0", "@r1", "@r2"))}
    assert "prompts@r3" not in ran
    assert again == []


def test_another_model_of_the_anchor_makes_stale_who_opens_it(anchored):
    (anchored / "data/round=r2/model/config.json").write_text("{}")
    with projects.dvc(anchored) as repo:
        status = repo.status()
    readers = {
        item
        for item, why in status.items()
        if {"data/round=r2/model": "modified"} in [w.get("changed deps") for w in why]
    }
    assert readers == {"generate@r3", "evaluate@r2"}, "whoever opens it, and nobody else"


def test_the_rows_of_an_anchor_are_by_its_model_and_carry_the_member(anchored):
    import polars as pl

    from tasks.core import store

    rows = store.scan(anchored, "r3", "responses")[0].collect()
    assert dict(rows.group_by("member").len().iter_rows()) == {"sample": 12 * 3, "cold": 12 * 2}
    assert rows.group_by("member").agg(pl.col("model").n_unique())["model"].to_list() == [1, 1]
    assert rows["model"].n_unique() == 2, "the fake engine's models are told by their folders"
    manifest = store.manifests(anchored, "r3")["generate"]
    assert manifest.plan.ancestors == {"anchor": "r2", "parent": "r1"}
    assert manifest.inputs["anchor_model"] == store.manifests(anchored, "r2")["train"].outputs["model"].digest


# Staleness


def test_nothing_is_stale_after_a_run(made):
    assert graph.stale(made, "r2") == []


def test_an_edit_makes_its_stage_and_all_after_it_stale(made):
    projects.set_values(made, "r2", ["filter.threshold.min_reward=0.9"])
    assert graph.stale(made, "r1") == []
    assert graph.stale(made, "r2") == [
        f"{s}@r2" for s in ("filter", "critique", "pair", "collect", "train", "evaluate", "gate")]  # fmt: skip


def test_an_edit_of_a_recipe_makes_stale_all_rounds_that_take_it(made):
    small = projects.SMALL | {"pair": {"best_worst": {"min_margin": 0.5}}}
    projects.write_recipe(made, "small", small)
    assert [item for item in graph.stale(made, "r2") if item.startswith("pair")] == ["pair@r1", "pair@r2"]
    assert "filter@r1" not in graph.stale(made, "r2")


def test_a_model_that_was_asked_for_by_hand_is_known_to_dvc_at_once(made):
    projects.rewrite(made, lambda c: c["rounds"]["r2"].update(anchor="r0", set={"generate.sample.model": "anchor"}))
    assert "generate@r2" in graph.stale(made, "r2")
    assert "vars:" in (made / "dvc.yaml").read_text()
    with projects.dvc(made) as repo:
        deps = {s.addressing: {d.def_path for d in s.deps} for s in repo.index.stages}
    assert "data/round=r0/model" in deps["generate@r2"]


@pytest.mark.parametrize("left", ["", '{"write": {"data'])
def test_a_list_of_readers_that_a_kill_cut_off_stops_nothing(made, left):
    (made / ".dvc/tmp/rwlock").write_text(left)
    graph.mend_lock(made)
    assert not (made / ".dvc/tmp/rwlock").exists()
    (made / ".dvc/tmp/rwlock").write_text(left)
    assert graph.stale(made, "r2") == []


def test_a_list_of_readers_that_is_being_written_is_left_alone(made):
    (made / ".dvc/tmp/rwlock").write_text("")
    with make_lock(str(made / ".dvc/tmp/rwlock.lock"), tmp_dir=str(made / ".dvc/tmp")):
        graph.mend_lock(made)
    assert (made / ".dvc/tmp/rwlock").read_text() == ""


def test_where_git_is_missing_the_advice_is_its_own(made):
    (made / ".git").rename(made / "git")
    with pytest.raises(FlywheelError, match="`git init`"):
        graph.stale(made, "r2")


def test_lost_output_is_stale(made):
    (made / "data/round=r1/manifests/gate.json").unlink()
    assert graph.stale(made, "r2") == ["gate@r1"]


def test_wrong_names_and_wrong_params_are_named(made):
    with pytest.raises(UnknownName, match="did you mean"):
        graph.stale(made, "r22")
    projects.set_values(made, "r2", ["filter.threshold.min_rewrd=0.9"])
    with pytest.raises(ParamsError, match="min_rewrd"):
        graph.stale(made, "r1")


def test_a_folder_that_is_no_dvc_project(made):
    (made / ".dvc").rename(made / "elsewhere")
    with pytest.raises(FlywheelError, match="DVC"):
        graph.stale(made, "r2")


def test_a_stage_that_is_being_run_by_another_process(made):
    script = made / "dvc.yaml"
    script.write_text(script.read_text().replace('flywheel stage gate "$DVC_STAGE"', "echo > started; sleep 60"))
    other = subprocess.Popen([sys.executable, "-m", "dvc", "repro", "-s", "gate@r2"], start_new_session=True)
    try:
        while not Path("started").exists():
            assert other.poll() is None
        with pytest.raises(Busy, match=f"pid {other.pid}.*wait"):
            graph.stale(made, "r2")
    finally:
        os.killpg(other.pid, 9)
        other.wait()


def test_up_to_date_is_said_without_prefect(made):
    code = (
        "import sys\nfrom tasks.__main__ import app\n"
        "app(['run', 'r2'], standalone_mode=False)\n"
        "sys.exit('prefect' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "r2 is up to date; nothing to do.\n"
