"""The table of the rounds, from manifests and the table `measures`: a column per round, quantities in groups of rows.

Accuracies are in percent with 95 % intervals. If the rounds do not fit the width, intervals are shown as half widths, then
left out; then the table is split into several.
"""

import sys
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from tasks.core import store
from tasks.core.champion import Election, Look
from tasks.project.champion import decision, elections
from tasks.project.costs import amount
from tasks.project.params import Block, Pipeline, load_params, stages_of
from tasks.project.plan import plans
from tasks.views._diff_text import plain
from tasks.views._report_facts import Cell, Facts, every_block, facts_of, gather
from tasks.views._report_rows import ACCURACIES, AT_K, SHORT, Group, Line, decided, groups

DEFAULT_WIDTH = 120
GAP = 2
NEWEST = 16
"""Rounds that the table shows beside bases and the rounds in force, where it is not asked for all; lines of one kind below it."""
DEPTH = 5
"""Levels of the tree of rounds; deeper rounds stand below each other and name their parents."""
MAX_NAMED = 3
"""Stages of one cause that are named."""
CAPTION = "Accuracies in percent, on frozen sets, with 95 % intervals. Seconds of a stage exclude its process start-up."


@store.one_look()
def show(root: Path, console: Console | None = None, whole: bool = False) -> None:
    """Prints the table of the rounds: bases, rounds in force and the `NEWEST` that were made last, or with `whole` all."""
    console = console or _console()
    pipeline = load_params(root)
    current = plans(root, pipeline)
    results = elections(root, pipeline, current)
    names = None if whole else shown(root, pipeline, results)
    every = gather(root, pipeline, results, current, names)
    if not every:
        console.print("Nothing has been made yet; `flywheel campaign` runs the rounds of params.yaml.")
        return
    rounds = [facts for facts in every if names is None or facts.block.name in names]
    for table in tables(rounds, console.width):
        console.print(table)
    champion_lines = champions(root, results, names)
    lines = [*outdated(every), *decisions(rounds), *champion_lines, *warnings(rounds)]
    left_out = len(every) - len(rounds)
    _print_dim(console, [*lines, CAPTION, *([left_out_text(left_out)] if left_out else [])])


def shown(root: Path, pipeline: Pipeline, results: Mapping[str, Election]) -> set[str]:
    """The bases, the rounds in force, and the `NEWEST` rounds that were made last."""
    made = [name for name in pipeline.rounds if any((store.round_folder(root, name) / "manifests").glob("*.json"))]
    choice = decision(root)
    in_force = [election.champion for election in results.values()] + ([choice.round] if choice else [])
    return {name for name, block in pipeline.blocks.items() if block.is_base} | {*in_force, *made[-NEWEST:]}


def left_out_text(count: int) -> str:
    """Says how many rounds are not shown, and what shows them."""
    rounds = "1 earlier round is" if count == 1 else f"{count} earlier rounds are"
    return f"{rounds} not shown; `flywheel report --all` shows every round, `flywheel round list` a line for each."


@store.one_look()
def show_tree(root: Path, console: Console | None = None) -> None:
    """Prints bases and rounds as a tree: stages, staleness, accuracy, decision, champion, model; then the reasons."""
    console = console or _console()
    pipeline = load_params(root)
    current = plans(root, pipeline)
    results = elections(root, pipeline, current)
    rounds = every_block(root, pipeline, results, current, measures=("pass_at_1",))
    nodes: dict[str, Tree] = {}
    places: dict[str, list[Tree]] = {}  # each with the nodes that it lies below
    for facts in rounds:
        name, parent = facts.block.name, facts.block.parent
        above = [*places[parent], nodes[parent]] if parent else []
        deep = len(above) > DEPTH
        above = above[:DEPTH]
        text = _node_text(facts, str(parent) if deep else "")
        nodes[name] = above[-1].add(text) if above else Tree(text, guide_style="dim")
        places[name] = above
    for facts in rounds:
        if facts.block.is_base:
            console.print(nodes[facts.block.name])
    names = shown(root, pipeline, results)
    _print_dim(console, [*outdated(rounds), *champions(root, results, names)])
    if left_out := sum(look.name not in names for election in results.values() for look in election.looks):
        _print_dim(console, [f"tests of {left_out} earlier rounds are not shown; `flywheel report --all` has all"])


def refusal(root: Path, block: Block) -> str | None:
    """The gates that held a round back, with their reasons; None for one that was promoted or has no decision yet."""
    return next(iter(decisions([facts_of(root, block)])), None)


def verdict_line(root: Path, name: str) -> str:
    """What became of a round, in one line: decision with reasons, pass@1 beside its parent's, rows kept, money, champion.

    Raises:
        UnknownName: when there is no such base or round.
    """
    pipeline = load_params(root)
    block = pipeline.block(name)
    facts, parts = facts_of(root, block, pipeline.prices), outcome(root, pipeline, block)
    metrics, ran, whole = facts.metrics, len(facts.stages), len(stages_of(block))
    if 0 < ran < whole:
        parts.append(f"{ran} of {whole} stages")
    if "kept" in metrics:
        parts.append(f"kept {metrics['kept']:,.0f} of {metrics.get('responses', 0):,.0f} answers")
    if facts.costs.money:
        parts.append(f"{facts.costs.money_label}: {amount(facts.costs.money)}")
    if election := elections(root, pipeline).get(block.base):
        parts.append(f"champion of {block.base}: {election.champion}")
    return f"{name}: {'; '.join(parts) or 'nothing has been made yet'}"


def outcome(root: Path, pipeline: Pipeline, block: Block) -> list[str]:
    """A round's decision with the gates' reasons, its pass@1 beside its parent's, and accuracies below the parent's interval."""
    facts = facts_of(root, block)
    parent = facts_of(root, pipeline.block(block.parent)) if block.parent else Facts(block)
    parts = [f"held back by {'; '.join(gates)}" if (gates := _refusals(facts)) else decided(facts).text]
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


def _node_text(facts: Facts, parent: str) -> Text:
    """A line of the tree; `parent` where the line does not stand below its parent's."""
    parts: list[tuple[str, str]] = [(f"{len(facts.stages)} of {len(stages_of(facts.block))} stages", "")]
    if facts.absent:
        parts.append((f"{len(facts.absent)} missing", "red"))
    if facts.changed:
        parts.append((f"{len(facts.changed)} damaged", "red"))
    if facts.stale:
        parts.append((f"{len(facts.stale)} stale", "yellow"))
    if cell := facts.measures.get(("pass_at_1", None)):
        parts.append((f"pass@1 {_with_interval(cell)}", ""))
    if facts.decisions:
        parts.append((decided(facts).text, ""))
    if facts.standing:
        parts.append((f"promoted {facts.standing}" if facts.standing.startswith("by ") else facts.standing, "green"))
    if facts.model:
        parts.append((f"model {facts.model[:SHORT]}", ""))
    origin = f" from {parent}" if parent else ""
    return Text.assemble((facts.block.name, "bold"), origin, "  ", Text(" · ").join(Text(*part) for part in parts))


# Lines below the table


def outdated(rounds: list[Facts]) -> list[str]:
    """One line per round with missing files or stale stages: what is missing or was edited, and what mends it."""
    missing = [
        f"{f.block.name} lacks {f.absent[0]}{_more(f.absent)}; `dvc checkout --force` or `dvc pull`"
        for f in rounds
        if f.absent
    ]
    changed = [f"{f.block.name} is damaged: {f.changed[0]}{_more(f.changed)}" for f in rounds if f.changed]
    stale = [
        f"{f.block.name} is stale: {stale_text(f.stale)}; `flywheel run {f.block.name}`" for f in rounds if f.stale
    ]
    return [line for lines in (missing, changed, stale) for line in _newest(lines)]


def _newest(lines: list[str]) -> list[str]:
    """The last lines of many of one kind."""
    left_out = len(lines) - NEWEST
    return lines if left_out <= 0 else [*lines[-NEWEST:], f"and {left_out} more like these, of earlier rounds"]


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


def champions(root: Path, results: Mapping[str, Election], names: Container[str] | None = None) -> list[str]:
    """The champion of each base, a line per round with the reason why it is champion or not, and a person's decision. Without
    the lines of rounds that are not among `names`.
    """
    lines = []
    for base, election in results.items():
        earlier = f" ({_spent(election.earlier)})" if election.earlier else ""
        lines.append(f"champion of {base}: {election.champion}{earlier}")
        looks = [look for look in election.looks if names is None or look.name in names]
        lines += [f"  {look.name} {_contest(look, election)}" for look in looks]
    if choice := decision(root):
        lines.append(f"{choice.by} promoted {choice.round} by hand ({choice.when}), which overrides the champion")
    return lines


def _spent(looks: int) -> str:
    return "1 look at other answers is spent, too" if looks == 1 else f"{looks} looks at other answers are spent, too"


def _contest(look: Look, election: Election) -> str:
    if look.name == election.champion:
        return f"champion: {look.reason}"
    return f"{'was champion' if look.won else 'not champion'}: {look.reason}"


def warnings(rounds: list[Facts]) -> list[str]:
    """The warnings of all stages, a line each."""
    return [f"{s}@{f.block.name}: {plain(text)}" for f in rounds for s, m in f.stages.items() for text in m.warnings]


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


__all__ = [
    "ACCURACIES", "FORMATS", "Cell", "Facts", "Group", "Line", "champions", "decisions", "gather", "groups", "outcome",
    "outdated", "refusal", "show", "show_tree", "stale_text", "tables", "verdict_line", "warnings",
]  # fmt: skip
