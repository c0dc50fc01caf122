"""Previews: a round on a few prompts, of which nothing stays but the request cache."""

import projects
import pytest
from typer.testing import CliRunner

from tasks.__main__ import app
from tasks.core import store
from tasks.core.errors import FlywheelError, UnknownName
from tasks.project import plan
from tasks.project.preview import PLACE, place, previewed

pytestmark = pytest.mark.xdist_group("campaign")
DATA = ["prompts", "generate", "judge", "filter", "critique", "pair", "collect"]


def test_a_round_that_has_not_run_is_shown_on_a_few_prompts_and_leaves_nothing(made):
    projects.add_round(made, "r3", "r2")
    before = projects.digests(made)
    told: list[str] = []
    with previewed(made, "r3", 3, told.append) as manifests:
        assert list(manifests) == told == DATA
        rows = {t: store.read(place(made, "r3"), "r3", t) for t in ("prompts", "responses", "filtered", "judgments")}
        assert manifests["generate"].plan.ancestors == {"parent": "r2"}
    assert rows["prompts"]["error"].null_count() == 3
    assert len(rows["responses"]) == len(rows["filtered"]) == 3 * 3, "as the recipe says"
    assert set(rows["judgments"]["member"]) == set(projects.SMALL["judge"]) - {"reward"}
    assert projects.digests(made) == before
    assert not (made / "data/round=r3").exists()
    assert not place(made, "r3").exists()
    assert (made / "data/cache/requests").is_dir()


def test_plans_are_the_rounds_own_but_for_the_count(made):
    planned = plan.plans(made, projects.load_params(made))
    with previewed(made, "r2", 2) as manifests:
        for stage, manifest in manifests.items():
            expected = planned["r2", stage]
            if stage == "prompts":
                seeds = expected.members["seeds"] | {"count": 2}
                expected = expected.model_copy(update={"members": {"seeds": seeds}})
            assert manifest.plan == expected


def test_members_that_make_more_together_are_cut(made):
    second = {"strategy": "seeds", "split": "train", "count": 9, "evaluation": projects.SCREEN}
    projects.set_values(made, "r2", [f"prompts.more.{k}={v}" for k, v in second.items()])
    with previewed(made, "r2", 3):
        rows = store.read(place(made, "r2"), "r2", "prompts")
    assert rows["error"].null_count() == 3


def test_the_command_prints_prompts_answers_verdicts_decisions_and_rows(made):
    done = CliRunner().invoke(app, ["preview", "r2", "--rows", "12"])
    assert done.exit_code == 0, done.output
    for text in (
        "1/12",
        "self_consistency (reward)",
        "kept, rank 1",
        "dropped: ",
        "verifier 0 ✗",
        "12 prompts, 36 answers",
    ):
        assert text in done.output
    assert "pair by best_worst" in done.output or " 0 pairs" in done.output


def test_what_a_model_writes_does_not_steer_the_terminal(made):
    projects.rewrite(
        made,
        lambda content: content["bases"]["r0"].update(
            engine={"strategy": "fake", "answers": {"": "\x1b[2J\x9b31m [red]Answer: 4"}}
        ),
    )
    done = CliRunner().invoke(app, ["preview", "r2", "--rows", "2"])
    assert done.exit_code == 0, done.output
    assert "\x1b" not in done.output
    assert "\x9b" not in done.output
    assert "�[2J�31m [red]Answer: 4" in done.output.replace("\n", " ")


def test_a_base_an_unknown_round_and_one_whose_parent_is_not_made(made):
    for name, error, match in (
        ("r0", FlywheelError, "r0 is a base"),
        ("r9", UnknownName, "r9"),
        ("r4", FlywheelError, "r3.*flywheel run r3"),
    ):
        if name == "r4":
            projects.add_round(made, "r3", "r2")
            projects.add_round(made, "r4", "r3")
        with pytest.raises(error, match=match), previewed(made, name, 2):
            pass
        assert not list((made / PLACE).glob("r*"))


def test_nothing_is_removed_for_a_name_that_no_round_has(project, tmp_path):
    root = project()
    outside = tmp_path / "outside"
    for kept in (outside, place(root, "unknown")):
        kept.mkdir(parents=True)
        (kept / "kept").write_text("x")
    for name in (outside.as_posix(), "../../../outside", "unknown"):
        with pytest.raises(UnknownName), previewed(root, name, 1):
            pass
    assert (outside / "kept").is_file() and (place(root, "unknown") / "kept").is_file()
