"""`flywheel browse` as a person uses it: the command's own server, in a real browser, mostly by keyboard."""

import shutil

import browsing
import pytest
from browsing import prompt_id, response_id

from tasks.core import labels

WIDTHS, SCHEMES = (1280, 400), ("light", "dark")
PAGES = {
    "rounds": "/",
    "rows": "/rows?round=r1",
    "pairs of texts": "/rows?round=r1&table=judgments",
    "prompt": f"/prompt?round=r1&id={prompt_id(0)}",
    "row": f"/row?round=r1&table=responses&id={response_id(0, 1)}",
    "long row": f"/row?round=r1&table=responses&id={response_id(0, 3)}",
    "labels": "/labels",
    "not there": "/rows?round=r9",
}


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A project and the address of its server."""
    root = browsing.make(tmp_path_factory.mktemp("browsed"))
    with browsing.server(root) as (address, _):
        yield root, address


@pytest.fixture
def visit(running, browser):
    """Opens a page of the server as a visitor who has its address; errors on the page fail the test."""
    root, address = running
    shutil.rmtree(root / labels.FOLDER, ignore_errors=True)
    contexts, errors = [], []

    def open_page(path="/", width=1280, scheme="light", **how):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **how)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda m: errors.append(m.text) if "Content Security Policy" in m.text else None)
        page.goto(address)
        page.goto(address.partition("/?")[0] + path)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


def said(root):
    return [(e.id, e.label, e.note) for e in labels.read(root / labels.FOLDER)]


def keys(page, *names):
    for name in names:
        page.keyboard.press(name)


def test_without_the_token_the_browser_sees_nothing(running, browser):
    context = browser.new_context()
    answer = context.new_page().goto(running[1].partition("?")[0])
    assert answer.status == 403 and "r1" not in answer.text()
    context.close()


def test_rows_are_filtered_by_reason_and_judge(visit):
    page = visit("/rows")
    page.select_option("select[name=reason]", "score")
    page.select_option("select[name=judge]", "grader")
    page.select_option("select[name=verdict]", "pass")
    page.click("button:text-is('Filter')")
    assert page.locator(".rows > li").count() == 15
    assert page.locator(".rows > li").first.inner_text().startswith(response_id(1, 1))
    assert "dropped: score" in page.locator(".rows > li").first.inner_text()
    assert page.input_value("select[name=verdict]") == "pass"


def test_answers_of_a_prompt_stand_beside_each_other(visit):
    page = visit(f"/prompt?round=r1&id={prompt_id(3)}")
    boxes = [page.locator("article").nth(n).bounding_box() for n in range(4)]
    assert len({box["y"] for box in boxes}) == 1 and len({box["x"] for box in boxes}) == 4
    assert "The sum of 3 is off" in page.locator("article").nth(1).inner_text()
    page.click("summary:has-text('Refinement 0')")
    assert page.locator("text=Better 3").is_visible()


def test_an_answer_is_labelled_by_keyboard_alone(running, visit):
    root, _ = running
    page = visit("/rows?round=r1")
    keys(page, *["j"] * 6, "Enter")  # the sixth row: the second answer of the second prompt
    page.wait_for_url("**/prompt?**")
    assert page.evaluate("document.activeElement.id") == response_id(1, 1)
    with page.expect_navigation():
        keys(page, "w")
    assert said(root) == [(response_id(1, 1), "wrong", "")]
    assert page.evaluate("document.activeElement.id") == response_id(1, 1)
    keys(page, "k", "n")
    page.keyboard.type("just fine: j r w")
    keys(page, "Escape")
    with page.expect_navigation():
        keys(page, "r")
    assert sorted(said(root)) == [(response_id(1, 0), "right", "just fine: j r w"), (response_id(1, 1), "wrong", "")]
    page.reload()
    pressed = page.locator("button[aria-pressed=true]")
    assert [pressed.nth(n).inner_text() for n in range(pressed.count())] == ["Right", "Wrong"]
    assert page.locator(f"[id='{response_id(1, 0)}'] [name=note]").input_value() == "just fine: j r w"
    page.locator(f"[id='{response_id(1, 1)}']").focus()
    with page.expect_navigation():
        keys(page, "u")
    assert [label[0] for label in said(root)] == [response_id(1, 0)]


def test_without_scripts_tab_and_enter_are_enough(running, visit):
    root, _ = running
    page = visit(f"/prompt?round=r1&id={prompt_id(2)}", java_script_enabled=False)
    for _ in range(40):
        keys(page, "Tab")
        if page.locator("article button.right").first.evaluate("e => e === document.activeElement"):
            break
    keys(page, "Enter")
    page.wait_for_url(f"**#{response_id(2, 0)}")
    assert said(root) == [(response_id(2, 0), "right", "")]


def test_keys_go_to_the_next_prompt_and_back(visit):
    page = visit(f"/prompt?round=r1&id={prompt_id(4)}")
    with page.expect_navigation():
        keys(page, ".")
    assert prompt_id(5) in page.url
    with page.expect_navigation():
        keys(page, ",")
    assert prompt_id(4) in page.url
    keys(page, "?")
    assert page.locator("kbd").first.is_visible()


def test_a_search_finds_texts_and_ids_and_leads_to_a_trace(visit):
    page = visit("/rows?round=r1")
    keys(page, "/")
    page.keyboard.type("sum 12/1")
    keys(page, "Enter")
    page.wait_for_url("**/rows?**text=**")
    assert page.locator(".rows > li").count() == 1
    page.click(f".rows a:has-text('{response_id(12, 1)}')")
    page.locator("article").nth(1).locator("a:text-is('trace')").last.click()
    page.get_by_text("Made from").first.wait_for()
    shown = page.inner_text("main")
    assert "Made from" in shown and f"prompts r1 {prompt_id(12)}" in shown and "critiques r1" in shown
    page.fill("input[name=q]", prompt_id(7))
    keys(page, "Enter")
    page.locator("main").get_by_text("What is 7 + 7?").first.wait_for()


def test_what_a_model_wrote_runs_nowhere(visit):
    for path in PAGES.values():
        page = visit(path)
        assert page.title() != "owned"
        assert page.locator("img").count() == 0


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_pages_fit_the_screen_and_can_be_read(visit, name, width, scheme):
    page = visit(PAGES[name], width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(DIMMEST) >= 4.5


DIMMEST = """() => {
  const channel = (c) => { c /= 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
  const light = (rgb) => 0.2126 * channel(rgb[0]) + 0.7152 * channel(rgb[1]) + 0.0722 * channel(rgb[2]);
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const behind = (e) => {
    for (; e; e = e.parentElement) { const c = numbers(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c; }
    return [255, 255, 255];
  };
  const texts = [...document.querySelectorAll("body *")].filter((e) =>
    [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()) && e.getClientRects().length && e.tagName !== "OPTION");
  return Math.min(...texts.map((e) => {
    const [a, b] = [light(numbers(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  }));
}"""
"""The lowest contrast of any text with what is behind it (WCAG 2.2, 1.4.3: at least 4.5)."""
