"""The tables `rounds`, `stages`, `costs`, `warnings` and `metrics` of the SQL views, made from params.yaml and the manifests;
and what every table and column holds.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa

from tasks.core.labels import LABELS
from tasks.core.meanings import meaning
from tasks.core.plan import Plan
from tasks.core.store import Manifest
from tasks.core.tables import TABLES
from tasks.project import costs, params
from tasks.project.champion import model_digest
from tasks.project.costs import Prices

Rounds = dict[str, dict[str, Manifest]]
"""Round → stage → manifest, in the order of params.yaml; rounds that are only on disk come last."""
Columns = dict[str, tuple[pa.DataType, str]]
"""Column → its type, and what it holds."""

TEXT, INTEGER, NUMBER, FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()
ROUND = "the base's or round's name"
ROUNDS: Columns = {
    "round": (TEXT, ROUND),
    "kind": (TEXT, "`base` or `round`; null when params.yaml no longer has it"),
    "parent": (TEXT, "the base or round that it starts from"),
    "base": (TEXT, "the base that it descends from"),
    "recipe": (TEXT, "how its data are made"),
    "anchor": (TEXT, "another base or round whose model or tables it uses"),
    "seed": (INTEGER, "of its draws"),
    "domain": (TEXT, "the base's domain"),
    "engine": (TEXT, "what runs its models"),
    "strategies": (pa.map_(TEXT, TEXT), "by stage; those of several members are joined by ` + `"),
    "model": (TEXT, "digest of the weights, as rows carry it"),
    "promoted": (FLAG, "whether its gates promoted it; null before they have run"),
    "stages": (INTEGER, "number that have run"),
    "finished": (TEXT, "the last of them, ISO 8601, UTC"),
    "hours": (NUMBER, "in which at least one of its stages ran"),
    "gpu_hours": (NUMBER, "for which its stages held GPUs, summed over these"),
    "money": (NUMBER, "for its tokens and GPU hours at today's `prices`; null where params.yaml has none"),
}
STAGES: Columns = {
    "round": (TEXT, ROUND),
    "stage": (TEXT, "the stage's name"),
    "rows": (INTEGER, "written, over all its tables"),
    "prompt_tokens": (INTEGER, "tokens of the prompts that it sent"),
    "completion_tokens": (INTEGER, "tokens generated for it"),
    "requests": (INTEGER, "to engines, those from the cache among them"),
    "seconds": (NUMBER, "all of them, start-up included"),
    "start_seconds": (NUMBER, "process start-up and loading models"),
    "model_seconds": (NUMBER, "generating, scoring, training"),
    "run_seconds": (NUMBER, "its own work beside that"),
    "write_seconds": (NUMBER, "writing and checking tables"),
    "started": (TEXT, "ISO 8601, UTC"),
    "finished": (TEXT, "ISO 8601, UTC"),
    "gpus": (pa.list_(TEXT), "kind of each GPU that it held; empty on a CPU"),
    "gpu_hours": (NUMBER, "for which it held them, summed over these"),
    "money": (NUMBER, "for its tokens and GPU hours at today's `prices`; null where params.yaml has none"),
}
COSTS: Columns = {
    "round": (TEXT, ROUND),
    "stage": (TEXT, "the stage that asked"),
    "engine": (TEXT, "the engine's name, or that of the roster's model, which is an engine of its own"),
    "requests": (INTEGER, "those from the cache among them"),
    "prompt_tokens": (INTEGER, "tokens of the prompts"),
    "completion_tokens": (INTEGER, "tokens generated"),
    "money": (NUMBER, "for these tokens at today's `prices`, GPU hours left out; null where params.yaml has none"),
}
WARNINGS: Columns = {
    "round": (TEXT, ROUND),
    "stage": (TEXT, "the stage that warned"),
    "warning": (TEXT, "what a person should know, as the run printed it"),
}
METRICS: Columns = {
    "round": (TEXT, ROUND),
    "stage": (TEXT, "the stage that measured it"),
    "name": (TEXT, "such as `pass_at_1/level_4`"),
    "value": (NUMBER, "the metric's value"),
    "meaning": (TEXT, "what the metric measures, in words"),
}
SUMMARIES = {
    "rounds": ("Each base and round: parent, strategies, model, whether it was promoted.", ROUNDS),
    "stages": ("Cost of each stage of each round: rows, tokens, seconds, GPU hours, money.", STAGES),
    "costs": ("Tokens and money of each stage of each round by engine.", COSTS),
    "warnings": ("Every warning of every stage.", WARNINGS),
    "metrics": ("Every metric of every stage, and what it means.", METRICS),
}
SCHEMAS = {name: pa.schema({c: kind for c, (kind, _) in columns.items()}) for name, (_, columns) in SUMMARIES.items()}
DOCS = (
    {name: (table.doc, {"round": ROUND} | table.docs) for name, table in TABLES.items()}
    | {
        name: (doc, {column: text for column, (_, text) in columns.items()})
        for name, (doc, columns) in SUMMARIES.items()
    }
    | {LABELS.name: (LABELS.doc, LABELS.docs)}
)
"""Table → what it holds, and what each of its columns holds."""


def summaries(root: Path, content: dict[str, Any], rounds: Rounds) -> dict[str, pa.Table]:
    """The rows of the tables of `SUMMARIES`; `content` is params.yaml.

    Raises:
        ParamsError: when its prices are invalid.
    """
    prices = costs.prices_in(content)
    stages = [m for manifests in rounds.values() for m in sorted(manifests.values(), key=lambda m: m.finished)]
    rows = {
        "rounds": [_round_row(root, name, manifests, content, prices) for name, manifests in rounds.items()],
        "stages": [_stage_row(manifest, prices) for manifest in stages],
        "costs": [row for manifest in stages for row in _cost_rows(manifest, prices)],
        "warnings": [{"round": m.round, "stage": m.stage, "warning": text} for m in stages for text in m.warnings],
        "metrics": [
            {"round": m.round, "stage": m.stage, "name": n, "value": v, "meaning": meaning(n)}
            for m in stages
            for n, v in m.metrics.items()
        ],
    }
    return {name: pa.Table.from_pylist(rows[name], schema) for name, schema in SCHEMAS.items()}


def empty_summaries() -> dict[str, pa.Table]:
    """The same tables without rows."""
    return {name: pa.Table.from_batches([], schema) for name, schema in SCHEMAS.items()}  # from_pylist imports pandas


def _round_row(
    root: Path, name: str, manifests: dict[str, Manifest], content: dict[str, Any], prices: Prices | None
) -> dict[str, Any]:
    spent = costs.of(manifests.values(), prices)
    kind = next((k for k in ("bases", "rounds") if name in (content.get(k) or {})), None)
    block = content[kind][name] or {} if kind else {}
    plans = sorted((m.plan for m in manifests.values()), key=lambda p: (p.stage in params.EXAM, p.stage))
    base = (content.get("bases") or {}).get(block.get("base", name) if kind == "rounds" else name) or {}
    promoted = [m.metrics["promoted"] > 0 for m in manifests.values() if "promoted" in m.metrics]
    default = (content.get("defaults") or {}).get("recipe", params.Defaults().recipe)
    return {
        "round": name,
        "kind": kind.removesuffix("s") if kind else None,
        "parent": block.get("parent"),
        "base": block.get("base") if kind == "rounds" else name if kind else None,
        "recipe": block.get("recipe", default) if kind == "rounds" else None,
        "anchor": block.get("anchor"),
        "seed": block.get("seed", next((p.seed for p in plans if p.seed is not None), None)),
        "domain": _first_strategy([p.domain for p in plans] + [base.get("domain")]),
        "engine": _first_strategy([p.engine for p in plans] + [base.get("engine")]),
        "strategies": [(p.stage, _strategies(p)) for p in plans if p.members],
        "model": model_digest(root, name, manifests),
        "promoted": promoted[0] if promoted else None,
        "stages": len(manifests),
        "finished": max((m.finished for m in manifests.values()), default=None),
        "hours": spent.hours,
        "gpu_hours": spent.gpu_hours,
        "money": spent.money,
    }


def _first_strategy(blocks: list[Any]) -> str | None:
    """The strategy of the first block that names one."""
    return next((b["strategy"] for b in blocks if isinstance(b, dict) and "strategy" in b), None)


def _strategies(plan: Plan) -> str:
    """A stage's strategies, each after its member's name where that differs."""
    names = {m: values.get("strategy", m) for m, values in plan.members.items()}
    return " + ".join(m if m == strategy else f"{m} ({strategy})" for m, strategy in names.items())


def _stage_row(manifest: Manifest, prices: Prices | None) -> dict[str, Any]:
    return {
        "round": manifest.round,
        "stage": manifest.stage,
        "rows": sum(o.rows or 0 for o in manifest.outputs.values()),
        **{k: manifest.tokens.get(k, 0) for k in ("prompt_tokens", "completion_tokens", "requests")},
        "seconds": sum(manifest.seconds.values()),
        **{f"{k}_seconds": manifest.seconds.get(k) for k in ("start", "model", "run", "write")},
        "started": manifest.started,
        "finished": manifest.finished,
        "gpus": manifest.gpus,
        "gpu_hours": manifest.gpu_seconds / costs.HOUR,
        "money": prices and costs.money(manifest, prices),
    }


def _cost_rows(manifest: Manifest, prices: Prices | None) -> list[dict[str, Any]]:
    """A row for each engine that a stage asked."""
    used = costs.usage(manifest)
    return [
        {"round": manifest.round, "stage": manifest.stage, "engine": names[0], **counts}
        | {"money": prices and prices.of(names, counts)}
        for names, counts in used.items()
    ]
