"""People's labels of answers: is it right or wrong, and a note. A table in git, `data/labels/<person>.jsonl`, a line a label.

Each person has a file of their own, its lines sorted by row, so that the work of two people merges without a conflict, and
a diff shows which labels changed. What a label says is said of a text: `digest` holds the problem and the answer that the
person saw. A row that was made again with another text has another digest, and the label is not the new text's; the same
answer to the same problem in another round has the same digest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa

from tasks.core.errors import FlywheelError
from tasks.core.ids import content_id
from tasks.core.tables import Table

FOLDER = Path("data/labels")
SUFFIX = ".jsonl"
Verdict = Literal["right", "wrong"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
SOURCES = ("responses", "refinements", "evals")
"""Tables whose answers are labelled."""
COLUMNS = {
    "round": "the round of the labelled row",
    "source": "its table: `responses`, `refinements` or `evals`",
    "id": "its `id`",
    "prompt_id": "its prompt's `id`; the `item` of `evals`",
    "label": "`right` or `wrong`; null where there is only a note",
    "note": "what the person wrote beside it",
    "digest": "hash of the problem and the answer that the person saw",
    "person": "who labelled it, as git knows them",
    "time": "when, ISO 8601, UTC",
}
LABELS = Table(
    "labels",
    "People's labels of answers, from data/labels: right or wrong, and notes.",
    pa.schema([(name, pa.string()) for name in COLUMNS]),
    key=("person", "round", "source", "id"),
    docs=COLUMNS,
)
"""The table of labels. No stage writes it."""
REQUIRED = ("round", "source", "id", "digest", "person", "time")


@dataclass(frozen=True)
class Label:
    """What a person says of an answer."""

    round: str
    source: str
    id: str
    prompt_id: str | None
    label: Verdict | None
    note: str
    digest: str
    person: str
    time: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        """A person has one label of a row."""
        return self.round, self.source, self.id, self.person


def text_digest(problem: str | None, answer: str | None) -> str:
    """The digest of what is labelled: 16 hexadecimal digits of the sha256 of the problem and the answer, as
    `frames.ids("problem", "response")` makes them for a table.
    """
    return content_id(problem or "", answer or "")


def read(place: Path) -> list[Label]:
    """The labels of a folder, or of one file of it, by row and person. Of two lines for one row by one person, as a merge may
    leave them, the later label counts.

    Raises:
        FlywheelError: for a line that is no label, with the file and the line.
    """
    files = sorted(place.glob(f"*{SUFFIX}")) if place.is_dir() else [place] if place.is_file() else []
    latest: dict[tuple[str, str, str, str], Label] = {}
    for file in files:
        stat = file.stat()
        for label in _lines(file, (stat.st_mtime_ns, stat.st_size, stat.st_ino)):
            if label.key not in latest or latest[label.key].time <= label.time:
                latest[label.key] = label
    return [latest[key] for key in sorted(latest)]


def table(labels: Iterable[Label]) -> pa.Table:
    """Labels as the table `LABELS`."""
    rows = [vars(label) for label in labels]
    return pa.Table.from_pylist(rows, LABELS.schema) if rows else pa.Table.from_batches([], LABELS.schema)


def of_texts(labels: Iterable[Label]) -> dict[str, dict[str, Label]]:
    """What each person says of each text: digest → person → their latest label that is right or wrong."""
    latest: dict[str, dict[str, Label]] = {}
    for label in sorted((each for each in labels if each.label), key=lambda each: each.time):
        latest.setdefault(label.digest, {})[label.person] = label
    return latest


@lru_cache(maxsize=256)
def _lines(file: Path, _version: tuple[int, int, int]) -> tuple[Label, ...]:
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FlywheelError(f"{file} is not UTF-8 ({error}); restore it with `git checkout {file}`") from None
    lines = enumerate(text.split("\n"), 1)
    return tuple(_label(file, number, line) for number, line in lines if line.strip())


def _label(file: Path, number: int, line: str) -> Label:
    if line.startswith(("<<<<<<<", "=======", ">>>>>>>", "|||||||")):
        raise FlywheelError(
            f"{file}:{number} is the mark of a merge conflict; delete the marks and keep the lines of both sides: of two "
            "labels of a row the later one counts"
        )
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise FlywheelError(f"{file}:{number} is not JSON ({error}); mend the line or delete it") from None
    problem = _problem(row)
    if problem:
        raise FlywheelError(f"{file}:{number}: {problem}; mend the line or delete it")
    return Label(**{name: row.get(name) for name in COLUMNS} | {"note": row.get("note") or ""})


def _problem(row: Any) -> str | None:
    """What keeps a JSON value from being a label."""
    if not isinstance(row, dict):
        return "is no JSON object"
    if unknown := sorted(row.keys() - COLUMNS.keys()):
        return f"a label has no key {unknown[0]!r}; its keys are {', '.join(COLUMNS)}"
    if missing := [name for name in REQUIRED if not row.get(name)]:
        return f"has no {missing[0]!r}"
    if wrong := [name for name, value in row.items() if not isinstance(value, str | None)]:
        return f"{wrong[0]!r} is {row[wrong[0]]!r}, which is no text"
    if row.get("label") not in (None, *VERDICTS):
        return f"'label' is {row['label']!r}; it is one of {', '.join(VERDICTS)}, or null"
    if row["source"] not in SOURCES:
        return f"'source' is {row['source']!r}; it is one of {', '.join(SOURCES)}"
    return None
