"""Charts of a page: matplotlib's SVG in the colours of the stylesheet, so they follow light and dark and print well.

A chart is drawn as wide as a phone, where a page shows it at its own size, and scales from there. Each has a title, a
description, a label at every line's end, a marker for each round beside its colour, and its numbers in a table.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import count, pairwise
from statistics import fmean
from threading import Lock
from typing import Any

from markupsafe import Markup, escape

from tasks.views._diff_text import clip, plain
from tasks.views._page_base import EMPTY, number, percent, render

WIDTH, HEIGHT = 360, 236
"""Of a chart, in pixels."""
TOP, BOTTOM = 8, 34
"""Margins of what is drawn, in pixels."""
ROW = 21
"""Height of a row, where a chart has one for each of several names."""
INK, MUTED, LINE, PAGE = "#000001", "#000002", "#000003", "#000004"
"""Stand for the stylesheet's colours while matplotlib draws; `COLOURS` says for which."""
SERIES = ("#000010", "#000011", "#000012", "#000013", "#000014", "#000015")
COLOURS = {INK: "--ink", MUTED: "--muted", LINE: "--line", PAGE: "--page"} | {
    c: f"--c{i}" for i, c in enumerate(SERIES)
}
MARKERS = ("o", "s", "D", "^", "v", "P")
GLYPHS = "●■◆▲▼✚"
"""The markers as characters, for text beside charts."""
THOUSANDS, MILLIONS = 10_000, 10_000_000
"""Numbers from which on an axis, and a label, counts in thousands, and in millions."""
TICKS = 10
"""Values of x that are all named."""
LABEL, STEP, END = 18, 22, 10
"""Characters of a name that are shown: of a round or stage, of a step of the funnel, and at the end of a line."""
STYLE: dict[str, Any] = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10,
    "text.color": INK, "axes.labelcolor": MUTED, "axes.edgecolor": LINE, "axes.titlesize": 10, "xtick.color": LINE,
    "ytick.color": LINE, "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED, "axes.spines.top": False,
    "axes.spines.right": False, "axes.axisbelow": True,
    "figure.dpi": 72, "savefig.dpi": 72, "svg.hashsalt": "page",
}  # fmt: skip
_drawing, _numbers = Lock(), count(1)


@dataclass(frozen=True)
class Point:
    """A value at a place, with its interval."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """The values of a round, in its colour."""

    name: str
    colour: int
    points: Sequence[Point]


@dataclass(frozen=True)
class Value:
    """A row of a forest plot: a round, and its value as a point, whose x means nothing."""

    name: str
    colour: int
    point: Point


@dataclass(frozen=True)
class Spread:
    """How the values of a round are distributed: five percentiles, the mean, their number."""

    name: str
    colour: int
    p5: float
    p25: float
    p50: float
    p75: float
    p95: float
    mean: float
    count: int


@dataclass(frozen=True)
class Step:
    """A row of a funnel: how many came, and how many went on."""

    name: str
    total: float
    left: float


def lines(
    title: str, series: Sequence[Series], x: str, y: str, *, diagonal: bool = False, doubling: bool = False
) -> Markup:
    """A line a round, of shares in percent, with error bars. With `diagonal`, x is in percent, too, and x = y is drawn; with
    `doubling`, equal steps of the axis double x.
    """
    right = 14 + max((_width(clip(plain(s.name), END), bold=True) for s in series), default=0)
    figure, axes = _axes(HEIGHT, left=38, right=right)
    xs = sorted({p.x for s in series for p in s.points})
    if doubling:
        axes.set_xscale("log", base=2)
    if diagonal:
        axes.plot([0, 100], [0, 100], color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
    step = 1 if doubling else min((b - a for a, b in pairwise(xs)), default=1)
    shift = 0 if diagonal else min(0.07, 0.3 / max(len(series), 1)) * step
    for i, s in enumerate(series):
        offset = shift * (i - (len(series) - 1) / 2)
        errors = [[max(0.0, 100 * (p.y - (p.y if p.low is None else p.low))) for p in s.points],
                  [max(0.0, 100 * ((p.y if p.high is None else p.high) - p.y)) for p in s.points]]  # fmt: skip
        axes.errorbar(
            [p.x * 2**offset if doubling else p.x + offset for p in s.points], [100 * p.y for p in s.points], yerr=errors,
            color=SERIES[s.colour], linewidth=1.6, elinewidth=1, marker=MARKERS[s.colour], markersize=4.5,
            markeredgecolor=PAGE, markeredgewidth=0.6,
        )  # fmt: skip
    axes.set_xlabel(x, parse_math=False)
    if len(xs) <= TICKS and not diagonal:
        axes.set_xticks(xs, [number(v) for v in xs])
        axes.minorticks_off()
    if axes.get_ylim()[1] > 100:
        axes.set_ylim(top=102)
    _label_ends(axes, [(s, 100 * s.points[-1].y) for s in series if s.points])
    head = ["round", *(number(v) for v in xs)]
    table = [[s.name, *(_cell(next((p for p in s.points if p.x == v), None)) for v in xs)] for s in series]
    return _figure(figure, title, f"{x} on the horizontal axis, {y} on the vertical one.", head, table)


def _cell(point: Point | None) -> str:
    if point is None:
        return ""
    ends = "" if point.low is None or point.high is None else f" ({percent(point.low)} … {percent(point.high)})"
    return f"{percent(point.y)}{ends}"


def _label_ends(axes: Any, ends: Sequence[tuple[Series, float]]) -> None:
    """Writes each name beside the end of its line, moved apart as little as it takes where lines end close to each other."""
    low, high = axes.get_ylim()
    ordered = sorted(ends, key=lambda end: end[1])
    places = apart([y for _, y in ordered], 12 * (high - low) / (HEIGHT - TOP - BOTTOM), high)
    for (series, _), y in zip(ordered, places, strict=True):
        axes.annotate(
            clip(plain(series.name), END), (1, y), xycoords=("axes fraction", "data"), xytext=(5, 0),
            textcoords="offset points", va="center", color=SERIES[series.colour], fontweight="bold", annotation_clip=False, parse_math=False,
        )  # fmt: skip


def apart(places: Sequence[float], gap: float, highest: float) -> list[float]:
    """Rising places that are at least `gap` from each other, with the least squared move: the isotonic regression of
    y_i − i·gap, by pooling adjacent violators (Barlow et al. 1972). None is above `highest`.
    """
    pools: list[list[float]] = []
    for i, y in enumerate(places):
        pools.append([y - i * gap])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    level = [fmean(pool) for pool in pools for _ in pool]
    return [min(y + i * gap, highest - (len(level) - 1 - i) * gap) for i, y in enumerate(level)]


def forest(title: str, rows: Sequence[Value], unit: str) -> Markup:
    """A row a round: its value and its interval. The unit `%` makes percent of shares."""
    labels = [f"{100 * r.point.y:.1f}" if unit == "%" else _short(r.point.y) for r in rows]
    figure, axes = _axes(
        TOP + BOTTOM + ROW * len(rows), left=_left(r.name for r in rows), right=12 + max(map(_width, labels), default=0)
    )
    factor, form = (100, percent) if unit == "%" else (1, number)
    for y, row in enumerate(rows):
        low, high = (row.point.y if end is None else end for end in (row.point.low, row.point.high))
        colour = SERIES[row.colour]
        axes.plot([factor * low, factor * high], [y, y], color=colour, linewidth=1.6)
        axes.plot(
            [factor * row.point.y], [y], color=colour, marker=MARKERS[row.colour], markersize=7, markeredgecolor=PAGE
        )
        axes.annotate(
            labels[y], (1, y), xycoords=("axes fraction", "data"), xytext=(6, 0), textcoords="offset points", va="center",
            color=INK, annotation_clip=False, parse_math=False,
        )  # fmt: skip
    _rows(axes, [r.name for r in rows], unit)
    head = ["round", "value", "95 % interval"]
    ends = [(r.point.low, r.point.high) for r in rows]
    intervals = ["" if a is None or b is None else f"{form(a)} … {form(b)}" for a, b in ends]
    table = [[r.name, form(r.point.y), text] for r, text in zip(rows, intervals, strict=True)]
    return _figure(figure, title, f"A row a round, in {unit}, with 95 % intervals.", head, table)


def ranges(title: str, spreads: Sequence[Spread], unit: str) -> Markup:
    """A row a round: the median, the middle half as a bar, and from the 5th to the 95th percentile as a line."""
    figure, axes = _axes(TOP + BOTTOM + ROW * len(spreads), left=_left(s.name for s in spreads), right=12)
    for y, s in enumerate(spreads):
        colour = SERIES[s.colour]
        axes.plot([s.p5, s.p95], [y, y], color=colour, linewidth=1.2)
        axes.plot([s.p25, s.p75], [y, y], color=colour, linewidth=7, alpha=0.45, solid_capstyle="butt")
        axes.plot([s.p50], [y], color=colour, marker=MARKERS[s.colour], markersize=6, markeredgecolor=PAGE)
    _rows(axes, [s.name for s in spreads], unit)
    head = ["round", "5 %", "25 %", "median", "75 %", "95 %", "mean", "rows"]
    table = [[s.name, *map(number, (s.p5, s.p25, s.p50, s.p75, s.p95, s.mean)), f"{s.count:,}"] for s in spreads]
    return _figure(figure, title, f"Median, middle half and 5th to 95th percentile, {unit}.", head, table)


def dots(title: str, names: Sequence[str], series: Sequence[Series], unit: str) -> Markup:
    """A row a name, with a marker for each round at its value; the x of a point is the number of its row."""
    figure, axes = _axes(TOP + BOTTOM + ROW * len(names), left=_left(names), right=12)
    for s in series:
        axes.plot(
            [p.y for p in s.points], [p.x for p in s.points], linestyle="none", color=SERIES[s.colour], markersize=7,
            marker=MARKERS[s.colour], markeredgecolor=PAGE, markeredgewidth=0.7,
        )  # fmt: skip
    axes.set_xlim(0, 1.05 * max((p.y for s in series for p in s.points), default=1))
    _rows(axes, names, unit)
    values = {s.name: {p.x: p.y for p in s.points} for s in series}
    table = [[name, *(number(own[i]) if i in own else "" for own in values.values())] for i, name in enumerate(names)]
    keys = [(s.name, s.colour) for s in series]
    description = f"A row for each of {', '.join(names)}; {unit}."
    return _figure(figure, title, description, ["", *values], table, keys)


def funnel(title: str, steps: Sequence[Step], colour: int) -> Markup:
    """A bar a step: what came, and within it what went on."""
    counts = [_short(s.left) if s.left == s.total else f"{_short(s.left)} of {_short(s.total)}" for s in steps]
    right = 8 + max(map(_width, counts), default=0)
    figure, axes = _axes(2 * TOP + ROW * len(steps), _left((s.name for s in steps), STEP), right, bottom=TOP)
    places = range(len(steps))
    axes.barh(places, [s.total for s in steps], color=SERIES[colour], alpha=0.25, height=0.7)
    axes.barh(places, [s.left for s in steps], color=SERIES[colour], height=0.7)
    for y, s in enumerate(steps):
        axes.annotate(
            counts[y],
            (s.total, y),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=INK,
            annotation_clip=False,
            parse_math=False,
        )
    axes.set_xlim(0, max((s.total for s in steps), default=1))
    _rows(axes, [s.name for s in steps], "", STEP)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    table = [
        [s.name, f"{s.total:,.0f}", f"{s.left:,.0f}", percent(s.left / s.total if s.total else None)] for s in steps
    ]
    return _figure(
        figure, title, "Rows that came to each step, and those that went on.", ["", "came", "went on", ""], table
    )


def _axes(height: float, left: float, right: float, bottom: float = BOTTOM) -> tuple[Any, Any]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with _drawing, mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH / 72, height / 72))
        box = (left / WIDTH, bottom / height, 1 - (left + right) / WIDTH, 1 - (TOP + bottom) / height)
        axes = figure.add_axes(box)
        axes.tick_params(color=LINE, labelcolor=MUTED)  # also of ticks that are made later, without this style
        axes.grid(visible=True, color=LINE, linewidth=0.5)
        return figure, axes


def _left(names: Iterable[str], longest: int = LABEL) -> float:
    """Room for the names of rows."""
    return 12 + max((_width(clip(plain(name), longest)) for name in names), default=0)


def _width(text: str, bold: bool = False) -> float:
    """Width of a text in pixels, in a font as wide as any that a browser takes."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    font = FontProperties(family="DejaVu Sans", size=10, weight="bold" if bold else "normal")
    return float(TextToPath().get_text_width_height_descent(text, font, ismath=False)[0])


def _short(value: float) -> str:
    """A number of at most nine characters: in full, or with M, G … for millions and more."""
    from matplotlib.ticker import EngFormatter

    return number(value) if abs(value) < MILLIONS else EngFormatter(places=1, sep="")(value)


def _rows(axes: Any, names: Sequence[str], unit: str, longest: int = LABEL) -> None:
    from matplotlib.ticker import EngFormatter

    axes.set_yticks(range(len(names)), [clip(plain(n), longest) for n in names], color=INK, parse_math=False)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(unit, parse_math=False)
    axes.locator_params(axis="x", nbins=max(2, min(5, int(axes.get_position().width * WIDTH / 50))))
    if max(map(abs, axes.get_xlim())) >= THOUSANDS:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _figure(
    figure: Any,
    title: str,
    description: str,
    head: Sequence[str],
    table: Sequence[Sequence[str]],
    keys: Sequence[tuple[str, int]] = (),
) -> Markup:
    drawing = _svg(figure, title, description)
    return render("chart.html", title=title, svg=drawing, head=head, table=table, keys=[(n, key(c)) for n, c in keys])


def key(colour: int | None) -> Markup:
    """The marker of a round in its colour, for text; nothing for a round that no chart draws."""
    if colour is None:
        return EMPTY
    return Markup('<span class="key" style="color: var(--c{})" aria-hidden="true">{}</span>').format(
        colour, GLYPHS[colour]
    )


def _svg(figure: Any, title: str, description: str) -> Markup:
    """The drawing in the stylesheet's colours, without what a document of its own needs; ids are unique in a page."""
    import matplotlib as mpl

    with _drawing, mpl.rc_context(STYLE):
        buffer = BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        name = f"c{next(_numbers)}"
    drawing = buffer.getvalue().decode()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(
        r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>| font-family: [^;]*;", "", drawing, flags=re.DOTALL
    )
    drawing = re.sub(r'\bid="|url\(#|href="#', lambda m: f"{m[0]}{name}-", drawing).replace("xlink:href", "href")
    for placeholder, variable in COLOURS.items():
        drawing = drawing.replace(placeholder, f"var({variable})")
    box = re.search(r'viewBox="[^"]*"', drawing)
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {box[0] if box else ""} role="img" aria-labelledby="{name}t {name}d">'
    )
    words = f'<title id="{name}t">{escape(plain(title))}</title><desc id="{name}d">{escape(plain(description))}</desc>'
    return Markup(opening + words + drawing[drawing.index(">") + 1 :])
