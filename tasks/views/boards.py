"""Rounds as Markdown for a narrow column, such as Prefect's artifacts: an overview, what was dropped, the exam of one round.

The column beside Prefect's details is some 800 pixels wide on a window of 1,280: a line a round in the overview, at most
`PER_TABLE` rounds beside each other below it, and half widths in the place of intervals. Names and texts that a model may
have written are escaped.
"""

from itertools import islice
from pathlib import Path

from tasks.core import store
from tasks.project.champion import elections
from tasks.project.params import load_params
from tasks.views import report
from tasks.views._markdown import escaped, table

PER_TABLE = 3
WITH_HALF_WIDTH = report.FORMATS[1]
DROPS = {
    "prompts": ("prompts_rejected/",),
    "filter": ("dropped/",),
    "collect": ("training_dropped/", "preferences_dropped/"),
}
"""Stage → prefixes of the metrics that count what it dropped, by reason."""
OVERVIEW: dict[str, tuple[str, str]] = {
    "pass@1, %": ("sampled (pass@1), %", "all levels"),
    "greedy, %": ("greedy, %", "all levels"),
    "kept": ("rows", "kept"),
    "trained on": ("rows", "trained on"),
    "gate": ("result", "gate"),
    "stages": ("result", "stages"),
}
"""Column → group and line of the report's table."""


def overview(root: Path) -> str:
    """All rounds: a table with a line a round, then every quantity, a few rounds beside each other; empty where nothing has
    been made.
    """
    pipeline = load_params(root)
    results = elections(root, pipeline)
    rounds = report.gather(root, pipeline, results)
    if not rounds:
        return ""
    sections = report.groups(rounds)
    lines = {(group.title, line.label): line for group in sections for line in group.lines}
    shown = {title: lines[key] for title, key in OVERVIEW.items() if key in lines}
    short = [
        [_title(f), f.block.parent or "", *(_cell(line.cells[i]) for line in shown.values())]
        for i, f in enumerate(rounds)
    ]
    notes = [*report.outdated(rounds), *report.decisions(rounds), *report.champions(root, results)]
    parts = [table(["round", "from", *shown], short), *(f"- {escaped(note.strip())}" for note in notes)]
    for i in range(0, len(rounds), PER_TABLE):
        columns = range(i, min(i + PER_TABLE, len(rounds)))
        names = [rounds[k].block.name for k in columns]
        rows = [row for group in sections for row in _rows(group, columns)]
        parts += [
            "",
            f"### {names[0]} to {names[-1]}" if len(names) > 1 else f"### {names[0]}",
            table(["", *names], rows),
        ]
    return "\n".join(parts)


def _title(facts: report.Facts) -> str:
    """A round's name, in bold, and below it whether it is champion or promoted by hand."""
    return f"**{facts.block.name}**" + (f" {escaped(facts.standing)}" if facts.standing else "")


def _rows(group: report.Group, columns: range) -> list[list[str]]:
    head = [f"**{group.title}**", *[""] * len(columns)]
    return [head, *([line.label.strip(), *(_cell(line.cells[i]) for i in columns)] for line in group.lines)]


def _cell(cell: report.Cell | None) -> str:
    return escaped(WITH_HALF_WIDTH(cell)) if cell else ""


def drops(root: Path, name: str) -> str:
    """What the stages of a round dropped: a line for each reason, most rows first, and the stages' warnings; empty where
    nothing is known yet.
    """
    manifests = store.manifests(root, name)
    rows = [
        [stage, escaped(metric.removeprefix(prefix).replace("_", " ")), f"{value:,.0f}", share]
        for stage, prefixes in DROPS.items()
        if stage in manifests
        for prefix in prefixes
        for metric, value, share in _by_rows(manifests[stage].metrics, prefix)
    ]
    warnings = [f"- **{stage}**: {escaped(text)}" for stage, m in manifests.items() for text in m.warnings]
    if not manifests.keys() & DROPS.keys():
        return ""
    body = table(["stage", "reason", "rows", "of what it dropped"], rows) if rows else "Nothing was dropped.\n"
    return "\n".join([body, *(["#### Warnings", *warnings] if warnings else [])])


def _by_rows(metrics: dict[str, float], prefix: str) -> list[tuple[str, float, str]]:
    """The metrics of a prefix, the largest first, each with its share of them all; none that is 0."""
    counted = sorted(((k, v) for k, v in metrics.items() if k.startswith(prefix) and v), key=lambda item: -item[1])
    total = sum(value for _, value in counted)
    return [(name, value, f"{value / total:.0%}") for name, value in counted]


def exam(root: Path, name: str) -> str:
    """The exam of a round for a person who decides about it: what became of it, its accuracies beside its parent's and the
    champion's, the gates with their reasons, the champion's test.

    Raises:
        UnknownName: when there is no such base or round.
    """
    pipeline = load_params(root)
    block, results = pipeline.block(name), elections(root, pipeline)
    election = results.get(block.base)
    wanted = [n for n in dict.fromkeys([election.champion if election else None, block.parent, name]) if n]
    facts = [f for f in report.gather(root, pipeline, results) if f.block.name in wanted]
    ordered = sorted(facts, key=lambda f: wanted.index(f.block.name))
    rows = [row for group in islice(report.groups(ordered), 4) for row in _rows(group, range(len(ordered)))]
    parts = [escaped(report.verdict_line(root, name)), "", table(["", *(f.block.name for f in ordered)], rows)]
    own = next((f for f in ordered if f.block.name == name), None)
    gates = [[gate, _yes(passed), escaped(reason)] for gate, (passed, reason) in (own.decisions if own else {}).items()]
    look = next((look for look in (election.looks if election else ()) if look.name == name), None)
    test = (
        f"Test against {look.against}, the champion before it: {'won' if look.won else 'not won'}; {look.reason}"
        if look
        else ""
    )
    return "\n".join([*parts, table(["gate", "passed", "why"], gates), escaped(test)])


def _yes(passed: bool) -> str:
    return "yes" if passed else "**no**"


__all__ = ["drops", "exam", "overview"]
