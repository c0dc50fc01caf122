"""The check of `flywheel doctor` that is about the bucket of `data:`."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from tasks.core import commits, pointers
from tasks.core.errors import FlywheelError
from tasks.core.objects import Place
from tasks.project.params import Pipeline
from tasks.views._findings import Finding, broken, ok

SUBJECT = "data"
CONTENT = b"flywheel doctor"


def bucket(root: Path, pipeline: Pipeline | None) -> Iterator[Finding]:
    """Whether the bucket of the tables' parts can be written, read and deleted from, and creates an object once only."""
    try:
        place = pointers.bucket(root)
        if place is None:
            yield ok(SUBJECT, "parts are in the project's folder")
        else:
            yield _probe(place)
    except FlywheelError as error:
        yield broken(SUBJECT, str(error))


def _probe(place: Place) -> Finding:
    if not commits.creates_once(place):
        return broken(SUBJECT, commits.OVERWRITES.format(place.url), commits.OTHER_STORE)
    name = f"probe-{uuid4().hex}"
    place.put_once(name, CONTENT)
    try:
        if place.read(name) != CONTENT or place.entry(name) is None:
            return broken(SUBJECT, f"{place.url} does not give back what was put a moment ago", commits.OTHER_STORE)
    finally:
        place.delete(name)
    if place.entry(name) is not None:
        return broken(SUBJECT, f"{place.url} still has an object that was deleted", "`flywheel gc` cannot work there")
    return ok(SUBJECT, f"{place.url} can be written and read, and creates an object once only")
