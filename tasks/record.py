"""MLflow from manifests: one experiment per campaign, a run per base and round, a child run per stage.

`record` may run as often as one likes; each thing is recorded once, and what is there is never changed:

- a round's run is a snapshot: its children are the stages whose manifests say that they belong together. While stages are
  missing it is RUNNING and later calls add to it. When a stage was run again with another result, the round gets a new
  run, and the old one, its children and its model version are tagged `superseded_by`. Going back to the old result (by
  `dvc checkout`, say) puts the old run in force again;
- the tag `digest` tells results apart: what a stage read, ran and wrote, but not how long it took, so that a second run
  with the same result is the same MLflow run. A child that is not FINISHED was cut off by a kill; it is logged again;
- the model is registered as a version that refers to the round's folder, with its digest; weights are never copied. The
  version that is in force has the alias `champion`: the last round, in the order of params.yaml, that its gate promoted
  (the base before there is one), unless a person promoted another one by hand. That decision is the file
  data/decisions/champion.yaml, to be kept in git; without the file the gates decide again.

MLFLOW_TRACKING_URI says where MLflow is; by default in mlflow.db at the project's root, with its plots in mlruns/.
"""

import json
import logging
import os
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from getpass import getuser
from itertools import zip_longest
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import BaseModel
from ruamel.yaml import YAML

from tasks import store
from tasks.errors import FlywheelError, masked
from tasks.models import resolve
from tasks.params import Block, Pipeline, load_params, lock, stages_of
from tasks.stage import stages
from tasks.tables import TABLES

ALIAS = "champion"
DECISION = Path("data/decisions/champion.yaml")
SHARED = ("seed", "domain", "engine")
METRICS_A_CALL, PARAMS_A_CALL = 900, 100
LONGEST_DIGEST, LONGEST_PARAM = 36, 6000


class Decision(BaseModel):
    """A person's choice of the model that is in force."""

    round: str
    digest: str
    """The model's: a round that was run again since is another model, which nobody has approved."""
    when: str
    by: str


def record(root: Path, crown: bool = True) -> str:
    """Brings MLflow up to date, and says in a sentence or two what that changed; without `crown` the alias stays where
    it is, as it should while a flow is still making rounds.

    Raises:
        FlywheelError: when MLflow cannot be reached, or its experiment was deleted.
    """
    pipeline = load_params(root)
    with lock(root, "record"), _reached(tracking_uri(root)):
        book = _Book(root, pipeline)
        for block in pipeline.blocks.values():
            book.add(block)
        return f"{book.summary()}; {book.crown()}" if crown else book.summary()


def promote(root: Path, name: str) -> str:
    """Puts a round's or base's model in force, forward or back: writes the decision down and moves the alias.

    Raises:
        UnknownName, StoreError: when there is no such round, or when it has no model yet; nothing is written then.
    """
    load_params(root).block(name)
    digest = store.find(root, name, "model")[1].digest
    before = decision(root)
    if before is None or (before.round, before.digest) != (name, digest):
        _write(root, Decision(round=name, digest=digest, when=_now(), by=getuser()))
    told = record(root).rpartition("; ")[2]
    return f"{told}. Commit {DECISION}, which says so; delete it to leave the choice to the gates again."


def decision(root: Path) -> Decision | None:
    """Which model a person put in force; None where the gates decide.

    Raises:
        FlywheelError: when the file is not one that `promote` wrote.
    """
    path = root / DECISION
    if not path.is_file():
        return None
    try:
        return Decision.model_validate(YAML(typ="safe").load(path.read_text()))
    except Exception as error:
        raise FlywheelError(f"{DECISION} cannot be read ({error}); delete it, then `flywheel promote ROUND`") from error


def tracking_uri(root: Path) -> str:
    """Where MLflow keeps its runs."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(root / 'mlflow.db').resolve()}"


def prepare(root: Path) -> str:
    """Makes MLflow's store if there is none, before several processes race for it; gives its URI."""
    with _reached(tracking_uri(root)):
        _client(root)
    return tracking_uri(root)


def _client(root: Path) -> Any:
    """A client of a store that is there."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    own = root / "mlflow.db"
    with lock(root, "mlflow"):
        missing = not own.exists()
        client = MlflowClient(tracking_uri(root))
        client.search_experiments(max_results=1)
        if missing and own.exists():
            _write_ahead(own)
    return client


def _write_ahead(database: Path) -> None:
    """Has SQLite keep a write-ahead log, for good: commits take a fifth of the time, and the UI can read meanwhile."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("pragma journal_mode = wal")


@contextmanager
def _reached(uri: str) -> Iterator[None]:
    """Turns what MLflow and its store raise into one message."""
    try:
        yield
    except FlywheelError:
        raise
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("mlflow", "sqlalchemy", "sqlite3", "requests"):
            raise
        line = masked(str(error).strip().split("\n")[0])
        if getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE":
            raise FlywheelError(f"MLflow at {masked(uri)} refuses what it was given: {line}") from error
        raise FlywheelError(
            f"MLflow at {masked(uri)} does not answer: {line}. Start it, or point MLFLOW_TRACKING_URI elsewhere; "
            "then run `flywheel record`: nothing is lost, all of it is in the manifests"
        ) from error


def _write(root: Path, chosen: Decision) -> None:
    path = root / DECISION
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    with new.open("w") as file:
        YAML().dump(chosen.model_dump(), file)
    new.replace(path)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# What belongs together


def identity(manifest: store.Manifest) -> str:
    """What tells a stage's result from another one: everything but the time and tokens that it took."""
    told = manifest.model_dump(exclude={"tokens", "seconds", "started", "finished"})
    return store.digest([(k, json.dumps(v, sort_keys=True)) for k, v in told.items()])


def consistent(root: Path, block: Block) -> dict[str, store.Manifest]:
    """The stages of a block, in their order, without those that an earlier stage has left behind.

    Behind is a stage that read another version of its round's tables than is there now, or that ran with another seed,
    domain or engine than the stages before it.
    """
    there = store.manifests(root, block.name)
    made, shared, kept = {}, {}, {}
    for stage in stages_of(block):
        manifest = there.get(stage.name)
        if manifest is None:
            continue
        own = [n.argument for n in stage.inputs if not n.ancestor]
        given = {k: v for k, v in manifest.params.items() if k in SHARED}
        same_inputs = all(manifest.inputs.get(k) == made.get(k) for k in own)
        if same_inputs and all(shared.setdefault(k, v) == v for k, v in given.items()):
            kept[stage.name] = manifest
            made |= {k: o.digest for k, o in manifest.outputs.items()}
    return kept


def last_promoted(root: Path, pipeline: Pipeline) -> str | None:
    """The last round, in the order of params.yaml, that its gate promoted; else the first base that has been made.

    A decision counts as long as it is about what is there: the round and those that it descends from were made with
    their params of now, from what their ancestors hold now.
    """
    made = {name: consistent(root, block) for name, block in pipeline.blocks.items()}
    holds = {n: {k: o.digest for m in found.values() for k, o in m.outputs.items()} for n, found in made.items()}
    stands = {name: _stands(block, made[name], holds) for name, block in pipeline.blocks.items()}
    decided = [n for n, found in made.items() if "gate" in found and all(stands[b.name] for b in pipeline.lineage(n))]
    promoted = [n for n in decided if made[n]["gate"].metrics.get("promoted") == 1]
    bases = [n for n, found in made.items() if pipeline.blocks[n].is_base and _model(found)]
    return (promoted[-1:] or bases[:1] or [None])[0]


def _stands(block: Block, found: dict[str, store.Manifest], holds: dict[str, dict[str, str]]) -> bool:
    """Whether a round was made with its params of now, from what its ancestors hold now."""
    needs = [(m, n) for s, m in found.items() for n in stages()[s].inputs if n.ancestor]
    read = all(m.inputs.get(n.argument) == holds[block.raw[n.ancestor]].get(n.name) for m, n in needs)
    return read and all(block.raw.get(k) == v for m in found.values() for k, v in m.params.items())


def _model(found: dict[str, store.Manifest]) -> store.Output | None:
    return next((m.outputs["model"] for m in found.values() if "model" in m.outputs), None)


# Writing to MLflow


@dataclass(frozen=True)
class _Facts:
    """What one run is told."""

    metrics: list[Any]
    params: dict[str, str]
    inputs: list[Any]


class _Book:
    """MLflow's experiment and registered model of a campaign, read once, then brought up to date."""

    def __init__(self, root: Path, pipeline: Pipeline) -> None:
        self.root, self.pipeline, self.name = root, pipeline, pipeline.campaign.name
        self.client = _client(root)
        self.experiment = self._experiment()
        self.runs = self._runs()
        self.versions = self._versions()
        self.current: dict[str, Any] = {}
        self.new = {"runs": 0, "stages": 0, "versions": 0}

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(self.name)
        if found is None:
            plots = None if _is_served(self.root) else (self.root / "mlruns").resolve().as_uri()
            return str(self.client.create_experiment(self.name, artifact_location=plots))
        if found.lifecycle_stage != "active":
            raise FlywheelError(
                f"the MLflow experiment {self.name!r} was deleted; bring it back with "
                f"`mlflow experiments restore -x {found.experiment_id}`, or give the campaign another name in params.yaml"
            )
        return str(found.experiment_id)

    def _runs(self) -> list[Any]:
        found, token = [], None
        while True:
            page = self.client.search_runs([self.experiment], max_results=1000, page_token=token)
            found += page
            token = page.token
            if not token:
                return found

    def _versions(self) -> list[Any]:
        if not self.client.search_registered_models(f"name = '{self.name}'"):
            self.client.create_registered_model(self.name, description="The model after each round of the campaign.")
        found, token = [], None
        while True:
            page = self.client.search_model_versions(f"name = '{self.name}'", page_token=token)
            found += page
            token = page.token
            if not token:
                return found

    # A round

    def add(self, block: Block) -> None:
        """Records what has been made of a base or round and is not there yet."""
        found = consistent(self.root, block)
        if not found:
            return
        marks = {stage: identity(manifest) for stage, manifest in found.items()}
        run = self._compatible(block.name, marks) or self._begin(block, found)
        done = {c.data.tags["stage"] for c in self._children(run) if c.info.status == "FINISHED"}
        late = [stage for stage in found if stage not in done]
        children = [self._child(run, block, found[stage], marks[stage]) for stage in late]
        if late:
            self._tell(run.info.run_id, _round_facts(self.root, self.pipeline, block, found))
            self._draw(run, block, late)
            for child, stage in zip(children, late, strict=True):
                self._end(child, found[stage].finished)
            self.client.set_tag(run.info.run_id, "digest", store.digest(marks.items()))
        if run.info.status != "FINISHED" and len(found) == len(stages_of(block)):
            self._end(run, max(m.finished for m in found.values()))
        self._supersede(block.name, run)
        self._register(block, run, found)

    def _compatible(self, name: str, marks: dict[str, str]) -> Any | None:
        """The run of a round none of whose stages has another result, the one with the most of them."""
        rated = []
        for run in self.runs:
            if run.data.tags.get("round") != name or "stage" in run.data.tags:
                continue
            told = [c.data.tags for c in self._children(run)]
            if all(marks.get(t["stage"], t["digest"]) == t["digest"] for t in told):
                rated.append((len(told), run.info.start_time, run.info.run_id, run))
        return max(rated, default=(None,))[-1]

    def _children(self, run: Any) -> list[Any]:
        return [r for r in self.runs if r.data.tags.get("mlflow.parentRunId") == run.info.run_id]

    def _begin(self, block: Block, found: dict[str, store.Manifest]) -> Any:
        tags = {"round": block.name, "parent": block.parent or "", "base": block.base}
        self.new["runs"] += 1
        return self._create(block.name, min(m.started for m in found.values()), tags)

    def _child(self, run: Any, block: Block, manifest: store.Manifest, mark: str) -> Any:
        """A stage's run, told everything; the one that a kill cut off, where there is one."""
        self.new["stages"] += 1
        cut = [c for c in self._children(run) if c.data.tags["stage"] == manifest.stage]
        tags = {"mlflow.parentRunId": run.info.run_id, "round": block.name, "stage": manifest.stage, "digest": mark}
        child = cut[0] if cut else self._create(f"{manifest.stage}@{block.name}", manifest.started, tags)
        self._tell(child.info.run_id, _stage_facts(self.root, block, manifest))
        return child

    def _create(self, name: str, started: str, tags: dict[str, str]) -> Any:
        run = self.client.create_run(self.experiment, start_time=_ms(started), tags=tags, run_name=name)
        self.runs.append(run)
        return run

    def _tell(self, run: str, facts: _Facts) -> None:
        """Logs in as few calls as MLflow's limits allow: a call is a transaction of its store."""
        from mlflow.entities import Param

        params = [Param(k, v) for k, v in sorted(facts.params.items())]
        parts = zip_longest(_chunks(facts.metrics, METRICS_A_CALL), _chunks(params, PARAMS_A_CALL), fillvalue=())
        for metrics, some in parts:
            self.client.log_batch(run, metrics=metrics, params=some)
        if facts.inputs:
            self.client.log_inputs(run, facts.inputs)

    def _end(self, run: Any, finished: str) -> None:
        self.client.set_terminated(run.info.run_id, "FINISHED", end_time=_ms(finished))

    def _draw(self, run: Any, block: Block, late: list[str]) -> None:
        for name, figure in _figures(self.root, block, late):
            self.client.log_figure(run.info.run_id, figure, f"plots/{name}.png")

    def _supersede(self, name: str, run: Any) -> None:
        """Tags every other run of the round with the one that is in force."""
        current = run.info.run_id
        for other in self.runs:
            tags = other.data.tags
            if tags.get("round") != name:
                continue
            old, told = current not in (other.info.run_id, tags.get("mlflow.parentRunId")), tags.get("superseded_by")
            if old and told != current:
                self.client.set_tag(other.info.run_id, "superseded_by", current)
            if not old and told:
                self.client.delete_tag(other.info.run_id, "superseded_by")

    # The model

    def _register(self, block: Block, run: Any, found: dict[str, store.Manifest]) -> None:
        """A version that refers to the round's model, once for each digest; others of the round are superseded."""
        model = _model(found)
        if model is None:
            return
        version = self._version(block.name, model.digest)
        if version is None:
            source, tags = _source(self.root, block.name), {"round": block.name, "digest": model.digest}
            version = self.client.create_model_version(
                self.name,
                source,
                run.info.run_id,
                tags,
                description=f"The model of {block.name}.",
                await_creation_for=0,
            )
            self.versions.append(version)
            self.new["versions"] += 1
        self.current[block.name] = version
        for other in self.versions:
            self._mark_version(other, block.name, str(version.version))

    def _mark_version(self, other: Any, name: str, current: str) -> None:
        if other.tags.get("round") != name:
            return
        told = other.tags.get("superseded_by")
        if str(other.version) != current and told != current:
            self.client.set_model_version_tag(self.name, other.version, "superseded_by", current)
        if str(other.version) == current and told:
            self.client.delete_model_version_tag(self.name, other.version, "superseded_by")

    def _version(self, name: str, digest: str) -> Any | None:
        asked = (name, digest)
        return next((v for v in self.versions if (v.tags.get("round"), v.tags.get("digest")) == asked), None)

    def crown(self) -> str:
        """Moves the alias to the model that is in force, and says which one that is and by whose decision."""
        chosen = decision(self.root)
        name = chosen.round if chosen else last_promoted(self.root, self.pipeline)
        if name is None:
            return "no model to promote yet"
        version = self._version(name, chosen.digest) if chosen else self.current.get(name)
        if version is None:
            return f"{ALIAS} stays as it is: {name} has no longer the model that was promoted; `flywheel promote ROUND` anew"
        aliases = self.client.get_registered_model(self.name).aliases
        before, now = str(aliases.get(ALIAS, "")), str(version.version)
        if before != now:
            self.client.set_registered_model_alias(self.name, ALIAS, now)
        by = f"by {chosen.by}'s decision" if chosen else "by the gates' decision"
        moved = f", before version {before}" if before not in ("", now) else ""
        return f"{ALIAS} is {name}, version {now}{moved}, {by}"

    def summary(self) -> str:
        """What was new."""
        told = [f"{count} {what}" for what, count in self.new.items() if count]
        where = f"MLflow experiment {self.name} at {masked(tracking_uri(self.root))}"
        return f"{where}: {', '.join(told)} new" if told else f"{where} was up to date"


# What runs are told


def _stage_facts(root: Path, block: Block, manifest: store.Manifest) -> _Facts:
    spent = {f"seconds/{k}": v for k, v in manifest.seconds.items()} | {
        f"tokens/{k}": v for k, v in manifest.tokens.items()
    }
    when = _ms(manifest.finished)
    metrics = _metrics(manifest.metrics | spent, when) + _curves(root, manifest, when)
    return _Facts(metrics, _flat(manifest.params) | _versions_of(manifest), _read_by(root, block, manifest))


def _round_facts(root: Path, pipeline: Pipeline, block: Block, found: dict[str, store.Manifest]) -> _Facts:
    """All metrics and params of a round's stages side by side, and its seconds and tokens in all."""
    metrics = {k: v for m in found.values() for k, v in m.metrics.items()}
    metrics |= {f"seconds/{s}": sum(m.seconds.values()) - m.seconds.get("start", 0) for s, m in found.items()}
    metrics["seconds/start"] = sum(m.seconds.get("start", 0) for m in found.values())
    for kind in sorted({k for m in found.values() for k in m.tokens}):
        metrics[f"tokens/{kind}"] = sum(m.tokens.get(kind, 0) for m in found.values())
    params = {k: v for m in found.values() for k, v in _flat(m.params).items()}
    params |= {"parent": block.parent or "", "base": block.base}
    inputs = [
        _dataset(root, block.name, table, output.digest, output.rows, stage)
        for stage, manifest in found.items()
        for table, output in manifest.outputs.items()
        if output.kind == "table"
    ]
    return _Facts(_metrics(metrics, max(_ms(m.finished) for m in found.values())), params, inputs)


def _metrics(values: dict[str, float], when: int) -> list[Any]:
    from mlflow.entities import Metric

    return [Metric(metric_name(k), float(v), when, 0) for k, v in sorted(values.items())]


def metric_name(name: str) -> str:
    """A name that MLflow takes: letters, digits and `_ - . / :` and blanks, and no empty part between slashes."""
    parts = [re.sub(r"[^\w\-. :]", "_", part) for part in name.split("/")]
    return "/".join(p for p in parts if p.strip("."))


def _curves(root: Path, manifest: store.Manifest, when: int) -> list[Any]:
    from mlflow.entities import Metric

    return [
        Metric(metric_name(f"{row['phase']}/{row['name']}"), row["value"], when, row["step"])
        for row in curve(root, manifest.round, manifest.stage).iter_rows(named=True)
    ]


def curve(root: Path, name: str, stage: str) -> pl.DataFrame:
    """The training curve that a stage wrote: step, phase, name, value, in their order; empty where it wrote none."""
    columns = {"step": pl.Int64, "phase": pl.String, "name": pl.String, "value": pl.Float64}
    frames = [pl.DataFrame(schema=columns)]
    for plot in stages()[stage].plots if stage in stages() else ():
        path = store.round_folder(root, name) / "plots" / f"{plot}.csv"
        text = path.read_text() if path.is_file() else ""
        if {"phase", "step"} <= set(text.partition("\n")[0].split(",")):
            frame = pl.read_csv(text.encode(), infer_schema=False)
            long = frame.unpivot(index=["phase", "step"], variable_name="name")
            frames.append(long.select(list(columns)).cast(columns))  # type: ignore[arg-type]
    return pl.concat(frames).drop_nulls().sort("phase", "name", "step")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested params as `judge.panel.verifier.weight`; a panel's member without params is an empty text."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            shown = "" if value is None or value == {} else str(value)
            flat[metric_name(f"{prefix}{key}")] = shown[:LONGEST_PARAM]
    return flat


def _versions_of(manifest: store.Manifest) -> dict[str, str]:
    return {f"version.{k}": v for k, v in manifest.versions.items()}


def _read_by(root: Path, block: Block, manifest: store.Manifest) -> list[Any]:
    """The tables that a stage read."""
    owners = {None: block.name, **{k: block.raw.get(k) for k in ("parent", "base")}}
    needs = [n for n in stages()[manifest.stage].inputs if n.name in TABLES and n.argument in manifest.inputs]
    read = [(str(owners[n.ancestor]), n.name, manifest.inputs[n.argument], n.argument) for n in needs]
    return [_dataset(root, o, table, digest, _rows(root, o, table, digest), to) for o, table, digest, to in read]


def _rows(root: Path, owner: str, table: str, digest: str) -> int | None:
    """How many rows the table has, if it is still the one with that digest."""
    found = (m.outputs[table] for m in store.manifests(root, owner).values() if table in m.outputs)
    return next((o.rows for o in found if o.digest == digest), None)


def _dataset(root: Path, owner: str, table: str, digest: str, rows: int | None, context: str) -> Any:
    """A table as MLflow's dataset: where it lies and its digest, without its rows."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"uri": str((store.round_folder(root, owner) / table).resolve())})
    profile = None if rows is None else json.dumps({"num_rows": rows})
    dataset = Dataset(f"{owner}/{table}", digest[:LONGEST_DIGEST], "local", source, profile=profile)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])


def _source(root: Path, name: str) -> str:
    """Where a round's model lies; through a server, which takes no local paths, its place below the project."""
    place = store.round_folder(root, name) / "model"
    if _is_served(root):
        return f"dvc:///{place.relative_to(root)}"
    return (root / resolve(place)).resolve().as_uri()


def _is_served(root: Path) -> bool:
    return tracking_uri(root).startswith(("http:", "https:"))


def _chunks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def _ms(time: str) -> int:
    """Milliseconds since 1970 of an ISO time; 0 where there is none."""
    return int(datetime.fromisoformat(time).timestamp() * 1000) if time else 0


# Plots


def _figures(root: Path, block: Block, late: list[str]) -> Iterator[tuple[str, Any]]:
    if "evaluate" in late and (by_level := _by_level(root, block)):
        yield "accuracy", _accuracy(by_level)
    for stage in late:
        lines = curve(root, block.name, stage)
        if len(lines):
            yield f"{stage}_curve", _curve_figure(lines, f"{stage}@{block.name}")


def _by_level(root: Path, block: Block) -> dict[str, pl.DataFrame]:
    """Measures by level of a round, of its parent and of its base, as far as they are there."""
    found = {}
    for name in dict.fromkeys([block.name, block.parent or block.name, block.base]):
        if not store.has(root, name, "measures"):
            continue
        frame = store.scan(root, name, "measures")[0].collect()
        frame = frame.filter(pl.col("level").is_not_null()).sort("level")
        if len(frame):
            found[name] = frame
    return found


def _accuracy(by_level: dict[str, pl.DataFrame]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6))
    panels = figure.subplots(1, 2, sharey=True, gridspec_kw=_margins(3.6, 0.35))
    for panel, (measure, title) in zip(
        panels, {"pass_at_1": "sampled, pass@1", "greedy": "greedy"}.items(), strict=True
    ):
        for name, frame in by_level.items():
            rows = frame.filter(name=measure)
            panel.plot(rows["level"], rows["value"], marker="o", label=name)
            panel.fill_between(rows["level"], rows["low"].fill_null(0), rows["high"].fill_null(1), alpha=0.15)
        panel.set(title=title, xlabel="level", ylim=(0, 1.02))
        panel.xaxis.get_major_locator().set_params(integer=True)
    panels[0].set_ylabel("accuracy, 95 % interval")
    panels[0].legend()
    return figure


def _margins(height: float, top: float) -> dict[str, float]:
    """Room for the texts around the panels, in shares of a figure of `height` inches: to have matplotlib find it out is
    to draw everything twice.
    """
    return {"left": 0.07, "right": 0.98, "bottom": 0.5 / height, "top": 1 - top / height, "wspace": 0.15, "hspace": 0.5}


def _curve_figure(lines: pl.DataFrame, title: str) -> Any:
    from matplotlib.figure import Figure

    groups = lines.partition_by("phase", "name", maintain_order=True)
    rows = (len(groups) + 1) // 2
    height = 2.6 * rows + 0.6
    figure = Figure(figsize=(9, height))
    panels = figure.subplots(rows, 2, squeeze=False, gridspec_kw=_margins(height, 0.7)).flatten()
    for panel, group in zip(panels, groups, strict=False):
        panel.plot(group["step"], group["value"])
        panel.set(title=f"{group['phase'][0]} {group['name'][0]}", xlabel="step")
    for panel in panels[len(groups) :]:
        panel.set_axis_off()
    figure.suptitle(title)
    return figure


__all__ = ["consistent", "decision", "last_promoted", "prepare", "promote", "record", "tracking_uri"]
