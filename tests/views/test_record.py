"""MLflow from manifests: each thing once, snapshots that stay, an alias that a person can move."""

import shutil
import sqlite3
from contextlib import closing

import pytest
import synthetic
from filelock import FileLock

from tasks.core import store
from tasks.core.errors import FlywheelError, StoreError, UnknownName
from tasks.project import champion as champions
from tasks.project.params import stages_of
from tasks.views import record
from tasks.views._dvc_addresses import PROJECT
from tasks.views.record import _connection, _facts, _runs

pytestmark = pytest.mark.xdist_group("mlflow")
FIGURES = _runs.figures
PLAN = synthetic.pipeline("r1", "r2")
SHORT = {"base", "train", "evaluate", "gate"}


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory, worker_id):
    """A store without runs, made once for all test processes: its tables take seconds."""
    base = tmp_path_factory.getbasetemp()
    place = base if worker_id == "master" else base.parent
    with FileLock(place / "empty_store.lock"), pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        if not (place / "mlflow.db").exists():
            record.prepare(place)
            with closing(sqlite3.connect(place / "mlflow.db")) as con:
                con.execute("pragma wal_checkpoint(truncate)")
    return place / "mlflow.db"


@pytest.fixture
def root(tmp_path, empty_store, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv(PROJECT, str(tmp_path))
    monkeypatch.setattr(record, "load_params", lambda root: PLAN)
    monkeypatch.setattr(champions, "plans", synthetic.plans)
    monkeypatch.setattr(_runs, "figures", lambda *_: [])
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return tmp_path


def book(root):
    """The store as it stands: runs by name, those in force; and all of them."""
    client = _connection.connect(root)
    runs = list(client.search_runs([client.get_experiment_by_name("toy").experiment_id]))
    return client, {r.info.run_name: r for r in runs if "superseded_by" not in r.data.tags}, runs


def champion(client):
    version = client.get_model_version_by_alias("toy", "champion")
    return version.tags["round"], str(version.version)


def counts(root):
    """Rows of every table of MLflow's database: what a second call could have doubled."""
    with closing(sqlite3.connect(root / "mlflow.db")) as con:
        tables = [name for (name,) in con.execute("select name from sqlite_master where type = 'table'")]
        return {t: con.execute(f'select count(*) from "{t}"').fetchone()[0] for t in tables}


def test_a_campaign_is_recorded_once(root, monkeypatch):
    monkeypatch.setattr(_runs, "figures", FIGURES)
    for name in ("r0", "r1", "r2"):
        synthetic.make(root, PLAN, name, promoted=name == "r1")
    summary = record.record(root)
    assert "3 runs, 22 stages, 3 versions" in summary
    assert "2 new in data/decisions/looks.jsonl" in summary
    assert "champion is r1, version 2, by the gates' decision" in summary
    before = counts(root)
    assert before["metrics"] > 100 and before["datasets"] > 20
    assert "was up to date" in record.record(root)
    assert counts(root) == before
    client, runs, every = book(root)

    r1, train = runs["r1"], runs["train@r1"]
    assert {r.info.status for r in every} == {"FINISHED"}
    assert train.data.tags["mlflow.parentRunId"] == r1.info.run_id
    assert r1.data.metrics["pass_at_1/level_4"] == pytest.approx(0.47)
    assert r1.data.metrics["seconds/start"] == 20
    assert r1.data.params["judge.some.strength"] == "1" and r1.data.params["parent"] == "r0"
    assert [m.step for m in client.get_metric_history(r1.info.run_id, "pass_at_1")] == [1]
    assert [m.step for m in client.get_metric_history(runs["r2"].info.run_id, "pass_at_1")] == [2]
    first = sorted(r1.data.metrics)[:4]
    assert all(name.startswith("_headline/") for name in first) and "_headline/pass_at_1" in r1.data.metrics
    curve = client.get_metric_history(train.info.run_id, "sft/loss")
    assert [(m.step, m.value) for m in sorted(curve, key=lambda m: m.step)] == [(s, 1 / (s + 1)) for s in range(50)]

    names = {d.dataset.name: d.dataset for d in r1.inputs.dataset_inputs}
    digest = store.find(root, "r1", "filtered")[1].digest
    assert names["r1/filtered"].digest == digest[:36] and '"num_rows": 10' in names["r1/filtered"].profile
    assert "r0/prompts" not in names and {d.dataset.name for d in runs["gate@r1"].inputs.dataset_inputs} >= {
        "r0/measures"
    }
    assert {a.path for a in client.list_artifacts(r1.info.run_id, "plots")} == {
        "plots/accuracy.png",
        "plots/train_curve.png",
    }

    version = client.get_model_version("toy", "2")
    digest = champions.model_digest(root, "r1", store.manifests(root, "r1"))
    assert version.source == f"dvc:///data/round=r1/model?digest={digest}" and version.tags["digest"] == digest
    assert not list(root.glob("mlruns/**/config.json"))


def test_a_round_grows_and_is_superseded_by_another_result(root):
    synthetic.make(root, PLAN, "r0")
    synthetic.make(root, PLAN, "r1", only={"prompts", "generate"})
    record.record(root)
    _, runs, _ = book(root)
    first = runs["r1"].info.run_id
    assert runs["r1"].info.status == "RUNNING" and {"prompts@r1", "generate@r1"} < set(runs)

    synthetic.make(root, PLAN, "r1")
    record.record(root)
    client, runs, every = book(root)
    assert runs["r1"].info.run_id == first and runs["r1"].info.status == "FINISHED"
    assert champion(client) == ("r1", "2")
    count = len(every)

    shutil.copytree(root / "data", root / "before")
    filtering = next(s for s in stages_of(PLAN.block("r1")) if s.name == "filter")
    synthetic.write(root, PLAN.block("r1"), filtering, salt="x")
    record.record(root)
    client, runs, every = book(root)
    second = runs["r1"].info.run_id
    assert second != first and client.get_run(first).data.tags["superseded_by"] == second
    assert "filter@r1" in runs and "train@r1" not in runs, "train read the old table: it is behind"
    assert champion(client) == ("r0", "1"), "the round that is being run again has no decision yet"

    synthetic.make(root, PLAN, "r1", salt="x")
    record.record(root)
    client, _, _ = book(root)
    assert champion(client) == ("r1", "3")
    assert client.get_model_version("toy", "2").tags["superseded_by"] == "3"

    shutil.rmtree(root / "data")
    (root / "before").rename(root / "data")
    assert "1 stages" not in record.record(root)
    client, runs, every = book(root)
    assert runs["r1"].info.run_id == first and champion(client) == ("r1", "2")
    assert "superseded_by" not in client.get_model_version("toy", "2").tags
    assert len(every) > count


def test_the_same_result_again_is_the_same_run(root):
    synthetic.make(root, PLAN, "r0")
    record.record(root)
    before = len(book(root)[2])
    for stage in stages_of(PLAN.block("r0")):
        synthetic.write(root, PLAN.block("r0"), stage, minute=30)
    assert "was up to date" in record.record(root)
    assert len(book(root)[2]) == before


def test_what_a_kill_cut_off_is_finished(root, monkeypatch):
    synthetic.make(root, PLAN, "r0")
    synthetic.make(root, PLAN, "r1")
    left, end = [7], _runs.Recorder._end

    def dying(self, run, finished):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        end(self, run, finished)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_runs.Recorder, "_end", dying)
        record.record(root)
    record.record(root)
    client, runs, every = book(root)
    assert len(every) == 1 + 2 + 1 + 10 and {r.info.status for r in every} == {"FINISHED"}
    assert len(client.get_metric_history(runs["train@r1"].info.run_id, "sft/loss")) == 50
    assert len(runs["r1"].inputs.dataset_inputs) == len({d.dataset.name for d in runs["r1"].inputs.dataset_inputs})


def test_a_person_promotes_and_rolls_back(root):
    for name in ("r0", "r1", "r2"):
        synthetic.make(root, PLAN, name, only=SHORT)
    record.record(root)
    assert champion(book(root)[0])[0] == "r2"
    assert "champion is r1, version 2 (it was r2, version 3), by" in record.promote(root, "r1")
    text = (root / record.DECISION).read_text()
    assert champion(book(root)[0])[0] == "r1" and "round: r1" in text
    record.promote(root, "r1")
    assert (root / record.DECISION).read_text() == text
    record.record(root)
    assert champion(book(root)[0])[0] == "r1", "the gates do not overrule a person"
    record.promote(root, "r0")
    assert champion(book(root)[0])[0] == "r0"
    (root / record.DECISION).unlink()
    record.record(root)
    assert champion(book(root)[0])[0] == "r2"


def test_an_incomplete_store_moves_nothing(root):
    for name in ("r0", "r1", "r2"):
        synthetic.make(root, PLAN, name)
    record.record(root)
    looks = (root / champions.LOOKS).read_text()
    assert champion(book(root)[0])[0] == "r2"

    place, output = store.find(root, "r2", "evals")
    part = place / output.parts[0].file
    part.rename(root / "part")
    summary = record.record(root)
    assert "champion stays as it is, for the store is incomplete: missing " in summary and str(part) in summary
    (root / "part").rename(part)

    manifests = root / "data/round=r2/manifests"
    manifests.rename(root / "manifests")
    assert "incomplete: missing the results of evaluate@r2 and 2 more" in record.record(root)
    manifests.mkdir()
    for path in (root / "manifests").iterdir():
        if path.stem not in ("generate", "judge"):
            shutil.copy(path, manifests)
    assert "missing the manifest of r2's responses" in record.record(root)
    assert champion(book(root)[0])[0] == "r2"
    assert (root / champions.LOOKS).read_text() == looks
    assert "champion is r1" in record.promote(root, "r1"), "a person may"


def test_a_promotion_against_the_gates_is_told(root):
    synthetic.make(root, PLAN, "r0", only=SHORT)
    synthetic.make(root, PLAN, "r1", only=SHORT, promoted=False)
    text = record.promote(root, "r1")
    assert "Warning: r1 was held back by improves (refused by improves)" in text
    assert champion(book(root)[0])[0] == "r1"
    assert "Warning" not in record.promote(root, "r0")


def test_a_version_says_what_it_is(root):
    for name in ("r0", "r1"):
        synthetic.make(root, PLAN, name, promoted=False, only={"train", "base", "evaluate"})
    record.record(root)
    text = "r1 from r0 by toy. pass@1 57.0 % (r0: 40.0 %)."
    assert book(root)[0].get_model_version("toy", "2").description == text
    synthetic.make(root, PLAN, "r1", promoted=False, only={"gate"})
    record.record(root)
    text = book(root)[0].get_model_version("toy", "2").description
    assert text.startswith("r1 from r0 by toy. held back by improves (")


def test_every_look_is_recorded_before_mlflow_is_asked(root, monkeypatch):
    for name in ("r0", "r1"):
        synthetic.make(root, PLAN, name, only=SHORT)
    with monkeypatch.context() as patch, pytest.raises(FlywheelError):
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        record.record(root, move_alias=False, strict=True)
    first = (root / champions.LOOKS).read_text()
    assert [e.round for e in champions.ledger(root)] == ["r1"]
    monkeypatch.setitem(synthetic.SOLVED, "r1", 0.58)
    synthetic.make(root, PLAN, "r1", only=SHORT, salt="x")
    assert "1 new in data/decisions/looks.jsonl" in record.record(root)
    assert (root / champions.LOOKS).read_text().startswith(first)
    assert [e.round for e in champions.ledger(root)] == ["r1", "r1"]
    assert "looks.jsonl" not in record.record(root)


def test_a_decision_is_about_a_model_not_a_name(root):
    synthetic.make(root, PLAN, "r0", only=SHORT)
    synthetic.make(root, PLAN, "r1", only=SHORT)
    record.promote(root, "r1")
    synthetic.make(root, PLAN, "r1", only=SHORT, salt="x")
    assert "champion is r1, version 2, by" in record.record(root)
    assert book(root)[0].get_model_version("toy", "2").tags["superseded_by"] == "3"
    assert "version 3" in record.promote(root, "r1")


def test_what_cannot_be_promoted(root):
    synthetic.make(root, PLAN, "r0", only=SHORT)
    with pytest.raises(UnknownName, match="did you mean"):
        record.promote(root, "r11")
    with pytest.raises(StoreError, match="flywheel run r1"):
        record.promote(root, "r1")
    assert not (root / record.DECISION).exists()
    (root / record.DECISION).parent.mkdir(parents=True)
    (root / record.DECISION).write_text("round: [")
    with pytest.raises(FlywheelError, match="delete it"):
        record.record(root)


def test_an_mlflow_that_is_down_is_one_message(root, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(FlywheelError, match=r"http://127.0.0.1:9 does not answer.*flywheel record") as caught:
        record.record(root, strict=True)
    assert "secret" not in str(caught.value)


def test_what_mlflow_refuses_is_told_as_such(root, monkeypatch):
    plan = synthetic.Pipeline(synthetic.Campaign.model_construct(name="tom's"), PLAN.blocks)
    monkeypatch.setattr(record, "load_params", lambda root: plan)
    with pytest.raises(FlywheelError, match="mlflow.db refuses a value: .*name = 'tom's"):
        record.record(root)


def test_a_store_that_a_kill_left_half_made_is_made_anew(tmp_path, monkeypatch):
    """MLflow makes its tables in a file that is nobody's until it is whole."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def killed(self, uri, plots):
        (tmp_path / "mlflow.new").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SqlAlchemyStore, "__init__", killed)
        record.prepare(tmp_path)
    assert not (tmp_path / "mlflow.db").exists()
    record.prepare(tmp_path)
    assert sorted(p.name for p in tmp_path.glob("mlflow*")) >= ["mlflow.db"] and not (tmp_path / "mlflow.new").exists()
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as con:
        assert con.execute("pragma journal_mode").fetchone() == ("wal",)


def test_without_results_there_is_nothing_to_promote(root):
    assert "was up to date; no model to promote yet" in record.record(root)


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("pass_at_1/level_4", "pass_at_1/level_4"),
        ("dropped/too long (>50 %)", "dropped/too long (_50 _)"),
        ("a//b/../c@1/", "a/b/c_1"),
    ],
)
def test_metric_names_are_such_as_mlflow_takes(name, taken):
    from mlflow.utils.validation import _validate_metric_name

    assert _facts.metric_name(name) == taken.replace("(", "_").replace(")", "_")
    _validate_metric_name(_facts.metric_name(name))


def test_a_round_is_recorded_while_it_is_made_and_when_it_is_made(made):
    """The exam has the base's seed and the round its own: one run is told both, in whatever order they come."""
    manifests = made / "data/round=r2/manifests"
    late = {name: (manifests / f"{name}.json").read_bytes() for name in ("evaluate", "gate")}
    for name in late:
        (manifests / f"{name}.json").unlink()
    record.record(made)
    for name, content in late.items():
        (manifests / f"{name}.json").write_bytes(content)
    assert "2 stages new" in record.record(made)
    client = _connection.connect(made)
    experiment = client.get_experiment_by_name("arithmetic").experiment_id
    runs = {r.info.run_name: r.data.params for r in client.search_runs([experiment])}
    assert (runs["r2"]["seed"], runs["r2"]["exam.seed"]) == ("2", "0")
