"""One page on all rounds, in one file that opens from disk: `flywheel report --html FILE`.

It answers in this order: which round is champion, is it better, by how much and how sure; what data made it, what was
dropped and why; how good the judges are; what the samples look like; what differs between the last round and its parent.
`_page_rounds.py`, `_page_judges.py`, `_page_rows.py` and `_page_samples.py` hold the sections, each a function of `Data`.
"""

from collections.abc import Callable
from pathlib import Path

from markupsafe import Markup

from tasks.core import labels, store
from tasks.project.edit import STATE
from tasks.project.params import FILE
from tasks.views import _page_base as base
from tasks.views import _page_judges, _page_rounds, _page_rows, _page_samples, catalog
from tasks.views._page_data import Data, Known, Section, opened

SECTIONS: tuple[Callable[[Data], Section], ...] = (
    _page_rounds.tree,
    _page_rounds.accuracy,
    _page_rounds.at_k,
    _page_rows.exploration,
    _page_judges.judges,
    _page_rows.funnels,
    _page_rows.gap,
    _page_rows.lengths,
    _page_rows.entropy,
    _page_samples.samples,
    _page_samples.difference,
    _page_rows.costs,
    _page_samples.figures,
)
"""In the order of the page."""
KEPT = Path(STATE) / "page.html"
"""The page as it was after the last run."""
SOURCES = (FILE, "data/round=*/manifests/*.json", "data/decisions/*", f"{labels.FOLDER}/*")
"""Files that are newer than the kept page where it is old."""


def show(root: Path, file: Path, whole: bool = False) -> None:
    """Writes the page to a file, and prints its name. It replaces an older page, and no other file. With `whole` it shows all
    rounds.

    Raises:
        FlywheelError: when the file cannot be written, belongs to the project, or is no page.
    """
    base.refuse(root, file)
    base.write(root, file, html(root, whole))
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB; open it in a browser")


def keep(root: Path, known: Known | None = None) -> Path:
    """The kept page, made anew where something was made since. `known` is what the caller knows of the rounds.

    Raises:
        StoreError: when a file of a round is missing or damaged.
    """
    page = root / KEPT
    newest = max((p.stat().st_mtime_ns for pattern in SOURCES for p in root.glob(pattern)), default=0)
    if not page.is_file() or page.stat().st_mtime_ns < newest:
        page.parent.mkdir(exist_ok=True)
        text = html(root, known=known)
        with base.replacing(page, b"<!doctype") as new:
            new.write_text(text, encoding="utf-8")
    return page


def html(root: Path, whole: bool = False, known: Known | None = None) -> str:
    """The page, of one version of every round, even if a stage commits meanwhile. It shows the rounds that the table of the
    rounds shows, or with `whole` all.

    Raises:
        ParamsError: when the folder is no project.
        StoreError: when a file of a round is missing or damaged.
    """
    return catalog.consistently(root, lambda: _html(root, whole, known))


def _html(root: Path, whole: bool, known: Known | None) -> str:
    with store.one_look(), opened(root, whole, known) as data:
        title = data.pipeline.campaign.name
        if not data.facts:
            text = "Nothing has been made yet; `flywheel campaign` runs the rounds of params.yaml."
            return base.document(title, Markup("<h1>{}</h1><p>{}</p>").format(title, text))
        sections = [section(data) for section in SECTIONS]
        return base.document(title, base.render("report.html", head=_page_rounds.summary(data), sections=sections))


__all__ = ["SECTIONS", "Data", "Known", "Section", "html", "keep", "opened", "show"]
