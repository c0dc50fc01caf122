"""One stage of one round: what it is given, what it leaves behind, and what stays when it fails."""

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import projects
import pytest

from tasks import execute, store, tables
from tasks.engines import MANY
from tasks.errors import EngineError, StoreError, UnknownName
from tasks.execute import run_stage
from tasks.stage import Result, Stage, stages

pytestmark = pytest.mark.xdist_group("campaign")


def manifest(name: str, stage: str) -> store.Manifest:
    return store.manifests(Path(), name)[stage]


def replaced(monkeypatch, name: str, function) -> None:
    """Puts a function in the place of a stage's."""
    stage = stages()[name]
    fields = {f: getattr(stage, f) for f in stage.__dataclass_fields__} | {"function": function}
    monkeypatch.setattr(execute, "_stage", lambda *_: Stage(**fields))


def test_a_manifest_says_what_is_true_of_the_result(made):
    found = manifest("r2", "generate")
    assert (found.round, found.stage, found.seed) == ("r2", "generate", 2)
    assert found.outputs["responses"].rows == 36 == len(store.scan(made, "r2", "responses")[0].collect())
    assert found.inputs["prompts"] == manifest("r2", "prompts").outputs["prompts"].digest
    assert found.inputs["parent_model"] == manifest("r1", "train").outputs["model"].digest
    assert found.params == {
        k: projects.values(made)["rounds"]["r2"][k] for k in ("generate", "seed", "domain", "engine")
    }
    assert set(found.code) == {"tasks/generate/__init__.py", "tasks/generate/sample.py", "tasks/domains/arithmetic.py", "tasks/engines/fake.py"}  # fmt: skip
    assert found.code["tasks/generate/sample.py"] == store.sha256(made / "tasks/generate/sample.py")
    assert found.tokens["requests"] == 36
    assert found.tokens["completion_tokens"] == found.metrics["response_tokens"] > 0
    assert set(found.seconds) == {"start", "model", "run", "write"}
    assert found.versions["polars"] != "absent"
    assert found.started <= found.finished
    assert json.loads((made / "data/round=r2/metrics/generate.json").read_text()) == found.metrics


def test_a_panels_manifest_names_every_file_of_its_folder(made):
    files = {str(p.relative_to(projects.HERE)) for p in (projects.HERE / "tasks/judge").glob("*.py")}
    assert files < set(manifest("r1", "judge").code)


def test_a_base_writes_empty_what_a_round_may_ask_of_it(made):
    written = manifest("r0", "base").outputs
    assert {"prompts", "responses", "training"} <= set(written)
    assert all(o.rows == 0 for o in written.values() if o.kind == "table")
    assert store.scan(made, "r0", "training")[0].collect().columns == tables.training.schema.names


def test_the_same_again_gives_the_same_bytes(made):
    before = projects.digests(made)
    for stage in ("prompts", "generate", "judge", "critique", "train", "evaluate", "gate"):
        run_stage(Path(), "r2", stage)
    after = projects.digests(made)
    assert {p for p in after if after[p] != before[p]} == {p for p in after if "r2/manifests/" in p} - {
        "data/round=r2/manifests/filter.json", "data/round=r2/manifests/pair.json"}  # fmt: skip


def test_names_that_nothing_answers_to(made):
    with pytest.raises(UnknownName, match=r"r2 \(a round\): there is no stage 'jugde'; did you mean 'judge'"):
        run_stage(Path(), "r2", "jugde")
    with pytest.raises(UnknownName, match=r"r0 \(a base\): there is no stage 'generate'; known: base, evaluate"):
        run_stage(Path(), "r0", "generate")
    with pytest.raises(UnknownName, match="there is no round or base 'r3'"):
        run_stage(Path(), "r3", "judge")


def test_what_has_not_been_made_is_named(project):
    root = project(git=False)
    with pytest.raises(StoreError, match="r0 has no 'prompts' yet; `flywheel run r0`"):
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
    with pytest.raises(StoreError, match="filter@r2: the disk is full .* Nothing already made is lost"):
        run_stage(Path(), "r2", "filter")
    assert projects.digests(made) == before


def test_an_input_that_is_replaced_while_it_is_read_is_told(made, monkeypatch):
    before = projects.digests(made)

    def slow(**_):
        with store.writing(made, "r2", "judge") as draft:  # another process judges anew meanwhile
            draft.table(tables.judgments, tables.frame(tables.judgments))
            draft.commit(manifest("r2", "judge").model_copy(update={"outputs": draft.outputs}))

    replaced(monkeypatch, "filter", slow)
    with pytest.raises(
        StoreError, match="filter@r2: judgments of r2 was replaced while it was being read; run it again"
    ):
        run_stage(Path(), "r2", "filter")
    after = projects.digests(made)
    assert {p for p in after if after[p] != before[p]} == {
        "data/round=r2/judgments/part-00000.parquet",
        "data/round=r2/manifests/judge.json",
    }


def test_rows_that_break_a_check_are_not_written(made, monkeypatch):
    before = projects.digests(made)
    row = {"id": "x", "prompt_id": "p", "kept": True, "reason": "odd"}
    replaced(monkeypatch, "filter", lambda **_: tables.frame(tables.filtered, [row]))
    with pytest.raises(StoreError, match="filtered: rows x break the check 'kept or a reason'"):
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
    for edit in (None, None, ("tasks/train/sft.py", "# an edit"), ("params.yaml", "")):
        if edit and edit[1]:
            with (made / edit[0]).open("a") as file:
                file.write(edit[1])
        elif edit:
            projects.rewrite(made, lambda c: c["rounds"]["r2"]["train"].update(epochs=3))
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
    projects.rewrite(made, lambda c: c["rounds"]["r2"]["engine"].update(seconds=0.02))
    spent = run_stage(Path(), "r2", "generate").seconds
    assert spent["model"] >= 36 * 0.02 > spent["run"] + spent["write"] > 0


@pytest.mark.parametrize(("rate", "fails"), [(1.0, True), (0.9, False)])
def test_an_engine_that_answers_nothing_is_an_error_and_one_that_answers_little_is_not(made, rate, fails):
    before = projects.digests(made)
    projects.rewrite(made, lambda c: c["rounds"]["r2"]["engine"].update(error_rate=rate))
    if not fails:
        assert run_stage(Path(), "r2", "generate").metrics["response_errors"] > 20
        return
    with pytest.raises(
        EngineError, match="engine fake: none of 36 requests was answered; the last one said: the fake engine failed"
    ):
        run_stage(Path(), "r2", "generate")
    assert projects.digests(made) == before


def test_a_few_failures_alone_are_rows(made):
    projects.rewrite(made, lambda c: c["rounds"]["r2"]["engine"].update(error_rate=1.0))
    projects.rewrite(made, lambda c: c["rounds"]["r2"]["critique"].update(limit=2))
    done = run_stage(Path(), "r2", "critique")
    assert 0 < done.tokens["requests"] < MANY
    assert done.metrics["critique_errors"] == done.tokens["requests"]


def test_an_engine_that_is_down_leaves_everything_as_it_was(made):
    before = projects.digests(made)
    projects.rewrite(made, lambda c: c["rounds"]["r2"]["engine"].update(down=True))
    with pytest.raises(EngineError, match=r"set engine\.down to false"):
        run_stage(Path(), "r2", "evaluate")
    assert projects.digests(made) == before


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
    done = subprocess.run(command, cwd=projects.HERE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pair" in done.stdout


def test_pieces_are_as_small_as_the_longest_texts_ask_wherever_they_are(monkeypatch):
    monkeypatch.setattr(execute, "PIECE", 100_000)
    ids = [f"{n:06}" for n in range(20_000)]

    def pieces(*lengths: int) -> int:
        texts = ["x" * lengths[n * len(lengths) // len(ids)] for n in range(len(ids))]
        return len(execute._ranges(pl.LazyFrame({"prompt_id": ids, "response": texts})))

    assert pieces(1, 1) < pieces(1, 100) == pieces(100, 1) == pieces(100, 100)
    assert 20 <= pieces(1, 100) <= 40
