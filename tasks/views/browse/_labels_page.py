"""What the pages of rounds and of labels show, and a random answer to label."""

import random
from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate

from tasks.core.errors import FlywheelError
from tasks.core.labels import Label
from tasks.views._labels import ByLabels, by_labels
from tasks.views.browse._live import Live
from tasks.views.browse._search import DROPPED, Filter, options

LABELS = 100
"""Of a page."""


@dataclass(frozen=True)
class Round:
    """A base or round, as its page shows it."""

    name: str
    about: list[str]
    tables: dict[str, int]
    """Rows, by table; those without rows are left out."""
    reasons: dict[str, int]
    """Of its responses: kept, and dropped by reason, the most frequent first."""
    pass_at_1: float | None
    promoted: bool | None
    labels: int
    damage: list[str]


def rounds(live: Live) -> list[Round]:
    """Every base and round, in the order of params.yaml."""
    labels = Counter(label.round for label in live.labels()[0])
    return [
        live.steady([name], lambda n=name, b=block: _round(live, n, b, labels[n]))
        for name, block in live.blocks().items()
    ]


def _round(live: Live, name: str, block: dict[str, object], labels: int) -> Round:
    metrics, stored = live.metrics(name), live.tables(name)
    known = options(live, Filter(name))["reason"]
    reasons = sorted(
        ((r, n or 0) for r, n in known.items() if r != DROPPED), key=lambda pair: (pair[0] != "kept", -pair[1])
    )
    about = [f"{key} {block[key]}" for key in ("parent", "recipe", "anchor") if block.get(key)]
    return Round(
        name, about, {t: s.rows for t, s in stored.items() if s.rows}, dict(reasons), metrics.get("pass_at_1"),
        bool(metrics["promoted"]) if "promoted" in metrics else None, labels, [d for s in stored.values() for d in s.damage],
    )  # fmt: skip


@dataclass(frozen=True)
class Said:
    """A page of people's labels."""

    labels: list[Label]
    """The latest first."""
    total: int
    people: dict[str, Counter[str]]
    """Labels of each person: right, wrong, notes alone."""
    notes: list[str] = field(default_factory=list)


def labels(live: Live, start: int = 0) -> Said:
    """Labels from the one numbered `start`."""
    every, notes = live.labels()
    every.sort(key=lambda label: (label.time, label.key), reverse=True)
    people: dict[str, Counter[str]] = {}
    for label in every:
        people.setdefault(label.person, Counter())[label.label or "note"] += 1
    return Said(every[start : start + LABELS], len(every), people, notes)


def judges(live: Live) -> list[ByLabels]:
    """The judges that labels measure.

    Raises:
        StoreError: when a stored file is damaged.
    """
    return live.steady(live.blocks(), lambda: by_labels(live.catalog(), live.labels()[0]))


def draw(live: Live, round: str) -> tuple[str, str]:
    """(prompt, response) of an answer of a round, drawn at random.

    Raises:
        FlywheelError: when the round has no responses.
    """
    stored = live.table(round, "responses")
    if stored is None or not stored.rows:
        raise FlywheelError(f"{round} has no responses yet; `flywheel run {round}` makes them")
    row = random.randrange(stored.rows)
    part = next(n for n, end in enumerate(accumulate(stored.counts)) if row < end)
    inside = row - sum(stored.counts[:part])
    [found] = live.query(
        f"select prompt_id, id from {stored.sql(stored.parts[part : part + 1])} where file_row_number = $row",
        row=inside,
    )
    return found["prompt_id"], found["id"]
