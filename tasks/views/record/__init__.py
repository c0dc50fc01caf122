"""MLflow from manifests: one experiment per campaign, a run per base and round, a child run per stage.

`record` is idempotent: it records each result once and never changes an existing record. It fails no round: what could not
be recorded because MLflow was down is recorded by the next call.

- A round's run is a snapshot. Its children are the stages whose manifests belong together. While stages are missing it is
  RUNNING, and later calls add to it. When a stage ran again with another result, the round gets a new run, and the old
  run, its children and its model version are tagged `superseded_by`. Going back to the old result (with `dvc checkout`,
  for example) removes that tag again.
- The tag `digest` identifies a result: what a stage read, did and wrote, but not how long it took. A second run with the
  same result is the same MLflow run. A child that is not FINISHED was killed while it was logged; it is logged again.
- The model is a logged model, on which the measures of its exam hang with the items that it was asked, and a version of the
  registered model, whose source is a `dvc://` address of the round's folder with its digest; weights are never copied. The
  model in force has the alias `champion`: the champion of the first base of params.yaml that has one, unless a person
  promoted another model by hand. That decision is the file data/decisions/champion.yaml, to be kept in git; without it the
  gates and the champion's test decide. Each test of a champion becomes a line of data/decisions/looks.jsonl, to be kept in
  git too: it is spent, whatever becomes of the round.
- Exam items that a round won or lost are traces with assessments. Answers on which judges disagree are traces in a review
  queue; what people answer there becomes labels in data/labels.
- The page of all rounds is an artifact of the last round's run.

MLFLOW_TRACKING_URI sets the location; the default is mlflow.db at the project's root, with artifacts in mlruns/.
"""

from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path

from ruamel.yaml import YAML

from tasks.core import labels, store
from tasks.core.errors import masked
from tasks.project import champion
from tasks.project.champion import DECISION, LOOKS, Decision, decision, model_digest
from tasks.project.edit import lock
from tasks.project.freshness import absent_files
from tasks.project.labels import user
from tasks.project.params import Pipeline, load_params
from tasks.views.record._connection import Unreachable, clear_errors, prepare, project_of, tracking_uri
from tasks.views.record._page import log_page
from tasks.views.record._review import keep_answers
from tasks.views.record._runs import Recorder
from tasks.views.report import refusal


def record(root: Path, move_alias: bool = True, strict: bool = False, again: Collection[str] = ()) -> str:
    """Updates the ledger of looks, then MLflow; returns a summary of the changes. Results that are remembered to be in MLflow
    are not looked for there, but those of `again`, bases and rounds of which something may have been deleted. Without `move_alias` the alias stays, as it
    should while a flow is still running rounds. While files are missing no look is taken and no model promoted. Where MLflow
    does not answer, the summary says so: the next call records what is missing.

    Raises:
        UnknownName: when one of `again` is not in params.yaml.
        Unreachable: with `strict`, when MLflow does not answer.
        FlywheelError: when it refuses a value, or its experiment was deleted.
    """
    pipeline = load_params(root)
    asked = {pipeline.block(name).name for name in again}
    with lock(root, "record"), store.one_look():
        absent = store.steady(root, pipeline.blocks, lambda: absent_files(root, pipeline))
        current = {} if absent else champion.plans(root, pipeline)
        results = {} if absent else champion.elections(root, pipeline, current)
        looks = champion.record_looks(root, results)
        parts = [f"{looks} new in {LOOKS}, to be committed"] if looks else []
        try:
            with clear_errors(tracking_uri(root)), project_of(root):
                recorder = _recorded(root, pipeline, absent, asked)
                parts.insert(0, summary(root, pipeline, recorder))
                if answers := keep_answers(root, recorder.review):
                    parts.append(f"{answers} new in {labels.FOLDER}, to be committed")
                if move_alias:
                    if not absent:
                        parts += log_page(root, recorder, pipeline, current, results)
                    parts.append(recorder.models.move_alias(results, absent))
        except Unreachable as error:
            if strict:
                raise
            parts.append(str(error))
        return "; ".join(parts)


def _recorded(root: Path, pipeline: Pipeline, absent: dict[str, list[str]], again: set[str]) -> Recorder:
    """Records all bases and rounds of which no file is missing."""
    recorder = Recorder(root, pipeline, again)
    for block in pipeline.blocks.values():
        if block.name not in absent:
            recorder.add(block)
    recorder.finish()
    return recorder


def summary(root: Path, pipeline: Pipeline, recorder: Recorder) -> str:
    """Counts of new records."""
    counts = [
        f"{count} {kind.removesuffix('s') if count == 1 else kind}" for kind, count in recorder.new.items() if count
    ]
    place = f"MLflow experiment {pipeline.campaign.name} at {masked(tracking_uri(root))}"
    return f"{place}: {', '.join(counts)} new" if counts else f"{place} was up to date"


def promote(root: Path, name: str) -> str:
    """Puts the model of a round or base in force, forward or back: writes the decision and moves the alias. Warns of a round
    that its gates held back.

    Raises:
        UnknownName, StoreError: when there is no such round, or when it has no model yet; nothing is written then.
    """
    block = load_params(root).block(name)
    store.find(root, name, "model")
    digest = str(model_digest(root, name, store.manifests(root, name)))
    before = decision(root)
    if before is None or (before.round, before.digest) != (name, digest):
        _write(root, Decision(round=name, digest=digest, when=_now(), by=user()))
    try:
        alias = record(root, strict=True).rpartition("; ")[2]
    except Unreachable as error:
        alias = f"{name} is promoted, but its alias has not moved: {error}"
    refused = f" Warning: {text}; it is promoted all the same." if (text := refusal(root, block)) else ""
    return f"{alias}.{refused} Commit {DECISION}, which records it; delete it to let the gates decide again."


def _write(root: Path, choice: Decision) -> None:
    path = root / DECISION
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    with new.open("w") as file:
        YAML().dump(choice.model_dump(), file)
    new.replace(path)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


__all__ = ["Unreachable", "prepare", "promote", "record", "tracking_uri"]
