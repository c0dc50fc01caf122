"""Looks for an id, or the first digits of one, in every table of every round; a part of them at a time."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tasks.views._lineage import IDENTIFIED
from tasks.views.browse._live import Live, Stored
from tasks.views.browse._search import MOST, SECONDS

NEAR = 4
"""First digits that near matches of an id share with it."""
LISTED = 20


@dataclass
class Ids:
    """Rows whose id begins with some digits."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)
    """(table, round, id)."""
    near: list[tuple[str, str, str]] = field(default_factory=list)
    """Where there are none: rows whose first digits are the same."""
    next: str = ""
    """Where to go on, when not all tables were read."""


def find_ids(live: Live, prefix: str, after: str = "") -> Ids:
    """Rows of all rounds whose id begins with a prefix: the small tables first, as many as time allows."""
    tables = sorted(
        (s for name in live.blocks() for s in live.tables(name).values() if s.table in IDENTIFIED and s.parts),
        key=lambda s: (s.rows, s.round, s.table),
    )
    at, _, part = after.partition("-")
    found, clock, start = Ids(), time.monotonic(), int(part) if part.isdigit() else 0
    for number, stored in list(enumerate(tables))[int(at) if at.isdigit() else 0 :]:
        for first in range(start, len(stored.parts), MOST):
            if time.monotonic() - clock > SECONDS:
                found.next = f"{number}-{first}"
                return _nearest(found, prefix)
            _gather(live, stored, stored.parts[first : first + MOST], prefix, found)
        start = 0
    return _nearest(found, prefix)


def _gather(live: Live, stored: Stored, parts: Sequence[Path], prefix: str, found: Ids) -> None:
    if stored.table == "filtered":  # its ids are those of the responses
        return
    sql = f"select id from {stored.sql(parts)} where starts_with(id, $near) limit 1000"
    for row in live.query(sql, near=prefix[:NEAR]):
        hit = row["id"].startswith(prefix)
        (found.rows if hit else found.near).append((stored.table, stored.round, row["id"]))


def _nearest(found: Ids, prefix: str) -> Ids:
    def shared(row: tuple[str, str, str]) -> int:
        return next((n for n, (a, b) in enumerate(zip(row[2], prefix, strict=False)) if a != b), len(prefix))

    exact = [row for row in found.rows if row[2] == prefix]
    found = replace(found, rows=exact or found.rows)
    near = [] if found.rows else sorted(found.near, key=lambda row: (-shared(row), row[2]))
    return replace(found, rows=found.rows[:LISTED], near=near[:LISTED])
