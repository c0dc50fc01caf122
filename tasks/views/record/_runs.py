"""Runs: one for each base and round, with a child for each stage, each result once."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tasks.core import store
from tasks.core.errors import FlywheelError
from tasks.project.champion import consistent_manifests
from tasks.project.params import Block, Pipeline, stages_of
from tasks.views.record._connection import artifact_location, connect, tracking_uri
from tasks.views.record._examples import Example, disputed, items, items_key
from tasks.views.record._facts import (
    MONEY,
    Dataset,
    Facts,
    Manifests,
    identity,
    milliseconds,
    round_facts,
    stage_facts,
    totals,
)
from tasks.views.record._figures import figures
from tasks.views.record._memory import Memory, Recorded, state
from tasks.views.record._models import Models, pages
from tasks.views.record._review import Review
from tasks.views.record._traces import Traces
from tasks.views.record._ui import SAVED_VIEW

EXAMPLES = "examples"
"""Tag of a run whose examples are logged, with a digest of what they were taken from."""
EXPERIMENT = {"mlflow.experimentKind": "custom_model_development"} | SAVED_VIEW
"""Tags of the experiment: models are trained in it, and a saved view of its runs has the headline metrics as columns."""
METRICS_PER_CALL, PARAMS_PER_CALL = 900, 100


class Recorder:
    """Updates the experiment and registered model of a campaign. Where it remembers what was recorded, it asks MLflow about the
    rounds that changed alone; else it reads both once.
    """

    def __init__(self, root: Path, pipeline: Pipeline, again: Collection[str] = ()) -> None:
        self.root, self.pipeline, self.name, self.again = root, pipeline, pipeline.campaign.name, again
        self.client = connect(root)
        self.experiment = self._experiment()
        self.memory = Memory.read(root, self.client.get_experiment(self.experiment).tags)
        self._runs: dict[str, list[Any]] = {}
        if not self.memory.rounds:
            for run in self._search(None):
                self._runs.setdefault(run.data.tags.get("round", ""), []).append(run)
        self.new = Counter[str]()
        self.recorded: dict[str, Recorded] = {}
        """What is in MLflow of each base and round that is whole."""
        self.traces = Traces(tracking_uri(root), self.experiment)
        self.review = Review(self.traces.client, self.experiment)
        self.models = Models(root, pipeline, self.client, self.experiment, self.new, not self.memory.rounds)

    def _experiment(self) -> str:
        experiment = self.client.get_experiment_by_name(self.name)
        if experiment is None:
            return str(self.client.create_experiment(self.name, artifact_location(self.root), EXPERIMENT))
        if experiment.lifecycle_stage != "active":
            raise FlywheelError(
                f"the MLflow experiment {self.name!r} was deleted; bring it back with `mlflow experiments restore -x "
                f"{experiment.experiment_id}`, or give the campaign another name in params.yaml"
            )
        return str(experiment.experiment_id)

    def _search(self, name: str | None) -> list[Any]:
        """The runs of a base or round and of its stages; those of all without a name."""
        query = "" if name is None else f"tags.round = '{name}'"
        return pages(
            lambda token: self.client.search_runs([self.experiment], query, max_results=1000, page_token=token)
        )

    def runs(self, name: str) -> list[Any]:
        """The runs of a base or round and of its stages."""
        if name not in self._runs:
            self._runs[name] = self._search(name) if self.memory.rounds else []
        return self._runs[name]

    def finish(self) -> None:
        """Remembers what is recorded."""
        self.memory.renew(self.root, self.client, self.experiment, self.memory.rounds | self.recorded)

    # A round

    def add(self, block: Block) -> None:
        """Records the results of a base or round that are not in MLflow yet."""
        manifests = consistent_manifests(self.root, block)
        if not manifests:
            return
        content = state(self.root, self.pipeline, block, manifests, self._number(block))
        known = self.memory.rounds.get(block.name)
        if known is None or known.state != content or block.name in self.again:
            run, version = self._add(block, manifests)
            known = Recorded(state=content, run=run.info.run_id, version=version)
        elif known.version:
            self.models.current[block.name] = known.version
        self.recorded[block.name] = known

    def _add(self, block: Block, manifests: Manifests) -> tuple[Any, str | None]:
        """The run of a round's results, and its version of the model."""
        digests = {stage: identity(manifest) for stage, manifest in manifests.items()}
        run = self._compatible(block.name, digests) or self._begin(block, manifests)
        model = self.models.log(block, run, manifests)
        recorded = {c.data.tags["stage"] for c in self._children(run) if c.info.status == "FINISHED"}
        missing = [stage for stage in manifests if stage not in recorded]
        children = [self._child(run, block, manifests[stage], digests[stage]) for stage in missing]
        if missing:
            facts = round_facts(self.root, block, manifests, self._number(block), self.pipeline.prices)
            self._log(run.info.run_id, facts, model)
            self._draw(run, block, missing)
            for child, stage in zip(children, missing, strict=True):
                self._end(child, manifests[stage].finished)
            self.client.set_tag(run.info.run_id, "digest", store.digest(digests.items()))
        if run.info.status != "FINISHED" and len(manifests) == len(stages_of(block)):
            self._end(run, max(m.finished for m in manifests.values()))
        if not missing and len(manifests) == len(stages_of(block)):
            self._price(run, block, manifests)
        self._supersede(block.name, run)
        version = None
        if model:
            self._name_model(run, model, self._number(block))
            version = self.models.register(block, run, manifests, model)
        self._show(block, run, manifests, model)
        return run, version

    def _compatible(self, name: str, digests: dict[str, str]) -> Any | None:
        """The run of a round whose stages all have these results; of several the one with the most stages."""
        candidates = []
        for run in (r for r in self.runs(name) if "stage" not in r.data.tags):
            tags = [c.data.tags for c in self._children(run)]
            if all(digests.get(t["stage"], t["digest"]) == t["digest"] for t in tags):
                candidates.append((len(tags), run.info.start_time, run.info.run_id, run))
        return max(candidates, default=(None,))[-1]

    def _children(self, run: Any) -> list[Any]:
        runs = self.runs(run.data.tags["round"])
        return [r for r in runs if r.data.tags.get("mlflow.parentRunId") == run.info.run_id]

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
        self.runs(tags["round"]).append(run)
        return run

    def _log(self, run: str, facts: Facts, model: str | None = None) -> None:
        """Logs in as few calls as MLflow's limits allow, since each call is a transaction. Metrics of the exam also hang on
        the model and on the items that it was asked.
        """
        from mlflow.entities import Metric, Param

        metrics = [
            Metric(
                m.key, m.value, m.timestamp, m.step, model if m.exam else None, m.exam and m.exam.name,
                m.exam and m.exam.digest, run,
            )
            for m in facts.metrics
        ]  # fmt: skip
        params = [Param(k, v) for k, v in sorted(facts.params.items())]
        chunks = zip_longest(_chunks(metrics, METRICS_PER_CALL), _chunks(params, PARAMS_PER_CALL), fillvalue=())
        for metric_chunk, param_chunk in chunks:
            self.client.log_batch(run, metrics=metric_chunk, params=param_chunk)
        if facts.inputs:
            self.client.log_inputs(run, [_dataset_input(i) for i in facts.inputs])

    def _name_model(self, run: Any, model: str, step: int) -> None:
        """Names the model once: in the runs of stages as what they worked towards, in the round's as what was examined, for
        MLflow shows as evaluations the runs that made no model.
        """
        from mlflow.entities import LoggedModelInput, LoggedModelOutput

        if not (run.inputs and run.inputs.model_inputs):
            self.client.log_inputs(run.info.run_id, models=[LoggedModelInput(model)])
        for child in self._children(run):
            if not (child.outputs and child.outputs.model_outputs):
                self.client.log_outputs(child.info.run_id, [LoggedModelOutput(model, step)])

    def _show(self, block: Block, run: Any, manifests: Manifests, model: str | None) -> None:
        """Shows exam items that were won or lost in the round's run, disputed verdicts in that of `judge` and in the review
        queue; once for each content of the tables.
        """
        if key := items_key(self.root, block, manifests):
            self._log_examples(run, model, key, manifests["evaluate"], partial(items, self.root, block))
        for judge in (c for c in self._children(run) if c.data.tags["stage"] == "judge"):
            key = manifests["judge"].outputs["judgments"].digest
            find = partial(disputed, self.root, block)
            self._log_examples(judge, model, key, manifests["judge"], find, self.review.ask)

    def _log_examples(
        self,
        run: Any,
        model: str | None,
        key: str,
        manifest: store.Manifest,
        find: Callable[[], list[Example]],
        ask: Callable[[list[str]], None] | None = None,
    ) -> None:
        """Logs examples to a run, unless it has those of this key; `ask` is told the ids of their traces."""
        if run.data.tags.get(EXAMPLES) != key:
            ids = self.traces.log(run.info.run_id, model, key, find(), milliseconds(manifest.finished))
            if ask:
                ask(ids)
            self.client.set_tag(run.info.run_id, EXAMPLES, key)
            self.new["traces"] += len(ids)

    def _price(self, run: Any, block: Block, manifests: Manifests) -> None:
        """Logs a round's money again where prices were edited since."""
        money = totals(manifests, self.pipeline.prices).get(MONEY)
        if money is not None and run.data.metrics.get(MONEY) != money:
            self.client.log_metric(run.info.run_id, MONEY, money, step=self._number(block))

    def _end(self, run: Any, finished: str) -> None:
        self.client.set_terminated(run.info.run_id, "FINISHED", end_time=milliseconds(finished))

    def _draw(self, run: Any, block: Block, stage_names: list[str]) -> None:
        for name, figure in figures(self.root, block, stage_names):
            self.client.log_figure(run.info.run_id, figure, f"plots/{name}.png")

    def _supersede(self, name: str, run: Any) -> None:
        """Tags every other run of the round with the current one."""
        current = run.info.run_id
        for other in self.runs(name):
            tags = other.data.tags
            is_old, mark = current not in (other.info.run_id, tags.get("mlflow.parentRunId")), tags.get("superseded_by")
            if is_old and mark != current:
                self.client.set_tag(other.info.run_id, "superseded_by", current)
            if not is_old and mark:
                self.client.delete_tag(other.info.run_id, "superseded_by")


def _dataset_input(table: Dataset) -> Any:
    from mlflow.entities import Dataset as Entity
    from mlflow.entities import DatasetInput, InputTag

    entity = Entity(table.name, table.digest, "dvc", table.source, profile=table.profile)
    return DatasetInput(entity, [InputTag("mlflow.data.context", table.context)])


def _chunks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[i : i + size] for i in range(0, len(items), size)]
