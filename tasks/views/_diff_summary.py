"""Three lines after a run: what changed in a round, and what that did to the exam. From manifests and the exam's answers
alone, so that it costs no time; `flywheel diff` compares row by row.
"""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from tasks.core import store
from tasks.core.tables import TABLES
from tasks.project.params import Block
from tasks.views import _diff_outcomes as outcomes
from tasks.views import _diff_settings as settings
from tasks.views._diff_sides import Side
from tasks.views._diff_text import plain

MOST = 5
"""Parameters, strategies and tables of a line."""
SPLITS = {"heldout": "held-out"}


@dataclass(frozen=True)
class Version:
    """A round as it was at some time."""

    side: Side
    evals: pl.DataFrame | None
    """Its answers to the exam, without their texts."""


def version(root: Path, block: Block) -> Version:
    """The present version of a round or base, to be compared with a later one.

    Raises:
        StoreError: when its files are not what was written.
    """
    side = Side(block.name, block.name, root, store.manifests(root, block.name), block)
    evals = None
    if side.output("evals"):
        texts = {
            "problem": pl.lit(None, pl.String),
            "response": pl.when(pl.col("response").is_not_null()).then(pl.lit("")),
        }
        evals = store.scan(root, block.name, "evals")[0].with_columns(**texts).collect()
    return Version(side, evals)


def changes(before: Version, after: Version) -> list[str]:
    """What changed: settings, rows, exam."""
    name = after.side.name
    old = "its version before" if before.side.name == name else f"its parent {before.side.name}"
    sides = before.side, after.side
    return [f"{name} against {old}: {_settings(*sides)}", f"  rows: {_rows(*sides)}", f"  exam: {_exam(before, after)}"]


def _settings(old: Side, new: Side) -> str:
    found = settings.compare(old, new)
    params = [f"{p.path} {plain(p.old)} → {plain(p.new)}" for p in found.params]
    strategies = [f"{d.name} {plain(d.old)} → {plain(d.new)}" for d in found.strategies]
    code = [f"code of {len(found.code)} module{'s' * (len(found.code) != 1)}"] if found.code else []
    return _listed([*strategies, *params, *code]) or "the same settings"


def _rows(old: Side, new: Side) -> str:
    """Tables whose content is another: first those with more rows or fewer."""
    counts = {name: [(o.rows or 0) if (o := side.output(name)) else 0 for side in (old, new)] for name in TABLES}
    changed = [name for name in TABLES if _digest(old, name) != _digest(new, name)]
    sizes = [f"{n} {counts[n][0]:,} → {counts[n][1]:,}" for n in changed if counts[n][0] != counts[n][1]]
    others = [n for n in changed if counts[n][0] == counts[n][1]]
    return (
        "; ".join(filter(None, [_listed(sizes), _listed(others) and f"other content in {_listed(others)}"]))
        or "the same"
    )


def _digest(side: Side, table: str) -> str | None:
    output = side.output(table)
    return output.digest if output else None


def _exam(before: Version, after: Version) -> str:
    """pass@1 before and after with the interval of the paired difference, on the held-out problems where there are some."""
    if before.evals is None or after.evals is None:
        return "not taken"
    if _digest(before.side, "evals") == _digest(after.side, "evals"):
        return "the same answers"
    found = [e for e in outcomes.exams(before.evals.lazy(), after.evals.lazy(), 0) if e.mode == "sampled"]
    if not found:
        return "no sampled answer to a problem that both answered"
    exam = found[0]
    old, new, change, low, high = (100 * (x or 0) for x in (exam.old, exam.new, exam.change, exam.low, exam.high))
    interval = f"{change:+.1f} points, 95 % {low:+.1f} … {high:+.1f}"
    return (
        f"pass@1 {old:.1f} → {new:.1f} % ({interval}) on {exam.items:,} {SPLITS.get(exam.split, exam.split)} problems"
    )


def _listed(parts: list[str]) -> str:
    return ", ".join(parts[:MOST]) + (f" and {len(parts) - MOST} more" if len(parts) > MOST else "")
