"""MLflow from manifests: one experiment per campaign, a run per base and round, a child run per stage.

`record` is idempotent: it records each result once and never changes an existing record.

- A round's run is a snapshot. Its children are the stages whose manifests belong together. While stages are missing it is
  RUNNING, and later calls add to it. When a stage ran again with another result, the round gets a new run, and the old
  run, its children and its model version are tagged `superseded_by`. Going back to the old result (with `dvc checkout`,
  for example) removes that tag again.
- The tag `digest` identifies a result: what a stage read, did and wrote, but not how long it took. A second run with the
  same result is the same MLflow run. A child that is not FINISHED was killed while it was logged; it is logged again.
- The model is registered as a version that refers to the round's folder, with its digest; weights are never copied. The
  model in force has the alias `champion`: the champion of the first base of params.yaml that has one, unless a person
  promoted another model by hand. That decision is the file data/decisions/champion.yaml, to be kept in git; without it the
  gates and the champion's test decide. Each test of a champion becomes a line of data/decisions/looks.jsonl, to be kept in
  git too: it is spent, whatever becomes of the round.

MLFLOW_TRACKING_URI sets the location; the default is mlflow.db at the project's root, with plots in mlruns/.
"""

import json
import logging
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple
from datetime import UTC, datetime
from getpass import getuser
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tasks.core import store
from tasks.core.champion import Election
from tasks.core.errors import FlywheelError, masked
from tasks.core.models import resolve
from tasks.project import champion
from tasks.project.champion import DECISION, LOOKS, Decision, consistent_manifests, decision, model_digest
from tasks.project.edit import lock
from tasks.project.freshness import absent_files
from tasks.project.params import Block, Pipeline, load_params, stages_of
from tasks.views._facts import Dataset, Facts, Manifests, milliseconds, round_facts, stage_facts
from tasks.views._figures import figures
from tasks.views.report import outcome, refusal

ALIAS = "champion"
DATABASE = "mlflow.db"
METRICS_PER_CALL, PARAMS_PER_CALL = 900, 100


def record(root: Path, move_alias: bool = True) -> str:
    """Updates the ledger of looks, then MLflow; returns a summary of the changes. Without `move_alias` the alias stays, as it
    should while a flow is still running rounds. While files are missing no look is taken and no model promoted.

    Raises:
        FlywheelError: when MLflow cannot be reached, or its experiment was deleted.
    """
    pipeline = load_params(root)
    with lock(root, "record"), _clear_errors(tracking_uri(root)):
        absent = store.steady(root, pipeline.blocks, lambda: absent_files(root, pipeline))
        results = {} if absent else champion.elections(root, pipeline)
        looks = champion.record_looks(root, results)
        recorder = _Recorder(root, pipeline)
        for block in pipeline.blocks.values():
            if block.name not in absent:
                recorder.add(block)
        parts = [recorder.summary(), *([f"{looks} new in {LOOKS}, to be committed"] if looks else [])]
        return "; ".join([*parts, recorder.move_alias(results, absent)] if move_alias else parts)


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
        _write(root, Decision(round=name, digest=digest, when=_now(), by=getuser()))
    alias = record(root).rpartition("; ")[2]
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


# Connection


def tracking_uri(root: Path) -> str:
    """URI of MLflow's store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _own_uri(root / DATABASE)


def _own_uri(database: Path) -> str:
    return f"sqlite:///{database.resolve()}"


def _is_served(root: Path) -> bool:
    return tracking_uri(root).startswith(("http:", "https:"))


def prepare(root: Path) -> str:
    """Creates MLflow's store if it is missing, before several processes race for it; returns its URI."""
    with _clear_errors(tracking_uri(root)):
        _client(root)
    return tracking_uri(root)


def _client(root: Path) -> Any:
    """A client; creates the local store if it is missing."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    own, uri = root / DATABASE, tracking_uri(root)
    with lock(root, "mlflow"):
        if uri == _own_uri(own) and not own.exists():
            _make_database(own)
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def _make_database(path: Path) -> None:
    """Creates MLflow's tables in a file beside `path`, then renames it: MLflow cannot use or repair the database of a
    process that was killed while it created the tables.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    new = path.with_suffix(".new")
    for leftover in path.parent.glob(f"{new.name}*"):
        leftover.unlink()
    new_store = SqlAlchemyStore(_own_uri(new), (path.parent / "mlruns").resolve().as_uri())
    new_store.engine.dispose()
    with closing(
        sqlite3.connect(new)
    ) as connection:  # persistent: commits take a fifth of the time, and the UI can read meanwhile
        connection.execute("pragma journal_mode = wal")
    new.replace(path)


@contextmanager
def _clear_errors(uri: str) -> Iterator[None]:
    """Turns exceptions of MLflow and its store into a FlywheelError."""
    try:
        yield
    except FlywheelError:
        raise
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("mlflow", "sqlalchemy", "sqlite3", "requests"):
            raise
        line = masked(str(error).strip().split("\n")[0])
        if getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE":
            raise FlywheelError(f"MLflow at {masked(uri)} refuses a value: {line}") from error
        raise FlywheelError(
            f"MLflow at {masked(uri)} does not answer: {line}. Start it, or point MLFLOW_TRACKING_URI elsewhere; "
            "then run `flywheel record`: nothing is lost, the manifests have everything"
        ) from error


# Update


def identity(manifest: store.Manifest) -> str:
    """Digest of a stage's result: its manifest without times and tokens."""
    values = manifest.model_dump(exclude={"tokens", "seconds", "started", "finished"})
    return store.digest([(k, json.dumps(v, sort_keys=True)) for k, v in values.items()])


class _Recorder:
    """Reads the experiment and registered model of a campaign once, then updates them."""

    def __init__(self, root: Path, pipeline: Pipeline) -> None:
        self.root, self.pipeline, self.name = root, pipeline, pipeline.campaign.name
        self.client = _client(root)
        self.experiment = self._experiment()
        self.runs = self._runs()
        self.versions = self._versions()
        self.current: dict[str, Any] = {}
        self.new = {"runs": 0, "stages": 0, "versions": 0}

    def _experiment(self) -> str:
        experiment = self.client.get_experiment_by_name(self.name)
        if experiment is None:
            plots = None if _is_served(self.root) else (self.root / "mlruns").resolve().as_uri()
            return str(self.client.create_experiment(self.name, artifact_location=plots))
        if experiment.lifecycle_stage != "active":
            raise FlywheelError(
                f"the MLflow experiment {self.name!r} was deleted; bring it back with `mlflow experiments restore -x "
                f"{experiment.experiment_id}`, or give the campaign another name in params.yaml"
            )
        return str(experiment.experiment_id)

    def _runs(self) -> list[Any]:
        runs, token = [], None
        while True:
            page = self.client.search_runs([self.experiment], max_results=1000, page_token=token)
            runs += page
            token = page.token
            if not token:
                return runs

    def _versions(self) -> list[Any]:
        if not self.client.search_registered_models(f"name = '{self.name}'"):
            self.client.create_registered_model(self.name, description="The model after each round of the campaign.")
        versions, token = [], None
        while True:
            page = self.client.search_model_versions(f"name = '{self.name}'", page_token=token)
            versions += page
            token = page.token
            if not token:
                return versions

    # A round

    def add(self, block: Block) -> None:
        """Records the results of a base or round that are not in MLflow yet."""
        manifests = consistent_manifests(self.root, block)
        if not manifests:
            return
        digests = {stage: identity(manifest) for stage, manifest in manifests.items()}
        run = self._compatible(block.name, digests) or self._begin(block, manifests)
        recorded = {c.data.tags["stage"] for c in self._children(run) if c.info.status == "FINISHED"}
        missing = [stage for stage in manifests if stage not in recorded]
        children = [self._child(run, block, manifests[stage], digests[stage]) for stage in missing]
        if missing:
            self._log(run.info.run_id, round_facts(self.root, block, manifests, self._number(block)))
            self._draw(run, block, missing)
            for child, stage in zip(children, missing, strict=True):
                self._end(child, manifests[stage].finished)
            self.client.set_tag(run.info.run_id, "digest", store.digest(digests.items()))
        if run.info.status != "FINISHED" and len(manifests) == len(stages_of(block)):
            self._end(run, max(m.finished for m in manifests.values()))
        self._supersede(block.name, run)
        self._register(block, run, manifests)

    def _compatible(self, name: str, digests: dict[str, str]) -> Any | None:
        """The run of a round whose stages all have these results; of several the one with the most stages."""
        candidates = []
        for run in self.runs:
            if run.data.tags.get("round") != name or "stage" in run.data.tags:
                continue
            tags = [c.data.tags for c in self._children(run)]
            if all(digests.get(t["stage"], t["digest"]) == t["digest"] for t in tags):
                candidates.append((len(tags), run.info.start_time, run.info.run_id, run))
        return max(candidates, default=(None,))[-1]

    def _children(self, run: Any) -> list[Any]:
        return [r for r in self.runs if r.data.tags.get("mlflow.parentRunId") == run.info.run_id]

    def _begin(self, block: Block, manifests: Manifests) -> Any:
        tags = {"round": block.name, "parent": block.parent or "", "base": block.base, "recipe": block.recipe or ""}
        self.new["runs"] += 1
        return self._create(block.name, min(m.started for m in manifests.values()), tags)

    def _child(self, run: Any, block: Block, manifest: store.Manifest, digest: str) -> Any:
        """Logs a stage's run; continues one that a kill left unfinished."""
        self.new["stages"] += 1
        unfinished = [c for c in self._children(run) if c.data.tags["stage"] == manifest.stage]
        tags = {"mlflow.parentRunId": run.info.run_id, "round": block.name, "stage": manifest.stage, "digest": digest}
        child = unfinished[0] if unfinished else self._create(f"{manifest.stage}@{block.name}", manifest.started, tags)
        self._log(child.info.run_id, stage_facts(self.root, block, manifest, self._number(block)))
        return child

    def _number(self, block: Block) -> int:
        """The step of its metrics: how many rounds lie between it and its base, without phases."""
        return sum(not (b.is_base or b.is_phase) for b in self.pipeline.lineage(block.name))

    def _create(self, name: str, started: str, tags: dict[str, str]) -> Any:
        run = self.client.create_run(self.experiment, start_time=milliseconds(started), tags=tags, run_name=name)
        self.runs.append(run)
        return run

    def _log(self, run: str, facts: Facts) -> None:
        """Logs in as few calls as MLflow's limits allow, since each call is a transaction."""
        from mlflow.entities import Metric, Param

        metrics = [Metric(*astuple(m)) for m in facts.metrics]
        params = [Param(k, v) for k, v in sorted(facts.params.items())]
        chunks = zip_longest(_chunks(metrics, METRICS_PER_CALL), _chunks(params, PARAMS_PER_CALL), fillvalue=())
        for metric_chunk, param_chunk in chunks:
            self.client.log_batch(run, metrics=metric_chunk, params=param_chunk)
        if facts.inputs:
            self.client.log_inputs(run, [_dataset_input(i) for i in facts.inputs])

    def _end(self, run: Any, finished: str) -> None:
        self.client.set_terminated(run.info.run_id, "FINISHED", end_time=milliseconds(finished))

    def _draw(self, run: Any, block: Block, stage_names: list[str]) -> None:
        for name, figure in figures(self.root, block, stage_names):
            self.client.log_figure(run.info.run_id, figure, f"plots/{name}.png")

    def _supersede(self, name: str, run: Any) -> None:
        """Tags every other run of the round with the current one."""
        current = run.info.run_id
        for other in self.runs:
            tags = other.data.tags
            if tags.get("round") != name:
                continue
            is_old, mark = current not in (other.info.run_id, tags.get("mlflow.parentRunId")), tags.get("superseded_by")
            if is_old and mark != current:
                self.client.set_tag(other.info.run_id, "superseded_by", current)
            if not is_old and mark:
                self.client.delete_tag(other.info.run_id, "superseded_by")

    # The model

    def _register(self, block: Block, run: Any, manifests: Manifests) -> None:
        """Registers a version that refers to the round's model, one per digest; the round's other versions are superseded."""
        digest = model_digest(self.root, block.name, manifests)
        if digest is None:
            return
        text = describe(self.root, self.pipeline, block)
        version = self._version(block.name, digest)
        if version is None:
            version = self.client.create_model_version(
                self.name,
                _source(self.root, block.name),
                run.info.run_id,
                {"round": block.name, "digest": digest},
                description=text,
                await_creation_for=0,
            )
            self.versions.append(version)
            self.new["versions"] += 1
        elif version.description != text:
            self.client.update_model_version(self.name, version.version, text)
        self.current[block.name] = version
        for other in self.versions:
            self._mark_version(other, block.name, str(version.version))

    def _mark_version(self, other: Any, name: str, current: str) -> None:
        if other.tags.get("round") != name:
            return
        mark = other.tags.get("superseded_by")
        if str(other.version) != current and mark != current:
            self.client.set_model_version_tag(self.name, other.version, "superseded_by", current)
        if str(other.version) == current and mark:
            self.client.delete_model_version_tag(self.name, other.version, "superseded_by")

    def _version(self, name: str, digest: str) -> Any | None:
        key = (name, digest)
        return next((v for v in self.versions if (v.tags.get("round"), v.tags.get("digest")) == key), None)

    def move_alias(self, results: dict[str, Election], absent: dict[str, list[str]]) -> str:
        """Moves the alias to the model in force; returns a sentence that names the model and the decision. Without a
        person's decision it stays while the store is incomplete.
        """
        aliases = self.client.get_registered_model(self.name).aliases
        before = str(aliases.get(ALIAS, ""))
        was = next((v.tags["round"] for v in self.versions if str(v.version) == before), "")
        choice = decision(self.root)
        if not choice and (lacking := [t for texts in absent.values() for t in texts] or self._lost(was)):
            more = f" and {len(lacking) - 1} more" if lacking[1:] else ""
            return (
                f"{ALIAS} stays as it is, for the store is incomplete: missing {lacking[0]}{more}. `dvc checkout --force` or "
                "`dvc pull` restores results, `flywheel run ROUND` makes them again"
            )
        name = choice.round if choice else champion.first_champion(results)
        if name is None:
            return "no model to promote yet"
        version = self._version(name, choice.digest) if choice else self.current.get(name)
        if version is None:
            return (
                f"{ALIAS} stays as it is: {name} no longer has the promoted model; run `flywheel promote ROUND` again"
            )
        now = str(version.version)
        if before != now:
            self.client.set_registered_model_alias(self.name, ALIAS, now)
        by = f"by {choice.by}'s decision" if choice else "by the gates' decision"
        moved = f" (it was {was}, version {before})" if before not in ("", now) else ""
        return f"{ALIAS} is {name}, version {now}{moved}, {by}"

    def _lost(self, name: str) -> list[str]:
        """Manifests that a champion of params.yaml must have and that are not there."""
        if name not in self.pipeline.blocks:
            return []
        stages = {s.name for s in stages_of(self.pipeline.block(name))} & {"base", "train", "evaluate", "gate"}
        return [f"the results of {s}@{name}" for s in sorted(stages - set(store.manifests(self.root, name)))]

    def summary(self) -> str:
        """Counts of new records."""
        counts = [
            f"{count} {kind.removesuffix('s') if count == 1 else kind}" for kind, count in self.new.items() if count
        ]
        place = f"MLflow experiment {self.name} at {masked(tracking_uri(self.root))}"
        return f"{place}: {', '.join(counts)} new" if counts else f"{place} was up to date"


def describe(root: Path, pipeline: Pipeline, block: Block) -> str:
    """What a version of the registered model says of itself: its parent, accuracy, decision, and what is worse than before."""
    origin = f"{block.name} from {block.parent} by {block.recipe}" if block.parent else f"{block.name}, a base"
    return ". ".join([origin, *outcome(root, pipeline, block)]) + "."


def _dataset_input(table: Dataset) -> Any:
    from mlflow.entities import Dataset as Entity
    from mlflow.entities import DatasetInput, InputTag

    entity = Entity(table.name, table.digest, "local", table.source, profile=table.profile)
    return DatasetInput(entity, [InputTag("mlflow.data.context", table.context)])


def _source(root: Path, name: str) -> str:
    """URI of a round's model; relative to the project for a server, which takes no local paths."""
    place = store.round_folder(root, name) / "model"
    if _is_served(root):
        return f"dvc:///{place.relative_to(root)}"
    return (root / resolve(place)).resolve().as_uri()


def _chunks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


__all__ = ["prepare", "promote", "record", "tracking_uri"]
