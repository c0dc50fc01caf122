"""Replays: the same bytes again, and the stage, row and column where they are not."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import projects
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from tasks.__main__ import app
from tasks.core import store
from tasks.core.errors import FlywheelError, UnknownName
from tasks.project import replay as replays
from tasks.project import tolerance
from tasks.project.execute import run_stage
from tasks.project.tolerance import folder_difference, table_difference

pytestmark = pytest.mark.xdist_group("campaign")
TINY = {
    "prompts.pool.count": 8,
    "prompts.pool.evaluation": projects.SCREEN,
    "prompts.pool.levels": {2: 1, 4: 1, 6: 1},
    "generate.sample.samples": 4,
    "critique.auto_math.limit": 4,
    "train.sft.epochs": 1,
}


def replayed(root: Path, name: str, *stages: str) -> dict[str, replays.Replayed]:
    chosen = list(stages) or replays.stages_of(root, name)
    return {r.stage: r for r in replays.replay(root, name, chosen)}


def edit_manifest(root: Path, name: str, stage: str, change) -> None:
    path = root / f"data/round={name}/manifests/{stage}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(store.Manifest.model_validate(content).text)


@pytest.fixture
def embedded(tmp_path, monkeypatch):
    """A round of the shipped model and recipe, in small."""
    for name in ("tasks", "recipes", "data/base", "data/seeds"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(projects.HERE / name)
    content = projects.values(projects.HERE)
    content["bases"] = {"r0": content["bases"]["r0"] | {"evaluate": projects.EXAM}}
    content["rounds"] = {"r1": {"parent": "r0", "base": "r0", "seed": 1, "set": TINY}}
    (tmp_path / "params.yaml").write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    projects.run_all()
    return tmp_path


def test_the_embedded_model_gives_the_same_bytes_its_training_too(embedded):
    assert store.manifests(embedded, "r1")["train"].metrics["trained"] == 1
    asked = ("prompts", "generate", "judge", "critique", "train", "evaluate")  # the others see no model
    found = replayed(embedded, "r1", *asked)
    assert {stage: r.verdict for stage, r in found.items()} == dict.fromkeys(asked, "identical")
    assert found["train"].stored == found["train"].replayed
    assert not (embedded / replays.PLACE / "r1").exists()


def test_a_planted_difference_is_found_in_its_stage_and_row_and_in_no_other(made):
    def reseed(content):
        content["plan"]["seed"] = 7

    before = projects.digests(made)
    edit_manifest(made, "r2", "generate", reseed)
    found = replayed(made, "r2")
    assert {s for s, r in found.items() if r.verdict != "identical"} == {"generate"}
    difference = found["generate"].difference
    assert (difference.output, difference.stored) == ("responses", "a row"), "ids hold the seed"
    assert difference.row == store.read(made, "r2", "responses")["id"][0]
    assert (made / replays.PLACE / "r2/generate/data/round=r2/responses").is_dir()
    changed = {p for p, d in projects.digests(made).items() if before[p] != d}
    assert changed == {"data/round=r2/manifests/generate.json"}, "the round itself stays"


def test_the_command_prints_verdicts_writes_the_certificate_and_tells_by_its_exit_code(made):
    done = CliRunner().invoke(app, ["replay", "r2", "--stage", "filter", "--certificate", "filter.json"])
    assert done.exit_code == 0, done.output
    assert "filter    byte-identical" in done.output
    certificate = json.loads((made / "filter.json").read_text())
    [stage] = certificate["stages"]
    assert stage["stored"] == stage["replayed"] == {"filtered": store.find(made, "r2", "filtered")[1].digest}
    assert certificate["machine"]["cores"] >= 1
    assert certificate["versions"]["polars"] != "absent"

    def stricter(content):
        content["plan"]["members"]["threshold"]["min_reward"] = 0.9
        content["plan"]["code"]["tasks/filter/threshold.py"] = "0" * 64

    edit_manifest(made, "r2", "filter", stricter)
    done = CliRunner().invoke(app, ["replay", "r2", "--stage", "filter"])
    assert done.exit_code == 1
    assert "different" in done.output
    assert "edited since: tasks/filter/threshold.py" in done.output
    assert "The first that differs is filter." in done.output
    [stage] = json.loads((made / ".flywheel/replay/r2-filter.json").read_text())["stages"]
    assert stage["difference"]["output"] == "filtered"
    assert stage["difference"]["column"] == "margin"


def test_what_cannot_be_compared_says_why(made):
    def outdated(content):
        content["inputs"]["prompts"] = "0" * 64

    edit_manifest(made, "r2", "filter", outdated)
    [result] = replayed(made, "r2", "filter").values()
    assert (result.verdict, result.replayed) == ("not comparable", {})
    assert "prompts of r2 was made again since" in result.reason

    def without_a_strategy(content):
        content["plan"]["members"] = {"gone": {"strategy": "gone"}}

    edit_manifest(made, "r1", "filter", without_a_strategy)
    [result] = replayed(made, "r1", "filter").values()
    assert result.verdict == "not comparable"
    assert "there is no filter strategy 'gone'" in result.reason
    assert not replays.certificate("r1", [result]).holds


def test_unknown_names_and_rounds_that_have_not_run(made):
    with pytest.raises(UnknownName, match="did you mean 'r1' or 'r2'|known"):
        replays.stages_of(made, "r9")
    with pytest.raises(UnknownName, match="did you mean 'judge'"):
        replays.stages_of(made, "r2", "jugde")
    projects.add_round(made, "r3", "r2")
    with pytest.raises(FlywheelError, match="r3 has not run.*flywheel run r3"):
        replays.stages_of(made, "r3")


def evals(**columns) -> pl.DataFrame:
    rows = {"id": ["a", "b"], "response": ["x", "y"], "entropy": [0.5, None], "tokens": [3, 4], "parents": [["p"], []]}
    return pl.DataFrame(rows | columns)


@pytest.mark.parametrize(
    ("columns", "at"),
    [
        ({}, None),
        ({"entropy": [0.5 + 1e-6, None]}, None),
        ({"entropy": [0.51, None]}, ("a", "entropy", "0.5", "0.51")),
        ({"entropy": [0.5, 0.0]}, ("b", "entropy", "None", "0.0")),
        ({"entropy": [float("nan"), None]}, ("a", "entropy", "0.5", "nan")),
        ({"tokens": [3, 5], "response": ["x", "z"]}, ("b", "response", "'y'", "'z'")),
        ({"tokens": [2, 4], "response": ["x", "z"]}, ("a", "tokens", "3", "2")),
        ({"parents": [["p"], ["q"]]}, ("b", "parents", "[]", "['q']")),
        ({"response": ["x", "\x1b[2J"]}, ("b", "response", "'y'", r"'\x1b[2J'")),
        ({"id": ["a", "c"]}, ("b", None, "a row", "none")),
    ],
)
def test_the_first_row_and_column_that_differ(columns, at):
    found = table_difference("evals", evals(), evals(**columns))
    assert (found and (found.row, found.column, found.stored, found.replayed)) == at
    assert table_difference("evals", evals(), evals()[[1, 0]]) is None, "in any order"


def test_weights_differ_by_more_than_a_share_of_the_largest_of_their_tensor(tmp_path):
    weights = np.linspace(-1, 1, 8, dtype=np.float32)
    for name, change in (("one", 0.0), ("close", tolerance.RTOL / 2), ("other", tolerance.RTOL * 2)):
        (tmp_path / name).mkdir()
        changed = weights.copy()
        changed[3] += change
        save_file({"v": weights, "w": changed}, tmp_path / name / "model.safetensors")
    assert folder_difference("model", tmp_path / "one", tmp_path / "close") is None
    found = folder_difference("model", tmp_path / "one", tmp_path / "other")
    assert (found.row, found.column) == ("model.safetensors", "w")
    assert found.stored.endswith("at 3")
    (tmp_path / "other/config.json").write_text("{}")
    found = folder_difference("model", tmp_path / "one", tmp_path / "other")
    assert (found.row, found.stored, found.replayed) == ("config.json", "none", "a file")


def test_a_base_is_replayed_too(made):
    run_stage(Path(), "r0", "evaluate")
    assert {r.verdict for r in replayed(made, "r0").values()} == {"identical"}
