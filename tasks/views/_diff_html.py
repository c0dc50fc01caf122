"""A diff as one page that needs no other file. Everything that a model wrote is escaped."""

import difflib
from typing import Any

from jinja2 import Environment
from markupsafe import Markup, escape

from tasks.core.tables import TABLES
from tasks.views._diff_printing import DIGEST
from tasks.views._diff_tables import compared
from tasks.views._diff_text import ABSENT, plain
from tasks.views.diff import Diff

LONGEST = 4000
"""Characters of a text that are shown, and that are compared word by word."""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ d.old }} → {{ d.new }}</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #222 }
h2 { margin: 2rem 0 .5rem; font-size: 1.15rem } table { border-collapse: collapse }
th { text-align: left; font-weight: 600; color: #666 } td, th { padding: .15rem .8rem .15rem 0; vertical-align: top }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums } tr.sub td { color: #666 } tr.sub td:first-child { padding-left: 1.2rem }
.gone, del { color: #b3261e } .added, ins { color: #1a7f37 } .changed { color: #8a6100 }
ins, del { text-decoration: none } ins { background: #e3f6e8 } del { background: #fbe4e2 }
details { margin: .4rem 0 } summary { cursor: pointer } .dim { color: #777 }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font: 13px/1.4 ui-monospace, monospace }
.example { margin: .6rem 0 .8rem; padding-left: .8rem; border-left: 3px solid #ddd }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd } ins { background: #16351f } del { background: #46201d } }
</style></head><body>
<h1>{{ d.old }} → {{ d.new }}</h1>

{% macro example(table, e) %}<div class="example"><span class="{{ e.change }}">{{ e.change }}</span> <span class="dim">{{ e.key }}</span>
<table>{% for name, old, new in rows(table, e) %}<tr><td class="dim">{{ name }}</td>
{% if old is none %}<td colspan="2"><pre>{{ new }}</pre></td>{% else %}<td><pre>{{ old }}</pre></td><td><pre>{{ new }}</pre></td>{% endif %}</tr>
{% endfor %}</table></div>{% endmacro %}

{% if d.settings.params %}<h2>Parameters</h2><table><tr><th></th><th>{{ d.old }}</th><th>from</th><th>{{ d.new }}</th><th>from</th></tr>
{% for p in d.settings.params %}<tr><td>{{ p.path }}</td><td>{{ p.old|plain }}</td><td class="dim">{{ p.old_from or "" }}</td>
<td>{{ p.new|plain }}</td><td class="dim">{{ p.new_from or "" }}</td></tr>{% endfor %}</table>{% endif %}

{% for title, found in settings %}{% if found %}<h2>{{ title }}</h2><table><tr><th></th><th>{{ d.old }}</th><th>{{ d.new }}</th></tr>
{% for x in found %}<tr><td>{{ x.name }}</td><td>{{ x.old|short }}</td><td>{{ x.new|short }}</td></tr>{% endfor %}</table>{% endif %}{% endfor %}

<h2>Rows</h2><table><tr><th></th><th class="n">{{ d.old }}</th><th class="n">gone</th><th class="n">added</th><th class="n">changed</th><th class="n">{{ d.new }}</th></tr>
{% for name, t in d.tables.items() %}
<tr><td>{{ name }}</td><td class="n">{{ t.old|n }}</td><td class="n gone">{{ t.gone|n }}</td><td class="n added">{{ t.added|n }}</td>
<td class="n changed">{{ t.changed|n }}</td><td class="n">{{ t.new|n }}</td></tr>
{% for r in t.reasons if r.moved and t.reasons|length > 1 %}<tr class="sub"><td>{{ r.reason|plain }}</td><td class="n">{{ r.old|n }}</td>
<td class="n">{{ r.gone|n }}</td><td class="n">{{ r.added|n }}</td><td class="n">{% if r.came %}+{{ r.came|n }}{% endif %} {% if r.left %}−{{ r.left|n }}{% endif %}</td>
<td class="n">{{ r.new|n }}</td></tr>{% endfor %}{% endfor %}</table>
{% for name, side in d.only.items() %}<p class="dim">only {{ side }} has {{ name }}</p>{% endfor %}
{% for name, t in d.tables.items() if t.examples %}<details><summary>{{ name }}: examples</summary>
{% if t.columns %}<p class="dim">changed in {% for c, k in t.columns.items() %}{{ c }} {{ k|n }}{{ ", " if not loop.last }}{% endfor %}</p>{% endif %}
{% for e in t.examples %}{{ example(name, e) }}{% endfor %}</details>{% endfor %}

{% if d.majorities %}<h2>Majority answers</h2><p>{{ d.majorities.flipped|n }} of {{ d.majorities.prompts|n }} prompts that both answered flipped.</p>
{% for f in d.majorities.examples %}<div class="example"><pre>{{ f.problem or f.prompt_id }}</pre>
<del>{{ f.old }}</del> ({{ f.old_share|percent }}) → <ins>{{ f.new }}</ins> ({{ f.new_share|percent }})</div>{% endfor %}{% endif %}

{% if d.verdicts %}<h2>Verdicts</h2><table><tr><th>judge</th><th class="n">both</th><th class="n">fail → pass</th><th class="n">pass → fail</th><th class="n">on the same text</th></tr>
{% for v in d.verdicts %}<tr><td>{{ v.judge }}</td><td class="n">{{ v.both|n }}</td><td class="n">{{ v.to_pass|n }}</td><td class="n">{{ v.to_fail|n }}</td><td class="n">{{ v.same_text|n }}</td></tr>{% endfor %}</table>
{% for v in d.verdicts %}{% for e in v.examples %}{{ example("judgments", e) }}{% endfor %}{% endfor %}{% endif %}

{% if d.swaps and d.swaps.both %}<h2>Pairs</h2><p>{{ d.swaps.swapped|n }} of {{ d.swaps.both|n }} pairs that both have are swapped.</p>
{% for e in d.swaps.examples %}{{ example("pairs", e) }}{% endfor %}{% endif %}

{% if d.exams %}<h2>Exam</h2><table><tr><th></th><th class="n">items</th><th class="n">won</th><th class="n">lost</th><th class="n">{{ d.old }}</th><th class="n">{{ d.new }}</th><th class="n">change (95 %)</th><th class="n">p</th><th>test</th></tr>
{% for e in d.exams %}<tr><td>{{ e.member }}: {{ e.split }} {{ e.mode }}</td><td class="n">{{ e.items|n }}</td><td class="n">{{ e.won|n }}</td><td class="n">{{ e.lost|n }}</td>
<td class="n">{{ e.old|percent }}</td><td class="n">{{ e.new|percent }}</td><td class="n">{{ "%+.1f"|format(100 * e.change) }}{% if e.low is not none %} ({{ "%+.1f … %+.1f"|format(100 * e.low, 100 * e.high) }}){% endif %}</td>
<td class="n">{{ "%.2g"|format(e.p) }}</td><td>{{ e.test }}</td></tr>{% endfor %}</table>
{% for e in d.exams if e.examples %}<details><summary>{{ e.member }}: {{ e.split }} {{ e.mode }}: examples</summary>
{% for i in e.examples %}<div class="example">{% if i.new > i.old %}<span class="added">won</span>{% else %}<span class="gone">lost</span>{% endif %}
{{ i.old|percent }} → {{ i.new|percent }} <span class="dim">{{ i.item }}{% if i.level is not none %} level {{ i.level }}{% endif %}</span>
<pre>{{ i.problem or "" }}</pre>{% set pair = contrast(i.old_response, i.new_response) %}
<table><tr><th>{{ d.old }}</th><th>{{ d.new }}</th></tr><tr><td><pre>{{ pair[0] }}</pre></td><td><pre>{{ pair[1] }}</pre></td></tr></table></div>{% endfor %}</details>{% endfor %}{% endif %}
</body></html>
"""


def page(diff: Diff) -> str:
    """The page."""
    environment = Environment(autoescape=True, trim_blocks=True)
    environment.filters |= {
        "n": "{:,}".format,
        "percent": lambda x: f"{100 * x:.1f} %",
        "plain": plain,
        "short": _short,
    }
    s = diff.settings
    settings = {
        "Lineage": s.lineage, "Strategies": s.strategies, "Models": s.models, "Modules": s.code, "Files": s.files,
        "Libraries": s.libraries,
    }  # fmt: skip
    template = environment.from_string(PAGE)
    return template.render(d=diff, settings=settings.items(), rows=_rows, contrast=contrast)


def _short(value: str | None) -> str:
    """A name, or the first digits of a digest."""
    return ABSENT if value is None else value[:DIGEST] if len(value) == 64 else value


def _rows(table: str, example: Any) -> list[tuple[str, Markup | None, Markup]]:
    """Columns of an example as (name, old, new); old is None where only one side has the row."""
    if example.old and example.new:
        return [(c, *contrast(example.old[c], example.new[c])) for c in example.columns]
    row = example.new or example.old or {}
    return [(c, None, escape(_text(row[c]))) for c in compared(TABLES[table]) if row.get(c) is not None]


def _text(value: Any) -> str:
    return plain(value).replace("⏎", "\n")[:LONGEST]


def contrast(old: Any, new: Any) -> tuple[Markup, Markup]:
    """Both texts, escaped, with the words marked that differ."""
    words = [_text(value).split(" ") for value in (old, new)]
    sides: tuple[list[Markup], list[Markup]] = ([], [])
    for kind, a, b, c, d in difflib.SequenceMatcher(None, *words, autojunk=False).get_opcodes():
        for side, tag, found in zip(sides, ("del", "ins"), (words[0][a:b], words[1][c:d]), strict=True):
            text = escape(" ".join(found))
            if found:
                side.append(text if kind == "equal" else Markup(f"<{tag}>{text}</{tag}>"))
    return Markup(" ").join(sides[0]), Markup(" ").join(sides[1])
