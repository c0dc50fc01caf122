"""The table of the rounds, from manifests and the table `measures`: rounds are columns, quantities rows in groups.

Accuracies are in percent with their 95 % intervals. Where the rounds do not fit side by side, the intervals become half
widths, then go; beyond that the table is cut into several, side by side as they would have been.
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

from tasks import store
from tasks.params import Block, Pipeline, load_params, stages_of
from tasks.stage import stages

WIDEST = 120
UNKNOWN = "–"
SHORT = 8
"""Digits of a digest that are shown."""
ACCURACIES = {"pass_at_1": "sampled (pass@1), %", "greedy": "greedy, %"}
GAP = 2
CAPTION = (
    "Accuracies in percent, on frozen sets, with 95 % intervals. Seconds of a stage are without its process start-up."
)


@dataclass(frozen=True)
class Cell:
    """A value as it is shown; `low` and `high` where it has an interval."""

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
    """What is known of a base or round."""

    block: Block
    stages: dict[str, store.Manifest] = field(default_factory=dict)
    measures: dict[tuple[str, int | None], Cell] = field(default_factory=dict)
    decisions: dict[str, tuple[bool, str]] = field(default_factory=dict)
    """By gate: passed, and why."""

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
    found = gather(root, load_params(root))
    if not found:
        console.print("Nothing has been made yet; `flywheel campaign` runs the rounds of params.yaml.")
        return
    for table in tables(found, console.width):
        console.print(table)
    for line in [*decisions(found), CAPTION]:
        console.print(line, style="dim", highlight=False)


def markdown(root: Path) -> str:
    """The table of the rounds in GitHub's Markdown; empty where nothing has been made."""
    found = gather(root, load_params(root))
    if not found:
        return ""
    lines = [_pipes(["", *(f.block.name for f in found)]), _pipes(["---", *["---:"] * len(found)])]
    for group in groups(found):
        lines.append(_pipes([f"**{group.title}**", *[""] * len(found)]))
        lines += [_pipes([line.label, *(_ranged(c) if c else "" for c in line.cells)]) for line in group.lines]
    return "\n".join(lines) + "\n"


def show_tree(root: Path, console: Console | None = None) -> None:
    """Prints bases and rounds as a tree: stages made, accuracy, decision, model."""
    console = console or _console()
    pipeline = load_params(root)
    nodes: dict[str, Tree] = {}
    for name, block in pipeline.blocks.items():
        text = _described(_facts(root, block))
        nodes[name] = nodes[block.parent].add(text) if block.parent else Tree(text, guide_style="dim")
    for name, node in nodes.items():
        if pipeline.blocks[name].is_base:
            console.print(node)


def _console() -> Console:
    """As wide as the terminal; where there is none, as wide as the table may be."""
    return Console(width=None if sys.stdout.isatty() else WIDEST)


def _described(facts: Facts) -> Text:
    made, all_stages = len(facts.stages), len(stages_of(facts.block))
    parts = [f"{made} of {all_stages} stages"]
    if cell := facts.measures.get(("pass_at_1", None)):
        parts.append(f"pass@1 {_ranged(cell)}")
    if facts.decisions:
        parts.append(_decision(facts).text)
    if facts.model:
        parts.append(f"model {facts.model[:SHORT]}")
    return Text.assemble((facts.block.name, "bold"), "  ", " · ".join(parts))


# What is known


def gather(root: Path, pipeline: Pipeline) -> list[Facts]:
    """What is known of every base and round of which something has been made, parents first."""
    return [f for block in pipeline.blocks.values() if (f := _facts(root, block)).stages]


def _facts(root: Path, block: Block) -> Facts:
    there = store.manifests(root, block.name)
    stages = {s.name: there[s.name] for s in stages_of(block) if s.name in there}
    measures = {(r["name"], r["level"]): _percent(r) for r in _rows(root, block.name, "measures")}
    decided = {r["gate"]: (r["passed"], r["reason"] or "") for r in _rows(root, block.name, "decisions")}
    return Facts(block, stages, measures, decided)


def _rows(root: Path, name: str, table: str) -> Iterable[dict[str, object]]:
    return store.scan(root, name, table)[0].collect().iter_rows(named=True) if store.has(root, name, table) else ()


def _percent(row: dict[str, object]) -> Cell:
    low, high = (None if row[k] is None else 100 * row[k] for k in ("low", "high"))  # type: ignore[operator]
    return Cell(UNKNOWN if row["value"] is None else f"{100 * row['value']:.1f}", low, high)  # type: ignore[operator]


# What is shown


def groups(found: list[Facts]) -> list[Group]:
    """All that the table shows; quantities that no round has are left out."""
    wanted = [
        *(_by_level(found, *item) for item in ACCURACIES.items()),
        Group("k samples, %", _of_samples(found)),
        Group("on known answers, %", _judges(found)),
        Group("rows", _counts(found)),
        Group("tokens", [_line("generated", found, _tokens("completion")), _line("read", found, _tokens("prompt"))]),
        Group("seconds", _seconds(found)),
        Group("result", [_line("gate", found, _gate), _line("model", found, _model)]),
    ]
    kept = [Group(g.title, [line for line in g.lines if any(line.cells)]) for g in wanted]
    return [g for g in kept if g.lines]


def _line(label: str, found: list[Facts], value: Callable[[Facts], Cell | None]) -> Line:
    return Line(label, tuple(value(f) for f in found))


def _measure(label: str, found: list[Facts], name: str, level: int | None = None) -> Line:
    return _line(label, found, lambda f: f.measures.get((name, level)))


def _by_level(found: list[Facts], name: str, title: str) -> Group:
    levels = sorted({lv for f in found for n, lv in f.measures if n == name and lv is not None})
    lines = [_measure(f"level {lv}", found, name, lv) for lv in levels]
    return Group(title, [*lines, _measure("all levels" if levels else "all", found, name)])


def _of_samples(found: list[Facts]) -> list[Line]:
    names = {n for f in found for n, level in f.measures if level is None}
    wanted = [n for n in names if n.startswith(("pass_at_", "majority_at_")) and n.rpartition("_")[2].isdigit()]
    ordered = sorted(set(wanted) - {"pass_at_1"}, key=lambda n: (n[0] != "p", int(n.rpartition("_")[2])))
    return [_measure(n.replace("_at_", "@"), found, n) for n in ordered]


def _judges(found: list[Facts]) -> list[Line]:
    names = sorted({n for f in found for n, level in f.measures if level is None})
    endings = {"_balanced_accuracy": "balanced acc.", "_auroc": "AUROC"}
    lines = [
        _measure(f"{n.removesuffix(end).replace('_', ' ')}: {shown}", found, n)
        for end, shown in endings.items()
        for n in names
        if n.endswith(end)
    ]
    location = _measure("critic: wrong step found", found, "critique_location")
    return [*lines, location, _measure("greedy, self-corrected", found, "refined")]


def _counts(found: list[Facts]) -> list[Line]:
    def prefixed(prefix: str, label: str) -> list[Line]:
        names = sorted({k for f in found for k in f.metrics if k.startswith(prefix)})
        return [_line(f"{label}{_words(n.removeprefix(prefix))}", found, _count(n)) for n in names]

    return [
        _line("prompts written", found, _count("prompts")),
        *prefixed("prompts_rejected/", "  rejected: "),
        _line("answers sampled", found, _count("responses")),
        _line("  failed", found, _count("response_errors", quiet=True)),
        _line("kept", found, _count("kept")),
        *prefixed("dropped/", "  dropped: "),
        _line("critiques kept", found, _kept_critiques),
        _line("pairs", found, _count("pairs")),
        _line("trained on", found, _count("training_rows")),
        *prefixed("training_rows/", "  from "),
    ]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _count(name: str, quiet: bool = False) -> Callable[[Facts], Cell | None]:
    def value(facts: Facts) -> Cell | None:
        number = facts.metrics.get(name)
        return None if number is None or (quiet and not number) else Cell(f"{number:,.0f}")

    return value


def _kept_critiques(facts: Facts) -> Cell | None:
    kept, written = facts.metrics.get("critiques_kept"), facts.metrics.get("critiques")
    return None if kept is None or written is None else Cell(f"{kept:,.0f} of {written:,.0f}")


def _tokens(kind: str) -> Callable[[Facts], Cell | None]:
    return lambda facts: Cell(f"{sum(m.tokens.get(f'{kind}_tokens', 0) for m in facts.stages.values()):,}")


def _seconds(found: list[Facts]) -> list[Line]:
    """Seconds of each stage without the start-up of its process, which all together are a line of their own."""
    lines = [_line(name, found, _work(name)) for name in stages() if any(name in f.stages for f in found)]
    return [*lines, _line("process start-up", found, _start), _line("total", found, _total)]


def _work(stage: str) -> Callable[[Facts], Cell | None]:
    def value(facts: Facts) -> Cell | None:
        manifest = facts.stages.get(stage)
        return Cell(_time(_spent(manifest) - manifest.seconds.get("start", 0))) if manifest else None

    return value


def _spent(manifest: store.Manifest) -> float:
    return sum(manifest.seconds.values())


def _start(facts: Facts) -> Cell:
    return Cell(_time(sum(m.seconds.get("start", 0) for m in facts.stages.values())))


def _total(facts: Facts) -> Cell:
    return Cell(_time(sum(_spent(m) for m in facts.stages.values())))


def _time(seconds: float) -> str:
    return f"{seconds:,.1f}" if seconds < 1000 else f"{seconds:,.0f}"


def _gate(facts: Facts) -> Cell | None:
    return _decision(facts) if facts.decisions else None


def _decision(facts: Facts) -> Cell:
    promoted = facts.decisions.get("all", (False, ""))[0]
    return Cell("promoted", style="green") if promoted else Cell("held back", style="yellow")


def _model(facts: Facts) -> Cell | None:
    return Cell(facts.model[:SHORT]) if facts.model else None


def decisions(found: list[Facts]) -> list[str]:
    """One line for each round that was held back: by which gates, and why."""
    lines = []
    for facts in found:
        refused = [f"{gate} ({why})" for gate, (passed, why) in facts.decisions.items() if not passed and gate != "all"]
        if refused:
            lines.append(f"{facts.block.name} was held back by {'; '.join(refused)}")
    return lines


# How it is laid out


def _ranged(cell: Cell) -> str:
    return cell.text if cell.low is None or cell.high is None else f"{cell.text} {cell.low:.1f}–{cell.high:.1f}"


def _half(cell: Cell) -> str:
    return cell.text if cell.low is None or cell.high is None else f"{cell.text} ±{(cell.high - cell.low) / 2:.1f}"


def _bare(cell: Cell) -> str:
    return cell.text


FORMS = (_ranged, _half, _bare)


def tables(found: list[Facts], width: int) -> list[Table]:
    """The table for a width in characters, in the most telling form that fits; several where none does."""
    shown = groups(found)
    label = GAP + max(len(text) for g in shown for text in (g.title, *(f"  {line.label}" for line in g.lines)))
    for form in FORMS:
        room = max(1, (width - label) // (_widest(found, shown, form) + GAP))
        if room >= len(found):
            break
    parts = [range(i, min(i + room, len(found))) for i in range(0, len(found), room)]
    return [_table(found, shown, form, part) for part in parts]


def _widest(found: list[Facts], shown: list[Group], form: Callable[[Cell], str]) -> int:
    values = [form(c) for g in shown for line in g.lines for c in line.cells if c]
    return max(map(len, [*values, *(f.block.name for f in found)]))


def _table(found: list[Facts], shown: list[Group], form: Callable[[Cell], str], columns: Sequence[int]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, GAP, 0, 0), show_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    wide = _widest(found, shown, form)
    for i in columns:
        table.add_column(found[i].block.name, justify="right", no_wrap=True, min_width=wide)
    for group in shown:
        table.add_row(Text(group.title, style="bold"))
        for line in group.lines:
            table.add_row(f"  {line.label}", *(_styled(line.cells[i], form) for i in columns))
    return table


def _styled(cell: Cell | None, form: Callable[[Cell], str]) -> Text:
    """The value plain, its interval dim."""
    if cell is None:
        return Text("")
    value, blank, interval = form(cell).partition(" ") if cell.low is not None else (form(cell), "", "")
    return Text.assemble((value, cell.style), blank, (interval, "dim"))


def _pipes(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


__all__ = ["markdown", "show", "show_tree"]
