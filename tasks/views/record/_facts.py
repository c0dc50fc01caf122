"""Content of MLflow runs from manifests: metrics, parameters and input tables, as plain values without MLflow."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from tasks.core import store
from tasks.core.stage import stages
from tasks.core.tables import TABLES
from tasks.project.blocks import EXAM
from tasks.project.costs import Prices, of
from tasks.project.params import Block, stages_of
from tasks.views._dvc_addresses import address
from tasks.views.record._figures import curve

MAX_DIGEST, MAX_PARAM = 36, 6000
"""Characters that MLflow stores of a data set's digest and of a parameter."""
HEADLINE = "_headline"
"""Group of the metrics that stand first in MLflow's tables and charts: `_` sorts before letters."""
HEADLINES = (
    "pass_at_1",
    "greedy",
    "grade",
    "promoted",
    "kept",
    "training_rows",
    "tokens/completion_tokens",
    "gpu_hours",
)
FIRST = [f"{HEADLINE}/{name}" for name in HEADLINES]
"""Logged before the others: MLflow compares runs by the first of their metrics."""
MONEY = f"{HEADLINE}/money"
MODELS_PARAMS = ("parent", "base", "recipe", "anchor")
EXAM_MEASURES = {
    "heldout": re.compile(r"(pass|majority)_at_\d+|greedy|grade(_sampled)?"),
    "validation": re.compile(r"validation_((pass|majority)_at_\d+|greedy|grade(_sampled)?)"),
    "gold": re.compile(r"\w+_(auroc|balanced_accuracy|calibration_error)|critique_location"),
}
"""Measures over all levels that hang on the model, by the items that they are measured on."""
Manifests = dict[str, store.Manifest]


@dataclass(frozen=True)
class Metric:
    """A number at a step, with its time in milliseconds since 1970."""

    key: str
    value: float
    timestamp: int
    step: int = 0
    exam: "Dataset | None" = None
    """The items that it was measured on, where it is a measure of the model that belongs beside the model."""


@dataclass(frozen=True)
class Dataset:
    """A table by path and digest, without its rows."""

    name: str
    digest: str
    source: str
    """JSON with its URI."""
    profile: str | None
    """JSON with its number of rows, if known."""
    context: str
    """Its role in the run: an argument of the stage, or the stage that wrote it."""


@dataclass(frozen=True)
class Facts:
    """Content of a run."""

    metrics: list[Metric]
    params: dict[str, str]
    inputs: list[Dataset]


def stage_facts(root: Path, block: Block, manifest: store.Manifest, number: int) -> Facts:
    """Content of a stage's run; its metrics are at the step `number`, the round's, and its training curves at their own."""
    costs = {f"{kind}/{k}": v for kind in ("seconds", "tokens") for k, v in getattr(manifest, kind).items()}
    timestamp = milliseconds(manifest.finished)
    curves = [
        Metric(metric_name(f"{row['phase']}/{row['name']}"), row["value"], timestamp, row["step"])
        for row in curve(root, manifest.round, manifest.stage).iter_rows(named=True)
    ]
    versions = {f"version.{k}": v for k, v in manifest.versions.items()}
    return Facts(
        _metrics(manifest.metrics | costs, timestamp, number) + curves,
        _params(manifest) | versions,
        _inputs(root, manifest),
    )


def round_facts(root: Path, block: Block, manifests: Manifests, number: int, prices: Prices | None) -> Facts:
    """Content of a round's run: metrics and parameters of all stages at the step `number`; the headline metrics also under
    names that MLflow sorts before the others. Totals of seconds, tokens and costs come once all stages are there.
    """
    exams = _exams(root, block, manifests)
    metrics: list[Metric] = []
    for stage, manifest in manifests.items():
        values = manifest.metrics | {
            f"seconds/{stage}": sum(manifest.seconds.values()) - manifest.seconds.get("start", 0)
        }
        values |= {f"{HEADLINE}/{k}": values[k] for k in HEADLINES if k in values}
        metrics += _metrics(values, milliseconds(manifest.finished), number, exams if stage == "evaluate" else {})
    if len(manifests) == len(stages_of(block)):
        finished = max(milliseconds(m.finished) for m in manifests.values())
        metrics += _metrics(totals(manifests, prices), finished, number)
    metrics.sort(key=lambda m: (m.key not in FIRST, FIRST.index(m.key) if m.key in FIRST else 0, m.key))
    params = {k: v for m in manifests.values() for k, v in _params(m).items()}
    params |= {k: getattr(block, k) or "" for k in MODELS_PARAMS}
    inputs = [
        _dataset(root, block.name, table, output.digest, output.rows, stage)
        for stage, manifest in manifests.items()
        for table, output in manifest.outputs.items()
        if output.kind == "table"
    ]
    return Facts(metrics, params, [*inputs, *{e.name: e for e in exams.values()}.values()])


def totals(manifests: Manifests, prices: Prices | None) -> dict[str, float]:
    """Seconds, tokens, GPU hours and, with prices, money of all stages together."""
    values = {"seconds/start": sum(m.seconds.get("start", 0) for m in manifests.values())}
    for kind in sorted({k for m in manifests.values() for k in m.tokens}):
        values[f"tokens/{kind}"] = sum(m.tokens.get(kind, 0) for m in manifests.values())
    costs = of(manifests.values(), prices)
    values |= {"gpu_hours": costs.gpu_hours, "hours": costs.hours}
    values |= {f"{HEADLINE}/gpu_hours": costs.gpu_hours} if costs.gpu_hours else {}
    values |= {MONEY: costs.money} if costs.money is not None else {}
    values |= {f"{HEADLINE}/{k}": values[k] for k in HEADLINES if k in values}
    values[f"{HEADLINE}/seconds"] = sum(sum(m.seconds.values()) for m in manifests.values())
    return values


def _exams(root: Path, block: Block, manifests: Manifests) -> dict[str, Dataset]:
    """Measure → the items that it was measured on, by content: the same for all rounds of a base."""
    if "evaluate" not in manifests:
        return {}
    digests = _item_digests(root, block.name)
    exams = {}
    for measure in manifests["evaluate"].metrics:
        kind = next((k for k, pattern in EXAM_MEASURES.items() if pattern.fullmatch(measure)), None)
        if kind in digests:
            digest, items = digests[kind]
            table = "audits" if kind == "gold" else "evals"
            source = json.dumps({"uri": address(f"data/round={block.name}/{table}")})
            name = f"exam of {block.base}, {kind}"
            exams[measure] = Dataset(name, digest[:MAX_DIGEST], source, json.dumps({"num_rows": items}), "exam")
    return exams


def _item_digests(root: Path, name: str) -> dict[str, tuple[str, int]]:
    """Digest and number of the items of each set of the exam, and of the gold answers."""
    evals = store.scan(root, name, "evals")[0].filter(pl.col("mode") != "refined").select("split", "item")
    gold = store.scan(root, name, "audits")[0].select(pl.lit("gold").alias("split"), "item")
    items = pl.concat([evals, gold]).unique().sort("split", "item").collect()
    return {
        str(split): (hashlib.sha256("\n".join(rows["item"]).encode()).hexdigest(), len(rows))
        for (split,), rows in items.group_by("split")
    }


def _metrics(
    values: Mapping[str, float], timestamp: int, step: int, exams: Mapping[str, Dataset] | None = None
) -> list[Metric]:
    exams = exams or {}
    return [Metric(metric_name(k), float(v), timestamp, step, exams.get(k)) for k, v in sorted(values.items())]


def metric_name(name: str) -> str:
    """A valid name in MLflow: letters, digits, `_ - . / :` and blanks, without empty parts between slashes."""
    parts = [re.sub(r"[^\w\-. :]", "_", part) for part in name.split("/")]
    return "/".join(p for p in parts if p.strip("."))


def _params(manifest: store.Manifest) -> dict[str, str]:
    values = manifest.plan.values | ({"models": manifest.plan.models} if manifest.plan.models else {})
    if manifest.stage in EXAM:  # its seed and engine are the base's, and a round's run has both
        values = {f"exam.{k}" if k in ("seed", "engine") else k: v for k, v in values.items()}
    return dict(_flat(values))


def _flat(values: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested parameters by dotted path, such as `judge.self_judge.likeliest`; an empty block is an empty string."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            text = "" if value is None or value == {} else str(value)
            yield metric_name(f"{prefix}{key}"), text[:MAX_PARAM]


def _inputs(root: Path, manifest: store.Manifest) -> list[Dataset]:
    """The tables that a stage read."""
    owners = {None: manifest.round, **manifest.plan.ancestors}
    inputs = [i for i in stages()[manifest.stage].inputs if i.name in TABLES and i.argument in manifest.inputs]
    return [
        _dataset(root, owner, i.name, digest, _rows(root, owner, i.name, digest), i.argument)
        for i in inputs
        if (owner := owners.get(i.ancestor)) and (digest := manifest.inputs[i.argument])
    ]


def _rows(root: Path, owner: str, table: str, digest: str) -> int | None:
    """Number of rows of a table, if it still has that digest."""
    outputs = (m.outputs[table] for m in store.manifests(root, owner).values() if table in m.outputs)
    return next((o.rows for o in outputs if o.digest == digest), None)


def _dataset(root: Path, owner: str, table: str, digest: str, rows: int | None, context: str) -> Dataset:
    source = json.dumps({"uri": address(str(store.round_folder(root, owner).relative_to(root) / table))})
    profile = None if rows is None else json.dumps({"num_rows": rows})
    return Dataset(f"{owner}/{table}", digest[:MAX_DIGEST], source, profile, context)


def milliseconds(time: str) -> int:
    """Milliseconds since 1970 of an ISO time; 0 for an empty one."""
    return int(datetime.fromisoformat(time).timestamp() * 1000) if time else 0


def identity(manifest: store.Manifest) -> str:
    """Digest of a stage's result: its manifest without times and tokens, nor plots, of which older manifests know nothing."""
    values = manifest.model_dump(exclude={"tokens", "seconds", "started", "finished", "plots"})
    return store.digest([(k, json.dumps(v, sort_keys=True)) for k, v in values.items()])
