"""What-if rounds: the same round with a change."""

from pathlib import Path

import projects
import pytest
from typer.testing import CliRunner

from flows import round as flow
from tasks.__main__ import app
from tasks.core import store
from tasks.core.errors import FlywheelError, ParamsError, UnknownName
from tasks.project import plan, what_if
from tasks.project.execute import run_stage
from tasks.project.params import load_params, stages_of

pytestmark = pytest.mark.xdist_group("campaign")
CHANGE = "filter.threshold.min_reward=0.9"


def run(name: str) -> None:
    plan.write(Path())
    for stage in stages_of(load_params(Path()).block(name)):
        run_stage(Path(), name, stage.name)


def test_a_branch_has_all_of_the_round_but_its_name_and_the_change(made):
    projects.set_values(made, "r2", ["generate.sample.temperature=0.9"])
    params_before = load_params(made)
    run("r2")
    with projects.dvc(made) as repo:
        repo.commit(force=True)
    what = what_if.add(made, "r2", [CHANGE])
    assert (what.new, what.changed) == ("r2x", ("filter",))
    assert what.equal == ["prompts", "generate", "judge"]
    written = projects.values(made)["rounds"]
    assert written["r2x"] == written["r2"] | {"set": written["r2"]["set"] | {"filter.threshold.min_reward": 0.9}}
    assert list(written) == ["r1", "r2", "r2x"]
    blocks = load_params(made).blocks
    old, new = (blocks[n] for n in ("r2", "r2x"))
    assert (old.seed, old.parent, old.recipe) == (new.seed, new.parent, new.recipe)
    assert blocks["r2"].values == params_before.blocks["r2"].values
    run("r2x")
    assert list(what_if.reused(made, what))[:3] == ["prompts", "generate", "judge"]
    assert "filter" not in what_if.reused(made, what)
    kept = {n: store.manifests(made, n)["filter"].metrics["kept"] for n in ("r2", "r2x")}
    assert kept["r2x"] < kept["r2"]


def test_the_command_runs_it_says_what_was_reused_and_shows_what_differs(made, monkeypatch):
    monkeypatch.setattr(flow, "run_round", run)
    done = CliRunner().invoke(app, ["whatif", "r2", "--set", CHANGE, "--name", "strict"])
    assert done.exit_code == 0, done.output
    assert f"params.yaml has strict now: r2 with {CHANGE}.\nIt changes filter; prompts, generate, judge" in done.output
    assert "the same bytes as in r2: prompts, generate, judge" in done.output
    assert "r2 → strict" in done.output
    assert "min_reward" in done.output.split("r2 → strict")[1]


@pytest.mark.parametrize(
    ("name", "settings", "new", "error", "match"),
    [
        ("r9", [CHANGE], None, UnknownName, "'r9'"),
        ("r0", [CHANGE], None, FlywheelError, "r0 is a base"),
        ("r2", [], None, FlywheelError, "name a change, as in --set"),
        ("r2", [CHANGE], "r1", FlywheelError, "has a 'r1' already; choose another with --name"),
        ("r2", ["filter.treshold.min_reward=0.3"], None, ParamsError, "did you mean 'threshold'"),
        ("r2", ["filter.threshold.min_rewrd=0.3"], None, ParamsError, "min_reward"),
        ("r2", ["filter.threshold.min_reward=0.4"], None, FlywheelError, "r2 with .* is r2"),
        ("r2", ["parent=r0"], None, FlywheelError, "parent: cannot be set"),
        ("r2", ["filter.threshold.min_reward"], None, FlywheelError, "KEY=VALUE"),
        ("r2", [CHANGE], "R 2", ParamsError, "R 2"),
    ],
)
def test_what_cannot_be_asked_leaves_the_file_as_it_is(made, name, settings, new, error, match):
    before = (made / "params.yaml").read_text()
    with pytest.raises(error, match=match):
        what_if.add(made, name, settings, new)
    assert (made / "params.yaml").read_text() == before


def test_a_round_that_is_not_up_to_date_is_no_measure(made):
    projects.set_values(made, "r2", ["filter.threshold.min_reward=0.5"])
    with pytest.raises(FlywheelError, match=r"r2 is not up to date \(filter@r2 and \d+ more would run\)"):
        what_if.add(made, "r2", [CHANGE])
    with pytest.raises(ParamsError, match="did you mean 'min_reward'"):  # the nearer mistake first
        what_if.add(made, "r2", ["filter.threshold.min_rewrad=0.3"])


def test_names_count_up_and_the_seed_can_be_the_change(made):
    assert what_if.add(made, "r2", [CHANGE]).new == "r2x"
    what = what_if.add(made, "r2", ["seed=7"])
    assert (what.new, what.equal) == ("r2x2", [])
    assert projects.values(made)["rounds"]["r2x2"]["seed"] == 7
