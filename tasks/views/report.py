"""The table of the rounds, from manifests and the table `measures`: a column per round, quantities in groups of rows.

Accuracies are in percent with 95 % intervals. If the rounds do not fit the width, intervals are shown as half widths, then
left out; then the table is split into several.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from tasks.core import store
from tasks.core.champion import Election, Look
from tasks.core.stage import stages
from tasks.project.champion import decision, elections
from tasks.project.params import Block, Pipeline, load_params, stages_of

DEFAULT_WIDTH = 120
UNKNOWN = "–"
SHORT = 8
"""Digits of a digest in the table."""
ACCURACIES = {
    "pass_at_1": "sampled (pass@1), %",
    "greedy": "greedy, %",
    "grade_sampled": "sampled, grade, %",
    "grade": "greedy, grade, %",
}
GAP = 2
CAPTION = "Accuracies in percent, on frozen sets, with 95 % intervals. Seconds of a stage exclude its process start-up."


@dataclass(frozen=True)
class Cell:
    """A formatted value; `low` and `high` if it has an interval."""

    text: str
    low: float | None = None
    high: float | None = None
    style: str = ""


@dataclass(frozen=True)
class Line:
    """A quantity: its name, and its value in each round."""

    label: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Group:
    """Quantities that belong together."""

    title: str
    lines: list[Line]


@dataclass(frozen=True)
class Facts:
    """Manifests, measures and decisions of a base or round."""

    block: Block
    stages: dict[str, store.Manifest] = field(default_factory=dict)
    measures: dict[tuple[str, int | None], Cell] = field(default_factory=dict)
    decisions: dict[str, tuple[bool, str]] = field(default_factory=dict)
    """Gate → (passed, reason)."""

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of all its stages."""
        return {k: v for m in self.stages.values() for k, v in m.metrics.items()}

    @property
    def model(self) -> str | None:
        """The digest of its model."""
        return next((m.outputs["model"].digest for m in self.stages.values() if "model" in m.outputs), None)


def show(root: Path, console: Console | None = None) -> None:
    """Prints the table of the rounds."""
    console = console or _console()
    pipeline = load_params(root)
    rounds = gather(root, pipeline)
    if not rounds:
        console.print("Nothing has been made yet; `flywheel campaign` runs the rounds of params.yaml.")
        return
    for table in tables(rounds, console.width):
        console.print(table)
    champion_lines = champions(root, elections(root, pipeline))
    _print_dim(console, [*decisions(rounds), *champion_lines, *warnings(rounds), CAPTION])


def markdown(root: Path) -> str:
    """The table of the rounds in GitHub's Markdown; empty where nothing has been made."""
    rounds = gather(root, load_params(root))
    if not rounds:
        return ""
    lines = [_markdown_row(["", *(f.block.name for f in rounds)]), _markdown_row(["---", *["---:"] * len(rounds)])]
    for group in groups(rounds):
        lines.append(_markdown_row([f"**{group.title}**", *[""] * len(rounds)]))
        lines += [
            _markdown_row([line.label, *(_with_interval(c) if c else "" for c in line.cells)]) for line in group.lines
        ]
    return "\n".join(lines) + "\n"


def show_tree(root: Path, console: Console | None = None) -> None:
    """Prints bases and rounds as a tree: stages, accuracy, decision, champion, model; then the reasons for the champion."""
    console = console or _console()
    pipeline = load_params(root)
    results = elections(root, pipeline)
    nodes: dict[str, Tree] = {}
    for name, block in pipeline.blocks.items():
        text = _node_text(_facts(root, block), any(e.champion == name for e in results.values()))
        nodes[name] = nodes[block.parent].add(text) if block.parent else Tree(text, guide_style="dim")
    for name, node in nodes.items():
        if pipeline.blocks[name].is_base:
            console.print(node)
    _print_dim(console, champions(root, results))


def _print_dim(console: Console, lines: list[str]) -> None:
    for line in lines:
        console.print(line, style="dim", highlight=False, markup=False)


def _console() -> Console:
    """As wide as the terminal; `DEFAULT_WIDTH` without one."""
    return Console(width=None if sys.stdout.isatty() else DEFAULT_WIDTH)


def _node_text(facts: Facts, is_champion: bool) -> Text:
    parts = [f"{len(facts.stages)} of {len(stages_of(facts.block))} stages"]
    if cell := facts.measures.get(("pass_at_1", None)):
        parts.append(f"pass@1 {_with_interval(cell)}")
    if facts.decisions:
        parts.append(_decision(facts).text)
    if is_champion:
        parts.append("champion")
    if facts.model:
        parts.append(f"model {facts.model[:SHORT]}")
    return Text.assemble((facts.block.name, "bold"), "  ", " · ".join(parts))


# Facts


def gather(root: Path, pipeline: Pipeline) -> list[Facts]:
    """Facts of every base and round that has at least one manifest, parents first."""
    return [f for block in pipeline.blocks.values() if (f := _facts(root, block)).stages]


def _facts(root: Path, block: Block) -> Facts:
    manifests = store.manifests(root, block.name)
    in_order = {s.name: manifests[s.name] for s in stages_of(block) if s.name in manifests}
    measures = {(r["name"], r["level"]): _percent(r) for r in _rows(root, block.name, "measures")}
    decisions = {r["gate"]: (r["passed"], r["reason"] or "") for r in _rows(root, block.name, "decisions")}
    return Facts(block, in_order, measures, decisions)


def _rows(root: Path, name: str, table: str) -> Iterable[dict[str, object]]:
    return store.read(root, name, table).iter_rows(named=True) if store.has(root, name, table) else ()


def _percent(row: dict[str, object]) -> Cell:
    low, high = (None if row[k] is None else 100 * row[k] for k in ("low", "high"))  # type: ignore[operator]
    return Cell(UNKNOWN if row["value"] is None else f"{100 * row['value']:.1f}", low, high)  # type: ignore[operator]


# Rows of the table


def groups(rounds: list[Facts]) -> list[Group]:
    """The groups of the table, without quantities that no round has."""
    every = [
        *(_by_level(rounds, *item) for item in ACCURACIES.items()),
        Group("k samples, %", _of_samples(rounds)),
        Group("on known answers, %", _judges(rounds)),
        Group("rows", _counts(rounds)),
        Group("tokens", [_line("generated", rounds, _tokens("completion")), _line("read", rounds, _tokens("prompt"))]),
        Group("seconds", _seconds(rounds)),
        Group("result", [_line("gate", rounds, _gate), _line("model", rounds, _model)]),
    ]
    filled = [Group(g.title, [line for line in g.lines if any(line.cells)]) for g in every]
    return [g for g in filled if g.lines]


def _line(label: str, rounds: list[Facts], value: Callable[[Facts], Cell | None]) -> Line:
    return Line(label, tuple(value(f) for f in rounds))


def _measure(label: str, rounds: list[Facts], name: str, level: int | None = None) -> Line:
    return _line(label, rounds, lambda f: f.measures.get((name, level)))


def _by_level(rounds: list[Facts], name: str, title: str) -> Group:
    levels = sorted({lv for f in rounds for n, lv in f.measures if n == name and lv is not None})
    lines = [_measure(f"level {lv}", rounds, name, lv) for lv in levels]
    return Group(title, [*lines, _measure("all levels" if levels else "all", rounds, name)])


def _of_samples(rounds: list[Facts]) -> list[Line]:
    names = {n for f in rounds for n, level in f.measures if level is None}
    at_k = [n for n in names if n.startswith(("pass_at_", "majority_at_")) and n.rpartition("_")[2].isdigit()]
    ordered = sorted(set(at_k) - {"pass_at_1"}, key=lambda n: (n[0] != "p", int(n.rpartition("_")[2])))
    return [_measure(n.replace("_at_", "@"), rounds, n) for n in ordered]


def _judges(rounds: list[Facts]) -> list[Line]:
    names = sorted({n for f in rounds for n, level in f.measures if level is None})
    suffixes = {
        "_balanced_accuracy": "balanced acc.",
        "_auroc": "AUROC",
        "_calibration_error": "calibration error",
        "_position_bias": "position bias",
    }
    lines = [
        _measure(f"{n.removesuffix(end).replace('_', ' ')}: {label}", rounds, n)
        for end, label in suffixes.items()
        for n in names
        if n.endswith(end)
    ]
    location = _measure("critic: wrong step found", rounds, "critique_location")
    return [*lines, location, _measure("greedy, self-corrected", rounds, "refined")]


def _counts(rounds: list[Facts]) -> list[Line]:
    def prefixed(prefix: str, label: str) -> list[Line]:
        names = sorted({k for f in rounds for k in f.metrics if k.startswith(prefix)})
        return [_line(f"{label}{_words(n.removeprefix(prefix))}", rounds, _count(n)) for n in names]

    return [
        _line("prompts written", rounds, _count("prompts")),
        *prefixed("prompts_rejected/", "  rejected: "),
        _line("answers sampled", rounds, _count("responses")),
        _line("  failed", rounds, _count("response_errors", quiet=True)),
        _line("kept", rounds, _count("kept")),
        *prefixed("dropped/", "  dropped: "),
        _line("critiques kept", rounds, _kept_critiques),
        _line("pairs", rounds, _count("pairs")),
        _line("trained on", rounds, _count("training_rows")),
        *prefixed("training_rows/", "  from "),
        *prefixed("training_dropped/", "  left out: "),
        _line("preferences", rounds, _count("preferences")),
        *prefixed("preferences_dropped/", "  left out: "),
    ]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _count(name: str, quiet: bool = False) -> Callable[[Facts], Cell | None]:
    def value(facts: Facts) -> Cell | None:
        number = facts.metrics.get(name)
        return None if number is None or (quiet and not number) else Cell(f"{number:,.0f}")

    return value


def _kept_critiques(facts: Facts) -> Cell | None:
    kept, total = facts.metrics.get("critiques_kept"), facts.metrics.get("critiques")
    return None if kept is None or total is None else Cell(f"{kept:,.0f} of {total:,.0f}")


def _tokens(kind: str) -> Callable[[Facts], Cell | None]:
    return lambda facts: Cell(f"{sum(m.tokens.get(f'{kind}_tokens', 0) for m in facts.stages.values()):,}")


def _seconds(rounds: list[Facts]) -> list[Line]:
    """Seconds of each stage without its process start-up, which has a line of its own for all stages."""
    lines = [_line(name, rounds, _work(name)) for name in stages() if any(name in f.stages for f in rounds)]
    return [*lines, _line("process start-up", rounds, _start), _line("total", rounds, _total)]


def _work(stage: str) -> Callable[[Facts], Cell | None]:
    def value(facts: Facts) -> Cell | None:
        manifest = facts.stages.get(stage)
        return Cell(_time(_total_seconds(manifest) - manifest.seconds.get("start", 0))) if manifest else None

    return value


def _total_seconds(manifest: store.Manifest) -> float:
    return sum(manifest.seconds.values())


def _start(facts: Facts) -> Cell:
    return Cell(_time(sum(m.seconds.get("start", 0) for m in facts.stages.values())))


def _total(facts: Facts) -> Cell:
    return Cell(_time(sum(_total_seconds(m) for m in facts.stages.values())))


def _time(seconds: float) -> str:
    return f"{seconds:,.1f}" if seconds < 1000 else f"{seconds:,.0f}"


def _gate(facts: Facts) -> Cell | None:
    return _decision(facts) if facts.decisions else None


def _decision(facts: Facts) -> Cell:
    promoted = facts.decisions.get("all", (False, ""))[0]
    return Cell("promoted", style="green") if promoted else Cell("held back", style="yellow")


def _model(facts: Facts) -> Cell | None:
    return Cell(facts.model[:SHORT]) if facts.model else None


def decisions(rounds: list[Facts]) -> list[str]:
    """One line per round that was held back: the gates that refused it, with reasons."""
    lines = []
    for facts in rounds:
        refused = [
            f"{gate} ({reason})" for gate, (passed, reason) in facts.decisions.items() if not passed and gate != "all"
        ]
        if refused:
            lines.append(f"{facts.block.name} was held back by {'; '.join(refused)}")
    return lines


def champions(root: Path, results: dict[str, Election]) -> list[str]:
    """The champion of each base, a line per round with the reason why it is champion or not, and a person's decision."""
    lines = []
    for base, election in results.items():
        earlier = f" ({election.earlier} looks at other answers are spent, too)" if election.earlier else ""
        lines.append(f"champion of {base}: {election.champion}{earlier}")
        lines += [f"  {look.name} {_contest(look, election)}" for look in election.looks]
    if choice := decision(root):
        lines.append(f"{choice.by} promoted {choice.round} by hand ({choice.when}), which overrides the champion")
    return lines


def _contest(look: Look, election: Election) -> str:
    if look.name == election.champion:
        return f"champion: {look.reason}"
    return f"{'was champion' if look.won else 'not champion'}: {look.reason}"


def warnings(rounds: list[Facts]) -> list[str]:
    """The warnings of all stages, a line each."""
    return [f"{s}@{f.block.name}: {text}" for f in rounds for s, m in f.stages.items() for text in m.warnings]


# Layout


def _with_interval(cell: Cell) -> str:
    return cell.text if cell.low is None or cell.high is None else f"{cell.text} {cell.low:.1f}–{cell.high:.1f}"


def _with_half_width(cell: Cell) -> str:
    return cell.text if cell.low is None or cell.high is None else f"{cell.text} ±{(cell.high - cell.low) / 2:.1f}"


def _value_only(cell: Cell) -> str:
    return cell.text


FORMATS = (_with_interval, _with_half_width, _value_only)


def tables(rounds: list[Facts], width: int) -> list[Table]:
    """The table for a width in characters, in the most detailed format that fits; split into several if none does."""
    sections = groups(rounds)
    label = GAP + max(len(text) for g in sections for text in (g.title, *(f"  {line.label}" for line in g.lines)))
    for form in FORMATS:
        per_table = max(1, (width - label) // (_column_width(rounds, sections, form) + GAP))
        if per_table >= len(rounds):
            break
    parts = [range(i, min(i + per_table, len(rounds))) for i in range(0, len(rounds), per_table)]
    return [_table(rounds, sections, form, part) for part in parts]


def _column_width(rounds: list[Facts], sections: list[Group], form: Callable[[Cell], str]) -> int:
    values = [form(c) for g in sections for line in g.lines for c in line.cells if c]
    return max(map(len, [*values, *(f.block.name for f in rounds)]))


def _table(rounds: list[Facts], sections: list[Group], form: Callable[[Cell], str], columns: Sequence[int]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, GAP, 0, 0), show_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    width = _column_width(rounds, sections, form)
    for i in columns:
        table.add_column(rounds[i].block.name, justify="right", no_wrap=True, min_width=width)
    for group in sections:
        table.add_row(Text(group.title, style="bold"))
        for line in group.lines:
            table.add_row(f"  {line.label}", *(_styled_cell(line.cells[i], form) for i in columns))
    return table


def _styled_cell(cell: Cell | None, form: Callable[[Cell], str]) -> Text:
    """The value in its style, the interval dim."""
    if cell is None:
        return Text("")
    value, blank, interval = form(cell).partition(" ") if cell.low is not None else (form(cell), "", "")
    return Text.assemble((value, cell.style), blank, (interval, "dim"))


def _markdown_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


__all__ = ["markdown", "show", "show_tree"]
