"""Content of MLflow runs from manifests: metrics, parameters and input tables, as plain values without MLflow."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tasks.core import store
from tasks.core.stage import stages
from tasks.core.tables import TABLES
from tasks.project.blocks import EXAM
from tasks.project.params import Block
from tasks.views._figures import curve

MAX_DIGEST, MAX_PARAM = 36, 6000
"""Characters that MLflow stores of a data set's digest and of a parameter."""
HEADLINE = "_headline"
"""Group of the metrics that stand first in MLflow's tables and charts: `_` sorts before letters."""
HEADLINES = ("pass_at_1", "greedy", "grade", "promoted", "kept", "training_rows", "tokens/completion_tokens")
Manifests = dict[str, store.Manifest]


@dataclass(frozen=True)
class Metric:
    """A number at a step, with its time in milliseconds since 1970."""

    key: str
    value: float
    timestamp: int
    step: int = 0


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


def round_facts(root: Path, block: Block, manifests: Manifests, number: int) -> Facts:
    """Content of a round's run: metrics and parameters of all stages, and total seconds and tokens, at the step `number`; the
    headline metrics also under names that MLflow sorts before the others.
    """
    metrics = {k: v for m in manifests.values() for k, v in m.metrics.items()}
    metrics |= {f"seconds/{s}": sum(m.seconds.values()) - m.seconds.get("start", 0) for s, m in manifests.items()}
    metrics["seconds/start"] = sum(m.seconds.get("start", 0) for m in manifests.values())
    for kind in sorted({k for m in manifests.values() for k in m.tokens}):
        metrics[f"tokens/{kind}"] = sum(m.tokens.get(kind, 0) for m in manifests.values())
    metrics |= {f"{HEADLINE}/{k}": metrics[k] for k in HEADLINES if k in metrics}
    metrics[f"{HEADLINE}/seconds"] = sum(sum(m.seconds.values()) for m in manifests.values())
    params = {k: v for m in manifests.values() for k, v in _params(m).items()}
    params |= {k: getattr(block, k) or "" for k in ("parent", "base", "recipe", "anchor")}
    inputs = [
        _dataset(root, block.name, table, output.digest, output.rows, stage)
        for stage, manifest in manifests.items()
        for table, output in manifest.outputs.items()
        if output.kind == "table"
    ]
    timestamp = max(milliseconds(m.finished) for m in manifests.values())
    return Facts(_metrics(metrics, timestamp, number), params, inputs)


def _metrics(values: dict[str, float], timestamp: int, step: int) -> list[Metric]:
    return [Metric(metric_name(k), float(v), timestamp, step) for k, v in sorted(values.items())]


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
    source = json.dumps({"uri": str((store.round_folder(root, owner) / table).resolve())})
    profile = None if rows is None else json.dumps({"num_rows": rows})
    return Dataset(f"{owner}/{table}", digest[:MAX_DIGEST], source, profile, context)


def milliseconds(time: str) -> int:
    """Milliseconds since 1970 of an ISO time; 0 for an empty one."""
    return int(datetime.fromisoformat(time).timestamp() * 1000) if time else 0
