"""Prints a diff: sections of small tables, with a few examples under each.

Texts of models are shown on one line, cut to the width, from where both sides begin to differ.
"""

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tasks.core.tables import TABLES
from tasks.views._diff_outcomes import Exam, Item, Majorities, Swaps, Verdicts
from tasks.views._diff_settings import Difference, Param, SettingsDiff
from tasks.views._diff_tables import Example, TableDiff, compared
from tasks.views._diff_text import ABSENT, clip, contrast, plain
from tasks.views.diff import Diff

DEFAULT_WIDTH = 120
REASONS, NAMES = 6, 8
"""Reasons of a table, and names of files, that are printed."""
INDENT, SHORT = 20, 40
"""Columns before a value, and characters of two values that may stand on one line."""
DIGEST = 8
MARKS = {"gone": "red", "added": "green", "changed": "yellow"}
CONTEXT_COLUMNS = ("member", "problem", "response")
"""What is shown of a changed row though it is the same."""
TEXTS = ("problem", "response", "critique", "completion", "chosen", "rejected", "rationale", "prompt")
"""What is shown first of a row that only one side has."""


def console() -> Console:
    """As wide as the terminal; `DEFAULT_WIDTH` without one."""
    return Console(width=None if sys.stdout.isatty() else DEFAULT_WIDTH, highlight=False)


def show(diff: Diff, console: Console) -> None:
    """Prints all that differs."""
    console.print(Text(f"{diff.old} → {diff.new}", style="bold"))
    sides = diff.old, diff.new
    for section in (
        _settings(diff.settings, sides),
        _tables(diff),
        _outcomes(diff, console.width),
        _exam(diff, console.width),
    ):
        for renderable in section:
            console.print(renderable)


def show_table(old: str, new: str, name: str, diff: TableDiff, console: Console) -> None:
    """Prints what differs in one table: counts by reason and by column, and examples."""
    console.print(Text(f"{name}: {old} → {new}", style="bold"))
    console.print(_counts({name: diff}, (old, new), reasons=len(diff.reasons)))
    if line := _columns(diff):
        console.print(Text(f"changed in {line}", style="dim"))
    for change in MARKS:
        for example in (e for e in diff.examples if e.change == change):
            console.print(_example(name, example, (old, new), console.width))


def _grid(*columns: str, numbers: int = 0, title: str = "") -> Table:
    """A table without lines; the last `numbers` columns are numbers."""
    grid = Table(
        box=None, pad_edge=False, title=title or None, title_justify="left", title_style="bold", header_style="dim"
    )
    for i, column in enumerate(columns):
        is_number = i >= len(columns) - numbers
        grid.add_column(Text(column), justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
    return grid


# Settings


def _settings(diff: SettingsDiff, sides: tuple[str, str]) -> Iterable[Any]:
    if diff.params:
        yield ""
        yield _params(diff.params, sides)
    named = [("lineage", diff.lineage), ("strategy", diff.strategies), ("library", diff.libraries)]
    rows = [(f"{kind} {d.name}", d.old, d.new) for kind, found in named for d in found]
    rows += [
        (f"model {d.name}".removesuffix(" model"), *(v and v[:DIGEST] for v in (d.old, d.new))) for d in diff.models
    ]
    if rows:
        yield ""
        grid = _grid("settings", f"{sides[0]}", f"{sides[1]}")
        for name, *values in rows:
            grid.add_row(Text(name), *(Text(v or ABSENT) for v in values))
        yield grid
    for what, found in (("modules", diff.code), ("files", diff.files)):
        if found:
            yield ""
            yield Text(f"{_count(len(found), what)} differ{'s' * (len(found) == 1)}: {_names(found)}")


def _params(params: Sequence[Param], sides: tuple[str, str]) -> Table:
    grid = _grid("parameter", f"{sides[0]}", "from", f"{sides[1]}", "from")
    for p in params:
        cells = [(plain(p.old), p.old_from), (plain(p.new), p.new_from)]
        grid.add_row(
            Text(p.path), *(Text(part or "", style=style) for v, o in cells for part, style in ((v, ""), (o, "dim")))
        )
    return grid


def _names(found: Sequence[Difference]) -> str:
    marks = [d.name + (" (new)" if d.old is None else " (gone)" if d.new is None else "") for d in found]
    return ", ".join(marks[:NAMES]) + (f" and {len(marks) - NAMES} more" if len(marks) > NAMES else "")


def _count(n: int, what: str) -> str:
    return f"{n:,} {what.removesuffix('s') if n == 1 else what}"


# Tables


def _tables(diff: Diff) -> Iterable[Any]:
    different = {n: t for n, t in diff.tables.items() if t.gone or t.added or t.changed}
    yield ""
    if different:
        yield _counts(different, (diff.old, diff.new), REASONS)
    equal = [name for name in diff.tables if name not in different]
    if equal:
        yield Text(f"the same: {', '.join(equal)}", style="dim")
    for side in (diff.old, diff.new):
        if own := [name for name, owner in diff.only.items() if owner == side]:
            yield Text(f"only {side} has {', '.join(own)}", style="dim")


def _counts(tables: dict[str, TableDiff], sides: tuple[str, str], reasons: int) -> Table:
    """A row for each table, and one for each reason by which rows came or went: old - gone + added ± moved = new."""
    grid = _grid("rows", f"{sides[0]}", "gone", "added", "changed", f"{sides[1]}", numbers=5)
    for name, t in tables.items():
        counts = (t.old, -t.gone, t.added, t.changed, t.new)
        grid.add_row(Text(name), *(_signed(c, i) for i, c in enumerate(counts)))
        moved = [r for r in t.reasons if r.moved]
        for r in moved[:reasons] if len(t.reasons) > 1 else ():
            change = " ".join(f"{sign}{n:,}" for sign, n in (("+", r.came), ("-", r.left)) if n)
            cells = (f"{r.old:,}", _signed(-r.gone, 1), _signed(r.added, 2), Text(change), f"{r.new:,}")
            grid.add_row(Text(f"  {clip(plain(r.reason), 40)}"), *cells, style="dim")
        if len(moved) > reasons:
            grid.add_row(Text(f"  … {len(moved) - reasons} more: --table {name}"), style="dim")
    return grid


def _signed(count: int, column: int) -> Text:
    """A count; of the columns gone and added with its sign, and nothing for none."""
    if column in (1, 2, 3) and not count:
        return Text("")
    text = f"{count:+,}" if column in (1, 2) else f"{count:,}"
    return Text(text, style="red" if column == 1 else "green" if column == 2 else "")


def _columns(diff: TableDiff) -> str:
    return ", ".join(f"{column} {count:,}" for column, count in diff.columns.items())


def _example(name: str, example: Example, sides: tuple[str, str], width: int) -> Text:
    """A row that differs: of a changed one the columns that do, of others what they say."""
    lines = [Text.assemble((f"  {example.change}", MARKS[example.change]), f"  {plain(example.key)}")]
    if example.old and example.new:
        same = [c for c in CONTEXT_COLUMNS if example.new.get(c) and c not in example.columns]
        lines += [_line(column, plain(example.new[column]), width) for column in same]
        for column in example.columns:
            lines += _contrast(column, example.old[column], example.new[column], sides, width)
    else:
        row = example.new or example.old or {}
        columns = [c for c in compared(TABLES[name]) if row.get(c) is not None]
        for column in sorted(columns, key=lambda c: c not in TEXTS):
            lines.append(_line(column, plain(row[column]), width))
    return Text("\n").join(lines)


def _contrast(label: str, old: Any, new: Any, sides: tuple[str, str], width: int) -> list[Text]:
    """Both values behind a label: on one line where they fit, else on two."""
    texts = plain(old), plain(new)
    if len(f"{texts[0]} → {texts[1]}") <= width - INDENT and len(max(texts, key=len)) <= SHORT:
        return [_line(label, f"{texts[0]} → {texts[1]}", width)]
    tag = max(map(len, sides)) + 2
    both = contrast(old, new, width - INDENT - tag)
    return [_line(label * (i == 0), f"{sides[i]:{tag}}{both[i]}", width) for i in (0, 1)]


def _line(label: str, text: str, width: int) -> Text:
    return Text.assemble((f"    {clip(label, INDENT - 5):{INDENT - 4}}", "dim"), clip(text, width - INDENT))


# Outcomes


def _outcomes(diff: Diff, width: int) -> Iterable[Any]:
    sides = diff.old, diff.new
    if diff.majorities:
        yield from _majorities(diff.majorities, sides, width)
    if diff.verdicts:
        yield from _verdicts(diff.verdicts, sides, width)
    if diff.swaps and diff.swaps.both:
        yield from _swaps(diff.swaps, sides, width)


def _exam(diff: Diff, width: int) -> Iterable[Any]:
    """The exam, with examples of its first set alone."""
    if not diff.exams:
        return
    yield ""
    yield _exams(diff.exams, (diff.old, diff.new))
    for item in diff.exams[0].examples:
        yield _item(item, (diff.old, diff.new), width)


def _exams(exams: Sequence[Exam], sides: tuple[str, str]) -> Table:
    grid = _grid("exam, %", "items", "won", "lost", *sides, "change (95 %)", "p", numbers=7)
    for e in exams:
        interval = "" if e.low is None or e.high is None else f" ({100 * e.low:+.1f} … {100 * e.high:+.1f})"
        name = f"{e.split} {e.mode}" if e.member == "answers" else f"{e.member}: {e.split} {e.mode}"
        cells = (f"{e.items:,}", f"{e.won:,}", f"{e.lost:,}", f"{100 * e.old:.1f}", f"{100 * e.new:.1f}")
        style = "green" if (e.low or 0) > 0 else "red" if (e.high or 0) < 0 else ""
        grid.add_row(Text(name), *cells, Text(f"{100 * e.change:+.1f}{interval}", style=style), f"{e.p:.2g}")
    return grid


def _item(item: Item, sides: tuple[str, str], width: int) -> Text:
    head = ("  won", "green") if item.new > item.old else ("  lost", "red")
    level = "" if item.level is None else f"  level {item.level}"
    title = Text.assemble(head, f"  {item.item}{level}  {100 * item.old:.0f} → {100 * item.new:.0f} %")
    lines = [title, _line("problem", plain(item.problem), width)]
    return Text("\n").join([*lines, *_contrast("answer", item.old_response, item.new_response, sides, width)])


def _majorities(found: Majorities, sides: tuple[str, str], width: int) -> Iterable[Text]:
    flipped = f"{found.flipped:,} of {_count(found.prompts, 'prompts')} that both answered flipped"
    yield ""
    yield _head("majority answers", flipped if found.prompts else "the sides answered no prompt in common")
    for flip in found.examples:
        lines = [Text(f"  {flip.prompt_id}"), _line("problem", plain(flip.problem), width)]
        shares = [f"{plain(a)} ({s:.0%})" for a, s in ((flip.old, flip.old_share), (flip.new, flip.new_share))]
        yield Text("\n").join([*lines, *_contrast("majority", *shares, sides, width)])


def _verdicts(found: Sequence[Verdicts], sides: tuple[str, str], width: int) -> Iterable[Any]:
    grid = _grid("verdicts of", "both", "fail →\npass", "pass →\nfail", "flipped on\nthe same text", numbers=4)
    for v in found:
        grid.add_row(Text(v.judge), *(f"{n:,}" for n in (v.both, v.to_pass, v.to_fail, v.same_text)))
    yield ""
    yield grid
    for example in (e for v in found for e in v.examples):
        yield _example("judgments", example, sides, width)


def _swaps(found: Swaps, sides: tuple[str, str], width: int) -> Iterable[Text]:
    yield ""
    yield _head("pairs", f"{found.swapped:,} of {found.both:,} that both have are swapped")
    for example in found.examples:
        yield _example("pairs", example, sides, width)


def _head(title: str, text: str) -> Text:
    return Text.assemble((title, "dim"), f"  {text}")
