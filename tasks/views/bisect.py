"""Prints a bisection: in what two rounds differ, each counterfactual as it is made, and what explains the change."""

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tasks.project import bisect as bisections
from tasks.project._bisect_metric import Change, is_share
from tasks.project._bisect_runs import PARENT, PLACE, RERUN, SEED
from tasks.project.bisect import Bisection, Part, Run

MOST_LINES = 4
"""Lines that are printed of what differs in a unit."""


def show(
    root: Path, good: str, bad: str, metric: str, by: str | None = None, split_all: bool = False, as_json: bool = False
) -> None:
    """Bisects the change of a measure between two rounds, or over slices `by` something of the bad one's training rows, and
    prints what is found. With `as_json` the progress goes to the standard error.

    Raises:
        FlywheelError: as `bisect` and `bisect_slices`.
    """
    console = Console(highlight=False, soft_wrap=True, file=sys.stderr if as_json else None)
    began: list[str] = []

    def report(result: Bisection, event: str | Run) -> None:
        if not began:
            _begin(console, result)
        began.append("")
        _progress(console, result, event)

    if by:
        result = bisections.bisect_slices(root, good, bad, metric, by, report)
    else:
        result = bisections.bisect(root, good, bad, metric, report, split_all)
    if as_json:
        print(result.model_dump_json(indent=1))
        return
    if not began:
        _begin(console, result)
    _parts(console, result, "left out" if by else "from")
    for line in _slice_verdict(result, by) if by else _verdict(result):
        console.print(Text(line))
    _cost(console, result)


def _begin(console: Console, result: Bisection) -> None:
    old, new = (_value(result.metric, result.values[n]) for n in (result.good, result.bad))
    change = _change(result.metric, result.change)
    console.print(Text(f"{result.metric}: {result.good} {old} → {result.bad} {new}: {change}"), style="bold")
    for unit in (u for u in result.units if u.differs):
        more = len(unit.differs) - MOST_LINES
        lines = [*unit.differs[:MOST_LINES], *([f"and {more} more"] if more > 0 else [])]
        for number, line in enumerate(lines):
            console.print(Text(f"  {unit.name if not number else '':<9} {_short(line)}"))


def _progress(console: Console, result: Bisection, event: str | Run) -> None:
    if isinstance(event, str):
        console.print(Text(f"{event} …"))
    elif event.failure is not None:
        console.print(Text(f"{event.name}: failed: {event.failure}"), style="red")
    elif event.value is not None and event.change is not None:
        time = "made before" if event.found else f"{event.seconds:.0f} s"
        told = (
            f"{_value(result.metric, event.value)}, against {result.bad} {_change(result.metric, event.change)}; {time}"
        )
        console.print(Text(f"  {event.name}: {told}"))


def _parts(console: Console, result: Bisection, heading: str) -> None:
    if not result.parts:
        return
    slices = any(p.rows is not None for p in result.parts)
    table = Table(heading, box=None, pad_edge=False)
    for column in (*(("rows",) if slices else ()), "adds", "95 %", "of the change"):
        table.add_column(column, justify="right", no_wrap=True)
    for part in result.parts:
        clear = part.change.is_clear
        rows = [str(part.rows)] if slices else []
        table.add_row(Text(", ".join(part.units)), *rows, *_cells(result.metric, part), style="" if clear else "dim")
    console.print(table)


def _cells(metric: str, part: Part) -> list[str]:
    factor = 100 if is_share(metric) else 1
    low, high = (_number(metric, factor * v) for v in (part.change.low, part.change.high))
    share = "" if part.share is None else _percent(part)
    return [_number(metric, factor * part.change.value), f"{low} … {high}", share]


def _verdict(result: Bisection) -> list[str]:
    if result.verdict == "noise":
        return ["The change is within noise, so there is nothing to find; --all measures every unit all the same."]
    if result.verdict == "unmeasured":
        return [f"Counterfactuals failed that would tell; their output is in {PLACE / 'logs'}."]
    if not result.causes:
        which = "they differ in nothing but the exam's draws" if not result.units else "no unit alone is clear of noise"
        return [f"No cause was found: {which}; --all measures every unit."]
    first = next(p for p in result.parts if p.units == result.causes[:1])
    lines = [f"{_percent(first)} of the change: {_named(result, result.causes[0])}."]
    lines += [f"{_percent(p)}: {_named(result, c)}." for c in result.causes[1:] for p in result.parts if p.units == [c]]
    if result.causes[0] in (PARENT, SEED):
        lines.append("No stage explains more than that." if len(result.causes) > 1 else "No stage is to blame.")
    return lines + _notes(result)


def _named(result: Bisection, unit: str) -> str:
    """A unit as the subject of the verdict."""
    differs = next(u.differs for u in result.units if u.name == unit) or ["its plans do not say why"]
    more = f" and {len(differs) - 1} more" if len(differs) > 1 else ""
    if unit == RERUN:
        unlike = result.unlike[:1]
        what = (
            f"{unlike[0]} of {result.bad} gave another result when it ran again"
            if unlike
            else _short(differs[0]) + more
        )
        return f"{result.bad} is not what its stages make today ({what})"
    return f"{unit} ({_short(differs[0])}{more})"


def _notes(result: Bisection) -> list[str]:
    lines = []
    if (part := result.confirmation) is not None:
        effect = _change(result.metric, part.change)
        agrees = part.change.is_clear and part.change.value * result.change.value > 0
        also = (
            "Alone it does the same" if agrees else "Alone it does not do that: it acts together with what else differs"
        )
        lines.append(f"{also}: {part.units[0]} adds {effect} to {result.bad} where all else is {result.bad}'s.")
    seed = next((abs(p.change.value) for p in result.parts if p.units == [SEED]), 0.0)
    lesser = [
        c
        for c in result.causes
        if c not in (SEED, RERUN)
        for p in result.parts
        if p.units == [c] and abs(p.change.value) <= seed
    ]
    if lesser:
        lines.append(f"The seed alone does as much as {', '.join(lesser)}: take that for noise.")
    return lines


def _slice_verdict(result: Bisection, by: str) -> list[str]:
    if result.verdict == "unmeasured":
        return [f"No counterfactual could be made; their output is in {PLACE / 'logs'}."]
    if not result.causes:
        return [f"No {by} of the training rows changes {result.metric} by more than noise."]
    harm = [p.units[0] for p in result.parts if p.change.is_clear and p.change.value * result.change.value > 0]
    other = [c for c in result.causes if c not in harm]
    way = (
        "in the direction of the change"
        if result.change.is_clear
        else "upwards"
        if result.change.value > 0
        else "downwards"
    )
    return [
        *([f"{', '.join(harm)}: these rows move {result.bad} {way}."] if harm else []),
        *([f"{', '.join(other)}: these rows move it the other way."] if other else []),
        "A slice that is left out also makes the training shorter.",
    ]


def _cost(console: Console, result: Bisection) -> None:
    if result.runs:
        count = len(result.runs)
        found = sum(r.found for r in result.runs)
        made = f"{count} counterfactual{'s' * (count != 1)}" + (f", {found} made before" if found else "")
        console.print(
            Text(f"{made}: {result.seconds:.0f} s, {result.cpu_seconds:.0f} s of processor time."), style="dim"
        )


def _percent(part: Part) -> str:
    return f"{round(100 * part.share)} %" if part.share is not None else "Part"


def _value(metric: str, value: float) -> str:
    return f"{100 * value:.1f} %" if is_share(metric) else f"{value:.4g}"


def _change(metric: str, change: Change) -> str:
    factor = 100 if is_share(metric) else 1
    value, low, high = (_number(metric, factor * v) for v in (change.value, change.low, change.high))
    items = f", {change.items} items" if change.items else ""
    return f"{value}{' points' if is_share(metric) else ''} (95 % {low} … {high}{items})"


def _number(metric: str, value: float) -> str:
    value = value if abs(value) >= 0.05 or not is_share(metric) else 0.0  # no -0.0
    return f"{value:+.1f}" if is_share(metric) else f"{value:+.3g}"


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:99]}…"
