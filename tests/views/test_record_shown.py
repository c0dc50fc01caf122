"""What people look at in MLflow: models with measures, won items, disputed answers; and what they answer."""

import json
from datetime import datetime
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import AssessmentSource, Feedback
from mlflow.tracing.client import TracingClient

from tasks.core import labels, store
from tasks.project.edit import edit
from tasks.project.params import load_params
from tasks.views import record
from tasks.views.record import _connection, _examples, _review, _traces, _ui


@pytest.fixture
def recorded(made, monkeypatch):
    """A recorded campaign; its folder, a client, its experiment."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    record.record(made)
    client = _connection.connect(made)
    return made, client, client.get_experiment_by_name("arithmetic").experiment_id


def answer(root, trace, value, person="default", why=None):
    """Gives a person's answer to a trace, as the page of the review queue does."""
    client = TracingClient(record.tracking_uri(root))
    client.log_assessment(
        trace, Feedback(_review.QUESTION, value, source=AssessmentSource("HUMAN", person), rationale=why)
    )


def test_measures_hang_on_models_and_items(recorded):
    root, client, experiment = recorded
    models = {m.name: m for m in client.search_logged_models([experiment])}
    assert set(models) == {"r0", "r1", "r2"}
    exams = {}
    for model in models.values():
        for metric in model.metrics:
            exams.setdefault((metric.key, metric.dataset_name), set()).add(metric.dataset_digest)
    assert len(exams["pass_at_1", "exam of r0, heldout"]) == 1, "all models were asked the same items"
    assert exams["pass_at_1", "exam of r0, heldout"] != exams["validation_pass_at_1", "exam of r0, validation"]
    manifest = store.manifests(root, "r1")["evaluate"]
    [value] = [m.value for m in models["r1"].metrics if m.key == "pass_at_1"]
    assert value == manifest.metrics["pass_at_1"]
    version = client.get_model_version_by_alias("arithmetic", "champion")
    assert models[version.tags["round"]].tags["digest"] == version.tags["digest"]


def test_the_page_and_the_saved_view_are_there(recorded):
    root, client, experiment = recorded
    runs = {r.info.run_name: r for r in client.search_runs([experiment])}
    with _connection.project_of(root):
        assert "rounds.html" in {a.path for a in client.list_artifacts(runs["r2"].info.run_id)}
        assert "rounds.html" not in {a.path for a in client.list_artifacts(runs["r1"].info.run_id)}
        page = client.download_artifacts(runs["r2"].info.run_id, "rounds.html")
    assert store.sha256(Path(page)) == runs["r2"].data.tags["page"]
    columns = [c for c in _ui.COLUMNS if c.startswith("metrics") and "promoted" not in c]
    assert all(c.split("`")[1] in runs["r2"].data.metrics for c in columns)
    assert json.loads(client.get_experiment(experiment).tags[f"mlflow.sharedViewState.{_ui.KEY}"])["name"] == "Rounds"
    assert not runs["r2"].outputs.model_outputs and runs["train@r2"].outputs.model_outputs


def test_money_follows_the_prices(recorded):
    root, client, experiment = recorded
    headline = "_headline/money"
    assert headline not in {k for r in client.search_runs([experiment]) for k in r.data.metrics}
    edit(root, lambda content: content.update({"prices": {"tokens": {"fake": 3}}}))
    record.record(root)
    money = {r.info.run_name: r.data.metrics.get(headline) for r in client.search_runs([experiment])}
    assert money["r1"] > 0 and money["train@r1"] is None


def test_people_answer_disputed_verdicts_once(recorded, monkeypatch):
    root, client, experiment = recorded
    traces = [
        t.info
        for t in client.search_traces(
            locations=[experiment], filter_string="tags.kind = 'disputed verdict'", include_spans=False
        )
    ]
    assert traces, "the campaign's judges disagree"
    assert all({True, False} <= {a.value for a in t.assessments} for t in traces)
    reviews = TracingClient(record.tracking_uri(root)).store
    [queue] = [q for q in reviews.list_review_queues(experiment) if q.name == _review.QUEUE]
    assert {i.item_id for i in reviews.list_review_queue_items(queue.queue_id)} == {t.trace_id for t in traces}

    first = traces[0]
    answer(root, first.trace_id, False, why="a slip\non day 2")
    answer(root, first.trace_id, True, person="ada@example.org")
    assert "2 new in data/labels" in record.record(root)
    kept = {label.person: label for label in labels.read(root / labels.FOLDER)}
    row = store.read(root, first.tags["round"], "responses").filter(id=first.tags["response_id"]).row(0, named=True)
    [prompt] = store.read(root, first.tags["round"], "prompts").filter(id=row["prompt_id"])["problem"]
    for label in kept.values():
        assert label.digest == labels.text_digest(prompt, row["response"]) and label.id == row["id"]
    assert kept["ada@example.org"].label == "right"
    [mine] = [label for person, label in kept.items() if person != "ada@example.org"]
    assert (mine.label, mine.note) == ("wrong", "a slip\non day 2")
    given = {a.source.source_id: a.last_update_time_ms for a in
             mlflow.MlflowClient(record.tracking_uri(root)).get_trace(first.trace_id).info.assessments}  # fmt: skip
    for label, name in ((mine, "default"), (kept["ada@example.org"], "ada@example.org")):
        assert datetime.fromisoformat(label.time).timestamp() * 1000 == pytest.approx(given[name], abs=1)
    assert "data/labels" not in record.record(root)
    for file in (root / labels.FOLDER).glob("*"):  # removed by their people
        file.unlink()
    assert "data/labels" not in record.record(root)
    answer(root, first.trace_id, False, person="ada@example.org")
    assert "1 new in data/labels" in record.record(root)
    answer(root, first.trace_id, False, person="ada@example.org", why="on second thought")
    assert "1 new in data/labels" in record.record(root)
    assert {label.label for label in labels.read(root / labels.FOLDER)} == {"wrong"}


def test_won_and_lost_items_are_those_that_differ(recorded):
    root, *_ = recorded
    pipeline = load_params(root)
    for name in ("r1", "r2"):
        examples = _examples.items(root, pipeline.block(name), 3)
        assert sum(e.tags["change"] == "won" for e in examples) <= 3
        for example in examples:
            values = {v.name: v.value for v in example.verdicts}
            assert (values["accuracy"] > values["accuracy_before"]) == (example.tags["change"] == "won")


def test_hostile_texts_are_shown_as_they_are(recorded):
    root, client, experiment = recorded
    run = client.search_runs([experiment])[0].info.run_id
    text = "a\0b ![x](http://there.example/x.png) ```` <script> \u202e" + "y" * 30_000
    verdicts = [_examples.Verdict("judge", True, "judge", True, text)]
    example = _examples.Example("exam item", "key", "title", text, {"r1": None, "r2": text}, verdicts)
    log = _traces.Traces(record.tracking_uri(root), experiment).log
    [id] = log(run, None, "key", [example], 1_700_000_000_000)
    assert log(run, None, "key", [example], 1_700_000_000_000) == [id]
    trace = mlflow.MlflowClient(record.tracking_uri(root)).get_trace(id)
    assert len(trace.info.assessments) == 1 and len(trace.data.spans) == 3
    content = trace.data.spans[0].inputs["messages"][0]["content"]
    assert content.startswith("`````text\na\0b ![x](http") and content.endswith("more)\n`````")
    assert len(content) < _traces.MAX_TEXT + 100
    preview = trace.info.request_preview
    assert "![" not in preview and "\0" not in preview and len(preview) <= _traces.MAX_PREVIEW
