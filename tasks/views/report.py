"""The table of the rounds, from manifests and the table `measures`: a column per round, quantities in groups of rows.

Accuracies are in percent with 95 % intervals. If the rounds do not fit the width, intervals are shown as half widths, then
left out; then the table is split into several.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from tasks.core import store
from tasks.core.champion import Election, Look
from tasks.core.stage import stages
from tasks.project.champion import decision, elections, model_digest
from tasks.project.freshness import absent_files, stale_stages
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
AT_K = ("pass_at_", "majority_at_")
GAP = 2
MAX_NAMED = 3
"""Stages of one cause that are named."""
CAPTION = "Accuracies in percent, on frozen sets, with 95 % intervals. Seconds of a stage exclude its process start-up."


@dataclass(frozen=True)
class Cell:
    """A formatted value; `low` and `high` if it has an interval."""

    text: str
    low: float | None = None
    high: float | None = None
    style: str = ""
    value: float | None = None
    """The number of `text`, where it is a measure's."""


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
    model: str | None = None
    """The digest of its model, as rows carry it."""
    stale: dict[str, str] = field(default_factory=dict)
    """Stages that today's plans and inputs would make anew, each with what was edited; empty where one before it was."""
    absent: tuple[str, ...] = ()
    """Files and manifests that are missing."""
    standing: str = ""
    """`champion`, or by whom it was promoted by hand; empty for the others."""

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of all its stages."""
        return {k: v for m in self.stages.values() for k, v in m.metrics.items()}


def show(root: Path, console: Console | None = None) -> None:
    """Prints the table of the rounds."""
    console = console or _console()
    pipeline = load_params(root)
    results = elections(root, pipeline)
    rounds = gather(root, pipeline, results)
    if not rounds:
        console.print("Nothing has been made yet; `flywheel campaign` runs the rounds of params.yaml.")
        return
    for table in tables(rounds, console.width):
        console.print(table)
    lines = [*outdated(rounds), *decisions(rounds), *champions(root, results), *warnings(rounds), CAPTION]
    _print_dim(console, lines)


def markdown(root: Path) -> str:
    """The table of the rounds in GitHub's Markdown; empty where nothing has been made."""
    pipeline = load_params(root)
    rounds = gather(root, pipeline, elections(root, pipeline))
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
    """Prints bases and rounds as a tree: stages, staleness, accuracy, decision, champion, model; then the reasons."""
    console = console or _console()
    pipeline = load_params(root)
    results = elections(root, pipeline)
    rounds = _every_block(root, pipeline, results)
    nodes: dict[str, Tree] = {}
    for facts in rounds:
        text, parent = _node_text(facts), facts.block.parent
        nodes[facts.block.name] = nodes[parent].add(text) if parent else Tree(text, guide_style="dim")
    for facts in rounds:
        if facts.block.is_base:
            console.print(nodes[facts.block.name])
    _print_dim(console, [*outdated(rounds), *champions(root, results)])


def refusal(root: Path, block: Block) -> str | None:
    """The gates that held a round back, with their reasons; None for one that was promoted or has no decision yet."""
    return next(iter(decisions([_facts(root, block)])), None)


def verdict_line(root: Path, name: str) -> str:
    """What became of a round, in one line: decision with reasons, pass@1 beside its parent's, rows kept, champion.

    Raises:
        UnknownName: when there is no such base or round.
    """
    pipeline = load_params(root)
    block = pipeline.block(name)
    metrics, parts = _facts(root, block).metrics, outcome(root, pipeline, block)
    if "kept" in metrics:
        parts.append(f"kept {metrics['kept']:,.0f} of {metrics.get('responses', 0):,.0f} answers")
    if election := elections(root, pipeline).get(block.base):
        parts.append(f"champion of {block.base}: {election.champion}")
    return f"{name}: {'; '.join(parts) or 'nothing has been made yet'}"


def outcome(root: Path, pipeline: Pipeline, block: Block) -> list[str]:
    """A round's decision with the gates' reasons, its pass@1 beside its parent's, and accuracies below the parent's interval."""
    facts = _facts(root, block)
    parent = _facts(root, pipeline.block(block.parent)) if block.parent else Facts(block)
    parts = [f"held back by {'; '.join(gates)}" if (gates := _refusals(facts)) else _decision(facts).text]
    parts = parts if facts.decisions else []
    if cell := facts.measures.get(("pass_at_1", None)):
        before = parent.measures.get(("pass_at_1", None))
        parts.append(f"pass@1 {cell.text} %" + (f" ({block.parent}: {before.text} %)" if before else ""))
    if worse := _regressed(facts, parent):
        parts.append(f"below {block.parent}'s interval: {', '.join(worse)}")
    return parts


def _regressed(facts: Facts, parent: Facts) -> list[str]:
    """Accuracies that are below the 95 % interval of the parent's, by name and level."""
    below = [
        (name, level)
        for (name, level), cell in facts.measures.items()
        if name in ACCURACIES or name.startswith(AT_K)
        if (before := parent.measures.get((name, level))) and before.low is not None
        if cell.value is not None and cell.value < before.low
    ]
    return [name if level is None else f"{name}/level_{level}" for name, level in below]


def _print_dim(console: Console, lines: list[str]) -> None:
    for line in lines:
        console.print(line, style="dim", highlight=False, markup=False)


def _console() -> Console:
    """As wide as the terminal; `DEFAULT_WIDTH` without one."""
    return Console(width=None if sys.stdout.isatty() else DEFAULT_WIDTH)


def _node_text(facts: Facts) -> Text:
    parts: list[tuple[str, str]] = [(f"{len(facts.stages)} of {len(stages_of(facts.block))} stages", "")]
    if facts.absent:
        parts.append((f"{len(facts.absent)} missing", "red"))
    if facts.stale:
        parts.append((f"{len(facts.stale)} stale", "yellow"))
    if cell := facts.measures.get(("pass_at_1", None)):
        parts.append((f"pass@1 {_with_interval(cell)}", ""))
    if facts.decisions:
        parts.append((_decision(facts).text, ""))
    if facts.standing:
        parts.append((f"promoted {facts.standing}" if facts.standing.startswith("by ") else facts.standing, "green"))
    if facts.model:
        parts.append((f"model {facts.model[:SHORT]}", ""))
    return Text.assemble((facts.block.name, "bold"), "  ", Text(" · ").join(Text(*part) for part in parts))


# Facts


def gather(root: Path, pipeline: Pipeline, results: Mapping[str, Election]) -> list[Facts]:
    """Facts of every base and round that has at least one manifest, parents first."""
    return [facts for facts in _every_block(root, pipeline, results) if facts.stages]


def _every_block(root: Path, pipeline: Pipeline, results: Mapping[str, Election]) -> list[Facts]:
    stale, absent = stale_stages(root, pipeline), absent_files(root, pipeline)
    standing = {election.champion: "champion" for election in results.values()}
    if choice := decision(root):
        standing[choice.round] = f"by {choice.by}"
    return [
        replace(
            _facts(root, block),
            stale=stale.get(name, {}),
            absent=tuple(absent.get(name, ())),
            standing=standing.get(name, ""),
        )
        for name, block in pipeline.blocks.items()
    ]


def _facts(root: Path, block: Block) -> Facts:
    manifests = store.manifests(root, block.name)
    in_order = {s.name: manifests[s.name] for s in stages_of(block) if s.name in manifests}
    measures = {(r["name"], r["level"]): _percent(r) for r in _rows(root, block.name, "measures")}
    decisions = {r["gate"]: (r["passed"], r["reason"] or "") for r in _rows(root, block.name, "decisions")}
    return Facts(block, in_order, measures, decisions, model_digest(root, block.name, manifests))


def _rows(root: Path, name: str, table: str) -> Iterable[dict[str, object]]:
    return store.read(root, name, table).iter_rows(named=True) if store.has(root, name, table) else ()


def _percent(row: dict[str, object]) -> Cell:
    value, low, high = (None if row[k] is None else 100 * row[k] for k in ("value", "low", "high"))  # type: ignore[operator]
    return Cell(UNKNOWN if value is None else f"{value:.1f}", low, high, value=value)


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
        Group("result", [_line(label, rounds, value) for label, value in RESULT.items()]),
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
    at_k = [n for n in names if n.startswith(AT_K) and n.rpartition("_")[2].isdigit()]
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
        _line("prompts written", rounds, _written_prompts),
        *prefixed("prompts_rejected/", "  rejected: "),
        _line("  used", rounds, _count("prompts")),
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


def _written_prompts(facts: Facts) -> Cell | None:
    used = facts.metrics.get("prompts")
    rejected = sum(v for k, v in facts.metrics.items() if k.startswith("prompts_rejected/"))
    return None if used is None else Cell(f"{used + rejected:,.0f}")


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


def _champion(facts: Facts) -> Cell | None:
    return Cell(facts.standing, style="green") if facts.standing else None


def _state(facts: Facts) -> Cell:
    if facts.absent:
        return Cell(f"{len(facts.absent)} missing", style="red")
    if facts.stale:
        return Cell(f"{len(facts.stale)} stale", style="yellow")
    ran, whole = len(facts.stages), len(stages_of(facts.block))
    return Cell("current" if ran == whole else f"{ran} of {whole}")


def _model(facts: Facts) -> Cell | None:
    return Cell(facts.model[:SHORT]) if facts.model else None


RESULT = {"gate": _gate, "champion": _champion, "stages": _state, "model": _model}


def outdated(rounds: list[Facts]) -> list[str]:
    """One line per round with missing files or stale stages: what is missing or was edited, and what mends it."""
    missing = [
        f"{f.block.name} lacks {f.absent[0]}{_more(f.absent)}; `dvc checkout --force`" for f in rounds if f.absent
    ]
    stale = [
        f"{f.block.name} is stale: {stale_text(f.stale)}; `flywheel run {f.block.name}`" for f in rounds if f.stale
    ]
    return [*missing, *stale]


def _more(items: Sequence[str]) -> str:
    return f" and {len(items) - 1} more" if items[1:] else ""


def stale_text(stale: dict[str, str]) -> str:
    """Stale stages by what was edited: `generate (members edited), and what comes after`."""
    causes: dict[str, list[str]] = {}
    for stage, reason in stale.items():
        causes.setdefault(reason, []).append(stage)
    after = causes.pop("", [])
    named = [f"{', '.join(s) if len(s) <= MAX_NAMED else f'{len(s)} stages'} ({cause})" for cause, s in causes.items()]
    if not named:
        return f"{after[0]} and what comes after, for an ancestor is"
    return " and ".join([", ".join(named), *(["what comes after"] if after else [])])


def decisions(rounds: list[Facts]) -> list[str]:
    """One line per round that was held back: the gates that refused it, with reasons."""
    refused = {facts.block.name: _refusals(facts) for facts in rounds}
    return [f"{name} was held back by {'; '.join(gates)}" for name, gates in refused.items() if gates]


def _refusals(facts: Facts) -> list[str]:
    """The gates that refused a round, each with its reason."""
    return [f"{gate} ({reason})" for gate, (passed, reason) in facts.decisions.items() if not passed and gate != "all"]


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
