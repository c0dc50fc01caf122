import os
import subprocess
import sys
from pathlib import Path

import projects
import pytest

from tasks import plan
from tasks.errors import Busy, FlywheelError, UnknownName
from tasks.params import load_params
from tasks.stage import stages


def test_order_puts_writers_before_readers(made):
    graph = plan.graph(load_params(made), ["r2"])
    order = list(graph)
    assert len(order) == 2 + 9 + 9
    assert all(order.index(before) < order.index(item) for item, needs in graph.items() for before in needs)
    assert "train@r1" in graph["prompts@r2"], "a round is written by its parent's model"
    assert "evaluate@r1" not in graph["prompts@r2"], "a round can start while its parent is evaluated"


def test_graph_holds_only_the_lineage(made):
    assert {item.partition("@")[2] for item in plan.graph(load_params(made), ["r1"])} == {"r0", "r1"}


def test_the_model_of_a_juror_comes_before_its_judgments(made):
    jury = "jury={jury: {big: {engine: {strategy: fake}, model: data/round=teacher/model}}}"
    projects.rewrite(made, lambda content: content["bases"].update(teacher=dict(content["bases"]["r0"])))
    projects.set_values(made, "r2", [f"judge.panel.{jury}"])
    graph = plan.graph(load_params(made), ["r2"])
    assert [item for item, needs in graph.items() if "base@teacher" in needs] == ["evaluate-base@teacher", "judge@r2"]
    assert not any("teacher" in item for item in plan.graph(load_params(made), ["r1"]))
    assert plan.stale(made, "r2")[0] == "base@teacher"


def test_nothing_is_stale_after_a_run(made):
    assert plan.stale(made, "r2") == []


def test_an_edit_makes_its_stage_and_all_after_it_stale(made):
    projects.set_values(made, "r2", ["filter.least=0.9"])
    assert plan.stale(made, "r1") == []
    assert plan.stale(made, "r2") == ["filter@r2", "train@r2", "evaluate@r2", "gate@r2"]


def test_where_git_or_dvcs_lock_file_is_missing_the_advice_is_its_own(made):
    (made / ".dvc/tmp/rwlock").write_text("")
    with pytest.raises(FlywheelError, match="rwlock.* remove that file once no `dvc` is running"):
        plan.stale(made, "r2")
    (made / ".git").rename(made / "git")
    with pytest.raises(FlywheelError, match="is not a git repository; `git init` makes it one"):
        plan.stale(made, "r2")


def test_lost_output_is_stale(made):
    (made / "data/round=r1/manifests/gate.json").unlink()
    assert plan.stale(made, "r2") == ["gate@r1"]


def test_unknown_round_is_named(made):
    with pytest.raises(UnknownName, match="did you mean"):
        plan.stale(made, "r22")


def test_a_folder_that_is_no_dvc_project(made):
    (made / ".dvc").rename(made / "elsewhere")
    with pytest.raises(FlywheelError, match="DVC"):
        plan.stale(made, "r2")


def test_a_stage_that_is_being_run_by_another_process(made):
    script = made / "dvc.yaml"
    script.write_text(script.read_text().replace("flywheel stage gate ${key}", "echo > started; sleep 60"))
    other = subprocess.Popen([sys.executable, "-m", "dvc", "repro", "-s", "gate@r2"], start_new_session=True)
    try:
        while not Path("started").exists():
            assert other.poll() is None
        with pytest.raises(Busy, match=f"pid {other.pid}.*wait for it"):
            plan.stale(made, "r2")
    finally:
        os.killpg(other.pid, 9)
        other.wait()


def test_estimates_start_from_the_earlier_run(made):
    projects.set_values(made, "r2", ["generate.samples=6"])
    asked = plan.estimate(made, ["generate@r2", "filter@r2"])
    ran = plan.store.manifests(made, "r2")["generate"].tokens
    assert asked["generate@r2"].requests == 2 * ran["requests"]
    assert asked["generate@r2"].tokens == 2 * (ran["prompt_tokens"] + ran["completion_tokens"])
    assert asked["generate@r2"].source == "as generate@r2 × 2"
    assert asked["filter@r2"].requests == 0


def test_estimates_of_what_never_ran_come_from_the_params():
    raw = {
        "prompts": {"strategy": "pool", "count": 100},
        "generate": {"strategy": "sample", "samples": 4, "max_tokens": 50},
        "critique": {"strategy": "auto_math", "limit": 10, "refinements": 2, "max_tokens": 7},
        "filter": {"strategy": "threshold"},
        "judge": {"panel": {"self_consistency": {}, "self_judge": {"max_tokens": 20}}, "reward": "self_judge"},
        "evaluate": {
            "panel": {
                "answers": {"splits": ["heldout", "validation"], "max_tokens": 1},
                "judging": {"votes": 3, "max_tokens": 1},
                "critiques": {"count": 10, "problems": 20, "max_tokens": 1},
            }
        },
    }
    asked = {name: plan.volume(stages()[name], raw)[:2] for name in raw}
    assert asked["generate"] == (400, 400 * 50)
    assert asked["critique"] == (35, 35 * 7), "right answers are criticised too, and not refined"
    answers, judging, critiques = 2 * (350 + 350 * 8), 3 * 140, 10 + 3 * 20
    assert asked["evaluate"][0] == answers + judging + critiques
    assert asked["judge"] == (400, 400 * 20)
    assert asked["filter"] == (0, 0)
    raw["judge"]["panel"]["self_judge"]["likeliest"] = 2
    assert plan.volume(stages()["judge"], raw).requests == 200
    raw["judge"]["panel"]["jury"] = {"jury": {"one": {}, "two": {}, "three": {}}, "samples": 2, "max_tokens": 10}
    assert plan.volume(stages()["judge"], raw)[:2] == (200 + 400 * 3 * 2, 200 * 20 + 400 * 3 * 2 * 10)


def test_dry_run_shows_stages_and_their_sum(made, capsys):
    projects.set_values(made, "r2", ["generate.samples=6"])
    plan.show(made, "r2", plan.stale(made, "r2"))
    shown = capsys.readouterr().out
    assert "8 stages to run" in shown
    assert "generate@r2" in shown
    assert "prompts@r2" not in shown


def test_up_to_date_is_said_without_prefect(made):
    code = (
        "import sys\nfrom tasks.__main__ import app\n"
        "app(['run', 'r2'], standalone_mode=False)\n"
        "sys.exit('prefect' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "r2 is up to date; nothing to do.\n"
