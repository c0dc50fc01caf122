"""A diff as one page that needs no other file, and as a part of another page. Everything that a model wrote is escaped."""

import difflib
import re
from typing import Any

from markupsafe import Markup

from tasks.core.tables import TABLES
from tasks.views import _page_base as base
from tasks.views._diff_printing import DIGEST
from tasks.views._diff_tables import compared
from tasks.views._diff_text import ABSENT, words
from tasks.views.diff import Diff

WORD = re.compile(r"\S+\s*|\s+")
"""A word with the blanks after it."""


def page(diff: Diff) -> str:
    """The page."""
    return base.document(
        f"{diff.old} → {diff.new}", Markup("<h1>{} → {}</h1>{}").format(diff.old, diff.new, body(diff))
    )


def body(diff: Diff, level: int = 2) -> Markup:
    """The diff below a heading of its own; its parts have headings of this level."""
    s = diff.settings
    settings = {
        "Lineage": s.lineage, "Strategies": s.strategies, "Models": s.models, "Modules": s.code, "Files": s.files,
        "Libraries": s.libraries,
    }  # fmt: skip
    return base.render(
        "diff.html", d=diff, settings=settings.items(), rows=_rows, contrast=contrast, short=short, level=level
    )


def short(value: str | None) -> str:
    """A name, or the first digits of a digest."""
    return ABSENT if value is None else value[:DIGEST] if len(value) == 64 else value


def _rows(table: str, example: Any) -> list[tuple[str, Markup | None, Markup]]:
    """Columns of an example as (name, old, new); old is None where only one side has the row."""
    if example.old and example.new:
        return [(c, *contrast(example.old[c], example.new[c])) for c in example.columns]
    row = example.new or example.old or {}
    return [(c, None, base.text(words(row[c]))) for c in compared(TABLES[table]) if row.get(c) is not None]


def contrast(old: Any, new: Any) -> tuple[Markup, Markup]:
    """Both texts, escaped and cut, with the words marked that differ."""
    whole = [words(value) for value in (old, new)]
    pieces = [WORD.findall(text[: base.LONGEST]) for text in whole]
    sides: tuple[list[Markup], list[Markup]] = ([], [])
    for kind, a, b, c, d in difflib.SequenceMatcher(None, *pieces, autojunk=False).get_opcodes():
        for side, tag, run in zip(sides, ("del", "ins"), (pieces[0][a:b], pieces[1][c:d]), strict=True):
            text = "".join(run)
            word, blank = base.visible(text.rstrip()), base.visible(text[len(text.rstrip()) :])
            side.append(
                word + blank if kind == "equal" or not word else Markup(f"<{tag}>{{}}</{tag}>{{}}").format(word, blank)
            )
    marked = [Markup("").join(side) + base.cut(len(text)) for side, text in zip(sides, whole, strict=True)]
    return Markup("<bdi>{}</bdi>").format(marked[0]), Markup("<bdi>{}</bdi>").format(marked[1])
