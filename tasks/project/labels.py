"""Writes people's labels of answers: who labels, and their file in `data/labels`."""

import getpass
import json
import os
import re
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

from tasks.core import labels
from tasks.core.errors import FlywheelError
from tasks.core.labels import COLUMNS, FOLDER, SOURCES, SUFFIX, VERDICTS, Label

LOCK = Path(".flywheel/labels.lock")
MERGE = f"*{SUFFIX} merge=union\n"
"""Of two branches git keeps the lines of both; the reader takes the later label of a row."""
MAX_NOTE = 10_000
"""Characters of a note."""


def person(root: Path) -> str:
    """Who labels: `Ada Lovelace <ada@example.org>` from git's `user.name` and `user.email`; the user of the operating system
    where git knows nobody.
    """
    name, email = (_git_config(root, f"user.{key}") for key in ("name", "email"))
    return " ".join(filter(None, [name, email and f"<{email}>"])) or user()


def user() -> str:
    """Name of the operating system's user. A container may run as a number that has none: `unnamed user 1000`."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"unnamed user {os.getuid()}"


def _git_config(root: Path, key: str) -> str:
    try:
        done = subprocess.run(["git", "config", key], cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git
        return ""
    return " ".join(done.stdout.split())


def file_of(root: Path, person: str) -> Path:
    """The file of a person's labels, named after their address, else after their name."""
    address = re.search(r"<([^<>]+)>", person)
    name = re.sub(r"[^\w.@+-]+", "-", (address[1] if address else person).lower()).strip(".-")
    return root / FOLDER / f"{name or 'person'}{SUFFIX}"


def write(
    root: Path,
    person: str,
    *,
    round: str,
    source: str,
    id: str,
    prompt_id: str | None,
    digest: str,
    label: str | None,
    note: str = "",
    time: str | None = None,
) -> Label | None:
    """Writes a person's label of a row, in the place of their earlier one, atomically. Without a label and a note the earlier
    one is removed, and None is returned. `time` is when it was given (ISO 8601, UTC), by default now.

    Raises:
        FlywheelError: for a label that is neither right nor wrong, another table than those with answers, a note that is too
            long, or a file of labels that cannot be read: it is left as it is.
    """
    if label not in (None, *VERDICTS):
        raise FlywheelError(f"a label is {' or '.join(VERDICTS)}, not {label!r}")
    if source not in SOURCES:
        raise FlywheelError(f"rows of {source!r} are not labelled, but answers: {', '.join(SOURCES)}")
    note = note.replace("\r\n", "\n").strip()
    if len(note) > MAX_NOTE:
        raise FlywheelError(f"a note has {len(note):,} characters; at most {MAX_NOTE:,} are kept")
    time = time or datetime.now(UTC).isoformat(timespec="milliseconds")
    new = Label(round, source, id, prompt_id, label, note, digest, person, time)  # type: ignore[arg-type]

    def change(rows: dict[tuple[str, ...], Label]) -> None:
        rows.pop(new.key, None)
        if new.label or new.note:
            rows[new.key] = new

    _rewrite(root, file_of(root, person), change)
    return new if new.label or new.note else None


def _rewrite(root: Path, file: Path, change: Callable[[dict[tuple[str, ...], Label]], None]) -> None:
    lock = root / LOCK
    lock.parent.mkdir(exist_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        rows: dict[tuple[str, ...], Label] = {label.key: label for label in labels.read(file)}
        change(rows)
        attributes = file.parent / ".gitattributes"
        if not attributes.exists():
            _put(attributes, MERGE)
        _put(file, "".join(_line(rows[key]) for key in sorted(rows)))


def _put(file: Path, text: str) -> None:
    new = file.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(file)


def _line(label: Label) -> str:
    values = {name: value for name in COLUMNS if (value := getattr(label, name))}
    return json.dumps(values, ensure_ascii=False) + "\n"
