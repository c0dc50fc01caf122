"""What every page shares: the frame, the stylesheet, and the escaping of what models wrote.

A page is one file that loads and runs nothing: its policy forbids it, and every value that a template prints is escaped,
with characters that cannot be seen, or that steer a terminal or the direction of writing, shown by their number.
"""

import unicodedata
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from tasks.core.errors import FlywheelError
from tasks.views._diff_text import ABSENT, plain
from tasks.views.catalog import refuse_own, replacing

LONGEST = 4000
"""Characters of a text that are shown."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""Content Security Policy: no script, nothing from elsewhere."""
GENERATOR = b'<meta name="generator" content="flywheel">'
HEAD = 2048
"""Bytes of a file among which a page of ours names its generator."""
TEMPLATES = Path(__file__).parent / "templates"
EMPTY = Markup("")
HARMLESS = "\n\t\u200c\u200d"
"""Characters that are not printable and change nothing around them: joiners are part of words and emoji."""


def document(title: str, body: Markup) -> str:
    """A whole page: the frame and the stylesheet around a body."""
    return str(render("page.html", title=plain(title), body=body, policy=POLICY, style=style()))


def style() -> Markup:
    """The stylesheet."""
    return Markup((TEMPLATES / "page.css").read_text(encoding="utf-8"))


def render(template: str, **values: Any) -> Markup:
    """A template of this folder, filled in."""
    return Markup(environment().get_template(template).render(**values))


@cache
def environment() -> Environment:
    """The templates; each value that one prints is escaped by `visible` unless it is Markup."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if hasattr(value, "__html__") else visible("" if value is None else str(value)),
    )
    made.filters |= {"n": number, "percent": percent, "text": text, "plain": plain}
    return made


def text(value: Any, limit: int = LONGEST, length: int | None = None) -> Markup:
    """A text that a model wrote: escaped, cut to `limit` characters, apart from the direction of what is around it.

    `length` is that of the whole text, where `value` is its beginning alone; a cut text says how long the whole is.
    """
    whole = ABSENT if value is None else str(value)
    return Markup("<bdi>{}{}</bdi>").format(visible(whole[:limit]), cut(length or len(whole), limit))


def cut(length: int, limit: int = LONGEST) -> Markup:
    """What stands after a text that was cut; nothing after a shorter one."""
    return Markup("<b>… {} of {} characters</b>").format(f"{limit:,}", f"{length:,}") if length > limit else EMPTY


def visible(value: str) -> Markup:
    """A text escaped for HTML. Controls, marks of direction, lone surrogates and the like stand as `<i>U+202E</i>`, a run of
    one of them as `<i>U+0000×9</i>`; line breaks and tabs stay.
    """
    if value.isprintable():
        return escape(value)
    parts = []
    for hidden, run in groupby(value, _hidden):
        if not hidden:
            parts.append(escape("".join(run)))
            continue
        for character, same in groupby(run):
            count = sum(1 for _ in same)
            parts.append(Markup("<i>U+{:04X}{}</i>").format(ord(character), f"×{count}" if count > 1 else ""))
    return EMPTY.join(parts)


def _hidden(character: str) -> bool:
    return not (character.isprintable() or character in HARMLESS or unicodedata.category(character) == "Zs")


def number(value: float | None) -> str:
    """With separators between thousands: 12,345; three digits of what is below 10 and no whole number."""
    if value is None:
        return ABSENT
    return f"{value:.3g}" if abs(value) < 10 and value != int(value) else f"{value:,.0f}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share in percent."""
    return ABSENT if value is None else f"{100 * value:.{digits}f} %"


def write(root: Path, file: Path, page: str) -> None:
    """Writes a page; it replaces an older page, and no other file.

    Raises:
        FlywheelError: when the file cannot be written, belongs to the project, or is no page of ours.
    """
    refuse(root, file)
    with replacing(file, b"<!doctype") as new:
        new.write_text(page, encoding="utf-8")


def refuse(root: Path, file: Path) -> None:
    """Refuses a file of the project's own, one that is no page of ours, and one in no folder: before a page is made that takes
    time.

    Raises:
        FlywheelError: naming it.
    """
    refuse_own(root, file)
    if not file.parent.is_dir():
        raise FlywheelError(f"{file} cannot be written: there is no folder {file.parent}")
    try:
        with file.open("rb") as stream:
            head = stream.read(HEAD)
    except OSError:  # it does not exist; what else it is, writing says
        return
    if head and GENERATOR not in head:
        raise FlywheelError(f"{file} is another kind of file and stays as it is; choose another name")
