"""What models wrote stands in a page as text, whatever it is."""

import html.parser
import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tasks.core.errors import FlywheelError
from tasks.views import _page_base as base

ANY = st.text(st.characters(codec=None, exclude_categories=()))
"""Every character, lone surrogates among them."""
HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)>\x1b[2J\u202eabc\u200f\x00\x00\ud800\u2028\ufeff&amp;'\""
)
MARK = re.compile(r"U\+([0-9A-F]{4,6})(?:×(\d+))?")


class Reader(html.parser.HTMLParser):
    """Tags and texts of a piece of HTML; marks are turned back into what they stand for."""

    def __init__(self, source):
        super().__init__(convert_charrefs=True)
        self.tags, self.text, self.stack = [], "", []
        self.feed(str(source))
        self.close()

    def handle_starttag(self, tag, attrs):
        assert not attrs
        self.tags.append(tag)
        self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack[-1:] == ["i"]:
            code, count = MARK.fullmatch(data).groups()
            data = chr(int(code, 16)) * int(count or 1)
        self.text += data


@given(ANY)
@example(HOSTILE)
def test_every_text_can_be_read_back_and_brings_no_tag(text):
    source = base.visible(text)
    read = Reader(source)
    assert read.text == text
    assert set(read.tags) <= {"i"}
    assert not [
        c for c in source if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in base.HARMLESS
    ]
    source.encode("utf-8")


@given(ANY, st.integers(0, 20))
def test_a_cut_text_says_how_long_the_whole_is(text, limit):
    shown = base.text(text, limit)
    assert shown.startswith("<bdi>")
    assert shown.endswith("</bdi>")
    assert (f"{len(text):,} characters" in shown) == (len(text) > limit)
    assert len(Reader(shown).tags) <= limit + 2


def test_a_long_line_is_cut():
    shown = base.text("<" * 1_000_000)
    assert len(shown) < 10 * base.LONGEST
    assert "4,000 of 1,000,000 characters" in shown
    assert "2 of 1,000,000" in base.text("ab", 2, length=1_000_000), "where the query has cut it"


def test_every_value_of_a_template_is_escaped():
    made = base.environment().from_string("<p>{{ a }} {{ b }} {{ c|n }} {{ c|percent }}</p>")
    read = Reader(made.render(a=HOSTILE, b=None, c=0.5))
    assert set(read.tags) == {"p", "i"}
    assert read.text == f"{HOSTILE}  0.5 50.0 %"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (3.0, "3"), (0.12345, "0.123"), (12345.6, "12,346"), (-0.5, "-0.5"), (None, "–"), (float("nan"), "nan")],
)
def test_numbers(value, shown):
    assert base.number(value) == shown


def test_a_title_may_hold_anything():
    assert "<title>a&lt;b&gt;��</title>" in base.document("a<b>\x1b\u202e", base.EMPTY)


# Files


@pytest.fixture
def root(tmp_path):
    (tmp_path / "project/data/round=r1").mkdir(parents=True)
    return tmp_path / "project"


def test_a_page_replaces_a_page(root, tmp_path):
    for text in ("one", "two"):
        base.write(root, tmp_path / "page.html", base.document(text, base.EMPTY))
    assert "<title>two" in (tmp_path / "page.html").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["page.html", "project"]


@pytest.mark.parametrize("content", ["mine", "<!doctype html><title>mine</title>"])
def test_a_page_replaces_nothing_else(root, tmp_path, content):
    (tmp_path / "mine.html").write_text(content)
    with pytest.raises(FlywheelError, match="another kind of file"):
        base.write(root, tmp_path / "mine.html", base.document("x", base.EMPTY))
    assert (tmp_path / "mine.html").read_text() == content


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("project/data/round=r1/x.html", "project's own"),
        ("nowhere/x.html", "no folder"),
        ("project", "folder or device"),
    ],
)
def test_places_without_a_page(root, tmp_path, name, words):
    with pytest.raises(FlywheelError, match=words):
        base.write(root, tmp_path / name, base.document("x", base.EMPTY))
