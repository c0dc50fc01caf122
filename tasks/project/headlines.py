"""The few metrics of a base or round that `dvc metrics` shows, and the rows that `dvc plots` draws over rounds.

A stage's metrics file holds all that its manifest has. Those of `evaluate` and `gate` are cut down to headlines, so that
`dvc metrics show` is a line a base or round; all others are in SQL (`metrics`). DVC ignores lists in a metrics file and
draws nothing else: the list `exam` is for its plots.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from tasks.core import store

EXAM = re.compile(r"pass_at_1|majority_at_\d+|greedy|grade")
"""Names of the exam's headlines: how often one sample, most of k, or the greedy answer is right; or the mean grade."""


def metrics_text(root: Path, name: str, stage: str, metrics: Mapping[str, float]) -> str:
    """Content of the metrics file of a stage of a base or round: JSON, one metric a line."""
    shown = {"evaluate": _of_exam, "gate": _of_round}.get(stage, _all)(root, name, metrics)
    return json.dumps(shown, indent=1, sort_keys=True)


def _all(root: Path, name: str, metrics: Mapping[str, float]) -> dict[str, object]:
    return dict(metrics)


def _of_exam(root: Path, name: str, metrics: Mapping[str, float]) -> dict[str, object]:
    plotted = headlines(metrics, plotted=True)
    return {**headlines(metrics), "exam": [{"round": name, "measure": k, "value": v} for k, v in plotted.items()]}


def _of_round(root: Path, name: str, metrics: Mapping[str, float]) -> dict[str, object]:
    """The exam's headlines, how many answers the filter kept, and the decision: all of them follow from what `gate` reads."""
    manifests = store.manifests(root, name)
    of = {s: manifests[s].metrics if s in manifests else {} for s in ("evaluate", "filter")}
    own = {"kept": of["filter"].get("kept"), "promoted": metrics.get("promoted")}
    return {**headlines(of["evaluate"]), **{k: int(v) for k, v in own.items() if v is not None}}


def headlines(metrics: Mapping[str, float], *, plotted: bool = False) -> dict[str, float]:
    """The exam's headlines among metrics, by name. Where they are `plotted`, pass@k of the largest k is one, too: a table has
    no room for it in 100 columns.
    """
    widest = max((int(k[8:]) for k in metrics if re.fullmatch(r"pass_at_\d+", k)), default=1)
    return {k: metrics[k] for k in sorted(metrics) if EXAM.fullmatch(k) or (plotted and k == f"pass_at_{widest}")}
