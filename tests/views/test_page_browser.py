"""The pages in a real browser: light and dark, wide and as narrow as a phone, with whatever a model wrote."""

import shutil

import polars as pl
import pytest
from test_page import replace

from tasks.core import store
from tasks.views import _page_base as base
from tasks.views import _page_charts as charts
from tasks.views import diff, page

HOSTILE = (
    "</pre></style><script>window.planted = 1; alert(1)</script><img src=https://example.org/x.png onerror='alert(2)'>"
    "<iframe src=https://example.org></iframe><a href='javascript:alert(3)'>x</a>\x1b[2J\x1b[31m\u202edesrever\u200f\x00\x07"
)
LINE = "w" * 1_000_000
TEXTS = {
    "responses": ["response", "answer"],
    "prompts": ["problem"],
    "judgments": ["rationale"],
    "critiques": ["critique"],
    "evals": ["response", "problem"],
}
VIEWS = [(width, scheme) for width in (1280, 400) for scheme in ("light", "dark")]
OVERLAPS = """() => {
    const found = [];
    for (const svg of document.querySelectorAll('figure svg')) {
        const box = svg.getBoundingClientRect(), name = svg.querySelector('title').textContent;
        const texts = [...svg.querySelectorAll('text')].map(t => [t.textContent.trim(), t.getBoundingClientRect()]);
        for (const [i, [text, a]] of texts.entries()) {
            if (a.left < box.left - 1 || a.right > box.right + 1 || a.top < box.top - 1 || a.bottom > box.bottom + 1)
                found.push(`${name}: ${text} is cut off`);
            for (const [other, b] of texts.slice(i + 1))
                if (a.left + 1 < b.right && b.left + 1 < a.right && a.top + 3 < b.bottom && b.top + 3 < a.bottom)
                    found.push(`${name}: ${text} lies on ${other}`);
        }
    }
    return found;
}"""
CONTRAST = """() => {
    const rgb = s => s.match(/[\\d.]+/g).map(Number);
    const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const under = e => { for (; e; e = e.parentElement) {
        const c = rgb(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
    const low = new Set();
    for (const e of document.querySelectorAll('body *')) {
        if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) || ['TITLE', 'DESC', 'title', 'desc'].includes(e.tagName)) continue;
        const style = getComputedStyle(e), ink = rgb(e instanceof SVGElement ? style.fill : style.color);
        const [a, b] = [light(ink), light(under(e))], ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5) low.add(`${e.tagName}.${e.className.baseVal ?? e.className} ${ratio.toFixed(2)} ${e.textContent.trim().slice(0, 20)}`);
    }
    return [...low];
}"""


@pytest.fixture(scope="module")
def planted(campaign, tmp_path_factory):
    """Both pages of a project in which models wrote the worst."""
    root = tmp_path_factory.mktemp("planted") / "project"
    shutil.copytree(campaign, root, symlinks=True)
    for table, columns in TEXTS.items():
        rows = store.read(root, "r2", table)
        worst = [LINE if n % 7 == 3 else f"{HOSTILE}{n % 3}" for n in range(len(rows))]
        texts = [pl.when(pl.col(c).is_not_null()).then(pl.Series(worst)).alias(c) for c in columns]
        replace(root, "r2", table, rows.with_columns(texts))
    pages = {"page": root.parent / "page.html", "diff": root.parent / "diff.html"}
    page.show(root, pages["page"])
    diff.show(root, "r1", "r2", html=pages["diff"])
    return pages


@pytest.fixture
def opened(browser, planted, request):
    """A page as it looks at a width and in a scheme, with all that it did."""
    name, width, scheme = request.param
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab.did = []
    tab.on("console", lambda message: tab.did.append(f"console: {message.text}"))
    tab.on("pageerror", lambda error: tab.did.append(f"error: {error}"))
    tab.on("request", lambda asked: tab.did.append(asked.url))
    tab.on("dialog", lambda dialog: (tab.did.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    tab.goto(planted[name].as_uri())
    yield tab
    tab.close()


every = pytest.mark.parametrize("opened", [(n, *v) for n in ("page", "diff") for v in VIEWS], indirect=True)


@every
def test_nothing_runs_loads_or_overflows(opened, planted):
    opened.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert [done for done in opened.did if done not in [p.as_uri() for p in planted.values()]] == []
    assert (
        opened.evaluate(
            "document.scripts.length + document.querySelectorAll('img, iframe, a[href^=javascript]').length"
        )
        == 0
    )
    assert opened.evaluate("typeof window.planted") == "undefined"
    assert opened.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert "<script>window.planted" in opened.inner_text("body")
    assert "U+202E" in opened.inner_text("body")
    assert "of 1,000,000 characters" in opened.inner_text("body")


@every
def test_every_text_can_be_read(opened):
    opened.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert opened.evaluate(CONTRAST) == []


@pytest.mark.parametrize("opened", [("page", *view) for view in VIEWS], indirect=True)
def test_no_chart_is_cut_or_overlaps(opened):
    assert opened.evaluate("document.querySelectorAll('figure svg').length") > 10
    assert opened.evaluate(OVERLAPS) == []


@pytest.mark.parametrize("width", [1280, 400])
def test_charts_of_any_values_and_names_hold_their_texts(browser, tmp_path, width):
    names = ["r0", "a_very_long_name_of_a_round", "r2", "wwwwwwwwwwwwwwwwwwwwww", "r4", r"<b>$\bad$"]
    series = [
        charts.Series(name, n, [charts.Point(k, 0.5 + n / 1e4, 0.1, 1.0) for k in (1, 2, 4, 8)])
        for n, name in enumerate(names)
    ]
    values = [charts.Value(name, n, charts.Point(0, 1e6 * 10**n, None, None)) for n, name in enumerate(names)]
    spreads = [charts.Spread(name, n, -5e6, -1, 0, 1, 5e6, 0, 10**9) for n, name in enumerate(names)]
    steps = [charts.Step("a step with a very long name", 10**9, 10**9 - 1), charts.Step("none", 5, 0)]
    rows = [charts.Series(s.name, s.colour, [charts.Point(n, p.y) for n, p in enumerate(s.points)]) for s in series]
    drawn = [
        charts.lines("lines", series, "k", "%", doubling=True),
        charts.lines("one", [charts.Series("r0", 0, [charts.Point(3, 0.0)])], "score, %", "%", diagonal=True),
        charts.forest("forest", values, "tokens"),
        charts.ranges("ranges", spreads, "characters"),
        charts.dots("dots", ["a stage of some name", "b", "c", "d"], rows, "tokens"),
        charts.funnel("funnel", steps, 1),
    ]
    body = base.render("charts.html", intro="", rows=[drawn])
    (tmp_path / "charts.html").write_text(base.document("charts", body))
    tab = browser.new_page(viewport={"width": width, "height": 900})
    tab.goto((tmp_path / "charts.html").as_uri())
    assert tab.evaluate(OVERLAPS) == []
    assert tab.evaluate(CONTRAST) == []
    assert r"<b>$\bad$" in tab.locator("figure svg").first.text_content()
    tab.close()


@pytest.mark.parametrize("opened", [("page", 400, "dark")], indirect=True)
def test_sections_and_tables_are_reached_by_keyboard(opened):
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.className") == "scroll", "the table of gains"
    opened.get_by_role("link", name="Judges").press("Enter")
    assert opened.url.endswith("#judges")
    summary = opened.locator("#judges ~ .charts summary").first
    summary.press("Enter")
    assert summary.evaluate("s => s.parentElement.open")


def test_colours_follow_the_scheme(browser, planted):
    seen = []
    for scheme in ("light", "dark"):
        tab = browser.new_page(color_scheme=scheme)
        tab.goto(planted["page"].as_uri())
        seen.append(
            tab.evaluate("""() => [getComputedStyle(document.body).backgroundColor,
            getComputedStyle(document.querySelector('figure svg text')).fill]""")
        )
        tab.close()
    assert seen[0][0] != seen[1][0]
    assert seen[0][1] != seen[1][1]
