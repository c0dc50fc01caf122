"""One stage of one round: what it reads, what it leaves behind, and what stays when it fails."""

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import projects
import pytest

from tasks.core import frames, models, store, tables
from tasks.core.errors import EngineError, FlywheelError, ModelRefused, StoreError
from tasks.core.plan import TRANSPORT, Plan
from tasks.core.stage import Result, Stage, stages
from tasks.project import execute, pieces, plan
from tasks.project.execute import run_stage

pytestmark = pytest.mark.xdist_group("campaign")


def manifest(name: str, stage: str) -> store.Manifest:
    return store.manifests(Path(), name)[stage]


def planned(root: Path, name: str, *settings: str) -> None:
    """Changes values of a round, and makes the plans anew."""
    projects.set_values(root, name, list(settings))
    plan.write(root)


def replaced(monkeypatch, name: str, function) -> None:
    """Puts a function in the place of a stage's."""
    stage = stages()[name]
    fields = {f: getattr(stage, f) for f in stage.__dataclass_fields__} | {"function": function}
    monkeypatch.setattr(execute, "_stage", lambda *_: Stage(**fields))


def test_a_manifest_says_what_is_true_of_the_result(made):
    result = manifest("r2", "generate")
    assert (result.round, result.stage) == ("r2", "generate")
    assert result.outputs["responses"].rows == 36 == len(store.scan(made, "r2", "responses")[0].collect())
    assert result.inputs["prompts"] == manifest("r2", "prompts").outputs["prompts"].digest
    assert result.inputs["parent_model"] == manifest("r1", "train").outputs["model"].digest
    assert "base_model" not in result.inputs, "which nobody opens"
    assert result.tokens["requests"] == 36
    assert result.tokens["completion_tokens"] == result.metrics["response_tokens"] > 0
    assert set(result.seconds) == {"start", "model", "run", "write"}
    assert result.versions["polars"] != "absent"
    assert result.started <= result.finished
    assert json.loads((made / "data/round=r2/metrics/generate.json").read_text()) == result.metrics


def test_a_manifest_holds_the_plan_that_was_carried_out(made):
    result = manifest("r2", "generate").plan
    assert result == Plan.read(made, "r2", "generate")
    assert (result.seed, result.members["sample"]["samples"], result.members["sample"]["top_p"]) == (2, 3, 1.0)
    assert result.ancestors == {"parent": "r1"}
    assert {"tasks/generate/__init__.py", "tasks/generate/sample.py", "tasks/domains/arithmetic.py", "tasks/engines/fake.py"} < set(result.code)  # fmt: skip
    assert result.code["tasks/generate/sample.py"] == store.sha256(made / "tasks/generate/sample.py")
    assert not any(f.startswith(("tasks/judge", "tasks/project", "tasks/engines/vllm")) for f in result.code)


def test_the_exam_has_the_judges_of_the_round_and_a_base_those_of_the_default_recipe(made):
    judges = {n for n in projects.SMALL["judge"] if n != "reward"}
    assert set(manifest("r1", "evaluate").plan.judges) == set(manifest("r0", "evaluate").plan.judges) == judges
    assert manifest("r1", "judge").plan.judges == {}


def test_a_base_writes_empty_what_a_round_may_ask_of_it(made):
    written = manifest("r0", "base").outputs
    assert {"prompts", "responses", "training"} <= set(written)
    assert all(o.rows == 0 for o in written.values() if o.kind == "table")
    assert store.scan(made, "r0", "training")[0].collect().columns == tables.training.schema.names


def test_the_same_again_gives_the_same_bytes(made):
    before = projects.digests(made)
    again = ("prompts", "generate", "judge", "critique", "collect", "train", "evaluate", "gate")
    for stage in again:
        run_stage(Path(), "r2", stage)
    after = projects.digests(made)
    assert {p for p in after if after[p] != before[p]} == {f"data/round=r2/manifests/{stage}.json" for stage in again}


@pytest.mark.parametrize(
    ("name", "stage"), [("r2", "jugde"), ("r0", "generate"), ("r3", "judge"), ("r1", "base"), ("r1", "core")]
)
def test_a_stage_that_no_round_has_is_named(made, name, stage):
    before = projects.digests(made)
    with pytest.raises(FlywheelError, match=name if name == "r3" else stage):
        run_stage(Path(), name, stage)
    assert projects.digests(made) == before


def test_a_stage_without_a_plan_says_what_makes_one(made):
    (made / "data/plan/r2/judge.json").unlink()
    with pytest.raises(StoreError, match=r"data/plan/r2/judge\.json: .*`flywheel plan`"):
        run_stage(Path(), "r2", "judge")
    (made / "data/plan/r2/judge.json").write_text("{}")
    with pytest.raises(StoreError, match="`flywheel plan`"):
        run_stage(Path(), "r2", "judge")
    assert plan.write(made) == 1
    run_stage(Path(), "r2", "judge")


def test_code_that_was_edited_since_the_plan_was_made_is_not_run(made, monkeypatch):
    monkeypatch.setattr(execute, "TASKS", made / "tasks")  # as if this project's code were the one that runs
    before = projects.digests(made)
    with (made / "tasks/filter/threshold.py").open("a") as file:
        file.write("# an edit\n")
    with pytest.raises(StoreError, match=r"filter@r2: tasks/filter/threshold\.py .*`flywheel plan`"):
        run_stage(Path(), "r2", "filter")
    assert projects.digests(made) == before
    run_stage(Path(), "r2", "pair")
    assert plan.write(made) == 2
    assert run_stage(Path(), "r2", "filter").plan.code["tasks/filter/threshold.py"] == store.sha256(made / "tasks/filter/threshold.py")  # fmt: skip


def test_what_the_plan_says_is_done_whatever_params_yaml_says_since(made):
    projects.set_values(made, "r2", ["filter.threshold.min_reward=3.0"])
    assert run_stage(Path(), "r2", "filter").plan.members["threshold"]["min_reward"] == 0.4
    (made / "params.yaml").unlink()
    assert run_stage(Path(), "r2", "filter").outputs["filtered"].rows == 36


def test_warnings_are_kept_in_the_manifest(made, monkeypatch):
    assert any("nothing was collected" in w for w in manifest("r2", "collect").warnings)
    assert manifest("r2", "filter").warnings == []
    replaced(monkeypatch, "critique", lambda **_: Result({}, warnings=("look here", "and there")))
    run_stage(Path(), "r2", "critique")
    assert manifest("r2", "critique").warnings == ["look here", "and there"]


def test_a_stage_that_kept_nothing_says_so_in_its_manifest(made):
    before = store.read(made, "r2", "filtered")
    planned(made, "r2", "filter.threshold.min_reward=99")
    run_stage(Path(), "r2", "filter")
    [warning] = manifest("r2", "filter").warnings
    assert f"kept none of {len(before)} answers" in warning and "most often: score (" in warning
    assert store.read(made, "r2", "filtered")["kept"].sum() == 0


def test_the_gpus_that_a_stage_held_are_counted_and_not_those_of_a_stage_before_it(made, monkeypatch):
    held = iter([{"GPU-a": 5.0}, {"GPU-a": 5.0, "GPU-b": 2.5}, {}])
    monkeypatch.setattr(execute.devices, "held", lambda: next(held))
    monkeypatch.setattr(execute.devices, "kinds", lambda names: [f"kind of {n}" for n in names])
    run_stage(Path(), "r2", "filter")
    assert (manifest("r2", "filter").gpus, manifest("r2", "filter").gpu_seconds) == (["kind of GPU-b"], 2.5)


def test_what_has_not_been_made_is_named(project):
    root = project(git=False)
    plan.write(root)
    with pytest.raises(StoreError, match="r0 .*'?prompts'? .*`flywheel run r0`"):
        run_stage(Path(), "r1", "prompts")
    assert projects.digests(root) == {}


def test_a_stage_that_fails_leaves_the_old_version(made, monkeypatch):
    before = projects.digests(made)

    def broken(**_):
        raise ZeroDivisionError

    replaced(monkeypatch, "filter", broken)
    with pytest.raises(ZeroDivisionError):
        run_stage(Path(), "r2", "filter")
    assert projects.digests(made) == before
    assert not list((made / "data/round=r2/.staging/filter").glob("new/*"))


@pytest.mark.parametrize(
    "says", ["Error while serializing: I/O error: No space left on device (os error 28)", "file write failed"]
)
def test_a_full_disk_is_told_whoever_met_it(made, monkeypatch, says):
    before = projects.digests(made)

    def full(**_):
        raise RuntimeError(says)

    replaced(monkeypatch, "filter", full)
    room = store.shutil.disk_usage(made)
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: room._replace(free=4096 if "failed" in says else 10**9))
    with pytest.raises(StoreError, match="filter@r2: the disk is full"):
        run_stage(Path(), "r2", "filter")
    assert projects.digests(made) == before


def test_an_input_that_is_replaced_while_it_is_read_is_told(made, monkeypatch):
    before = projects.digests(made)

    def slow(**_):
        with store.writing(made, "r2", "judge") as draft:  # another process judges anew meanwhile
            draft.table(tables.judgments, frames.frame(tables.judgments))
            draft.commit(manifest("r2", "judge").model_copy(update={"outputs": draft.outputs}))

    replaced(monkeypatch, "filter", slow)
    with pytest.raises(StoreError, match="filter@r2: judgments of r2 was replaced"):
        run_stage(Path(), "r2", "filter")
    after = projects.digests(made)
    assert {p for p in after if after[p] != before[p]} == {
        "data/round=r2/judgments/part-00000.parquet",
        "data/round=r2/manifests/judge.json",
    }


def test_rows_that_break_a_check_are_not_written(made, monkeypatch):
    before = projects.digests(made)
    row = {"id": "x", "prompt_id": "p", "kept": True, "reason": "odd", "rank": 1}
    replaced(monkeypatch, "filter", lambda **_: frames.frame(tables.filtered, [row]))
    with pytest.raises(StoreError, match="filtered: rows x break"):
        run_stage(Path(), "r2", "filter")
    assert projects.digests(made) == before


def test_what_a_stage_does_not_give_is_written_empty(made, monkeypatch):
    replaced(monkeypatch, "critique", lambda **_: None)
    done = run_stage(Path(), "r2", "critique")
    assert {n: o.rows for n, o in done.outputs.items()} == {"critiques": 0, "refinements": 0}
    replaced(monkeypatch, "evaluate", lambda **_: Result({}, {"greedy": 0.5}, {"levels": pl.DataFrame({"level": [2]})}))
    done = run_stage(Path(), "r2", "evaluate")
    assert done.metrics["greedy"] == 0.5
    assert (made / "data/round=r2/plots/levels.csv").read_text() == "level\n2\n"


def test_the_scratch_folder_survives_a_failure_and_belongs_to_what_was_asked(made, monkeypatch):
    seen = []

    def killed(work: Path, model: Path, **_):
        seen.append(work)
        (work / "checkpoint").touch()
        raise KeyboardInterrupt

    replaced(monkeypatch, "train", killed)
    monkeypatch.setattr(execute, "TASKS", made / "tasks")
    for edit in (None, None, "code", "params"):
        if edit == "code":
            with (made / "tasks/train/sft.py").open("a") as file:
                file.write("# an edit\n")
            plan.write(made)
        elif edit:
            planned(made, "r2", "train.sft.epochs=3")
        with pytest.raises(KeyboardInterrupt):
            run_stage(Path(), "r2", "train")
    assert seen[0] == seen[1]
    assert len(set(seen)) == 3
    assert all((w / "checkpoint").exists() for w in seen)

    def finishes(work: Path, model: Path, **_):
        (model / "config.json").write_text("{}")
        assert (work / "checkpoint").exists()
        return Result({})

    replaced(monkeypatch, "train", finishes)
    run_stage(Path(), "r2", "train")
    assert not seen[-1].exists()
    assert seen[0].exists()


def test_what_is_answered_while_it_is_written_is_the_model_s_time(made):
    planned(made, "r2", "engine.seconds=0.02")
    spent = run_stage(Path(), "r2", "generate").seconds
    assert spent["model"] >= 36 * 0.02 > spent["run"] + spent["write"] > 0


@pytest.mark.parametrize(("rate", "share"), [(1.0, 0.05), (0.97, 0.05), (0.2, 0.05), (0.9, 0.5), (0.1, 0.0)])
def test_a_stage_whose_engine_fails_too_often_writes_nothing(made, rate, share):
    before = projects.digests(made)
    planned(made, "r2", f"engine.error_rate={rate}", f"engine.max_error_share={share}")
    with pytest.raises(EngineError, match=rf"model parent: \d+ of 36 .*max_error_share \({share:g}\)"):
        run_stage(Path(), "r2", "generate")
    assert projects.digests(made) == before
    assert not list((made / "data/round=r2/.staging/generate").glob("ready/*"))


def test_a_stage_may_fail_as_often_as_its_engine_says(made):
    planned(made, "r2", "engine.error_rate=0.9", "engine.max_error_share=0.95")
    result = run_stage(Path(), "r2", "generate")
    assert 18 < result.metrics["response_errors"] < 36 == result.outputs["responses"].rows


def test_the_exam_s_engine_is_the_base_s_and_fails_for_itself(made):
    planned(made, "r2", "engine.error_rate=1.0")
    assert run_stage(Path(), "r2", "evaluate").metrics["greedy"] >= 0
    projects.rewrite(made, lambda c: c["bases"]["r0"]["engine"].update(error_rate=0.5))
    plan.write(made)
    with pytest.raises(EngineError, match="model model"):
        run_stage(Path(), "r2", "evaluate")


def test_failures_alone_are_an_error_however_few(made):
    planned(made, "r2", "engine.error_rate=1.0", "critique.auto_math.limit=2")
    with pytest.raises(EngineError, match="requests failed"):
        run_stage(Path(), "r2", "critique")


def test_an_engine_that_is_down_leaves_everything_as_it_was(made):
    before = projects.digests(made)
    projects.rewrite(made, lambda c: c["bases"]["r0"]["engine"].update(down=True))
    plan.write(made)
    for stage in ("generate", "evaluate"):
        with pytest.raises(EngineError, match=r"engine\.down"):
            run_stage(Path(), "r2", stage)
    assert projects.digests(made) == before


def jury(root: Path, model: str) -> None:
    projects.rewrite(root, lambda c: c.update(models={"teacher": projects.YAML(typ="safe").load(model)}))
    planned(root, "r2", "judge.others={strategy: jury, models: [teacher]}")


def test_a_model_of_the_roster_is_opened_by_its_name(made):
    projects.stub_model(made / "data/teacher")
    digest = models.digest(made / "data/teacher")
    jury(made, f"{{engine: {{strategy: fake, reply: echo}}, path: data/teacher, digest: {digest}}}")
    result = run_stage(Path(), "r2", "judge")
    assert result.plan.models["teacher"]["digest"] == digest
    assert (result.plan.models["teacher"]["engine"]["reply"], result.plan.engine["reply"]) == ("echo", "answer")
    judged = store.scan(made, "r2", "judgments")[0].collect()
    assert judged.filter(member="others").height == 36
    (made / "data/teacher/config.json").write_text("{}")
    with pytest.raises(ModelRefused, match=f"model teacher: .*{digest}"):
        run_stage(Path(), "r2", "judge")


def test_a_served_model_of_the_roster_needs_no_folder(made):
    jury(made, "{engine: {strategy: fake}}")
    before = manifest("r2", "judge").tokens["requests"]
    assert run_stage(Path(), "r2", "judge").tokens["requests"] > before


@pytest.mark.parametrize(
    "content", [b"", b'{"r0": {"faults": ', b"\xff\xfe", b"[1]", b'{"r0": 5}', b'{"r1": {"no_such_key": 1}}']
)
def test_damaged_settings_of_connections_are_one_message(made, content):
    (made / TRANSPORT).write_bytes(content)
    with pytest.raises(StoreError, match=r"transport\.json.*`flywheel plan` makes it again"):
        run_stage(made, "r1", "generate")


def test_an_input_that_was_damaged_is_refused(made):
    part = made / "data/round=r2/responses/part-00000.parquet"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    with pytest.raises(StoreError, match=r"responses/part-00000.parquet is not what was written"):
        run_stage(Path(), "r2", "judge")


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of its memory from /proc")
def test_a_tenth_of_ten_million_responses_needs_less_than_the_memory_for_all_of_them():
    command = [sys.executable, "benchmarks/data.py", "memory", "--responses", "1000000", "--most", "1.6"]
    cases = ("judge by votes", "filter by a threshold", "filter with a limit a level", "pair")
    command += [part for case in cases for part in ("--case", case)]
    done = subprocess.run(command, cwd=projects.HERE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pair" in done.stdout


def test_pieces_are_as_small_as_the_longest_texts_ask_wherever_they_are(monkeypatch):
    monkeypatch.setattr(pieces, "BYTES", 100_000)
    ids = [f"{n:06}" for n in range(20_000)]

    def count(*lengths: int) -> int:
        texts = ["x" * lengths[n * len(lengths) // len(ids)] for n in range(len(ids))]
        return len(pieces.ranges(pl.LazyFrame({"prompt_id": ids, "response": texts})))

    assert count(1, 1) < count(1, 100) == count(100, 1) == count(100, 100)
    assert 20 <= count(1, 100) <= 40


def test_stages_of_a_round_share_a_budget_of_generated_tokens(made):
    spent = {s: m.tokens["completion_tokens"] for s, m in store.manifests(made, "r2").items()}
    assert spent["generate"] > 0 < spent["judge"]
    planned(made, "r2", f"engine.token_budget={spent['generate'] + 1}")
    run_stage(made, "r2", "generate")
    assert not manifest("r2", "generate").warnings
    run_stage(made, "r2", "judge")  # a batch goes beyond the one token that is left
    run_stage(made, "r2", "filter")
    run_stage(made, "r2", "critique")
    judged = manifest("r2", "judge").tokens["completion_tokens"]
    assert 0 < judged <= spent["judge"]
    assert manifest("r2", "critique").tokens["requests"] == 0
    assert "token_budget is spent" in manifest("r2", "critique").warnings[0]
    critiques = store.read(made, "r2", "critiques")
    assert critiques["error"].str.contains("token_budget").all()
    assert not critiques["kept"].any()
    planned(made, "r2", "engine.token_budget=1")
    run_stage(made, "r2", "evaluate")
    assert store.read(made, "r2", "evals")["error"].drop_nulls().str.contains("token_budget").sum() == 0
