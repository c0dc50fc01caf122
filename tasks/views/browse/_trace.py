"""A row with all its columns, and its lineage both ways, for one prompt's rows in a large project.

All that is made of an answer has the id of its prompt, by which most tables are sorted: with it the lineage reads a few
thousand rows where it would read all.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import duckdb

from tasks.core.errors import FlywheelError, UnknownName
from tasks.core.tables import TABLES
from tasks.views._lineage import IDENTIFIED, Key, Lineage, Step
from tasks.views._page_base import LONGEST
from tasks.views.browse._live import Live, Row
from tasks.views.browse._prompt import NoRow, row_where
from tasks.views.trace import FACTS, MAX_ROWS, PLAIN, ROLES, ROLES_DOWN, TEXTS, Trained, trained_in

LINE = 200
"""Characters of a text that the tree shows."""


class Nearby(Lineage):
    """The lineage of the rows of one prompt. Of a table that knows the prompts of its rows, those of this one are read once, and
    looked through in memory.
    """

    def __init__(self, con: duckdb.DuckDBPyConnection, prompt: str | None) -> None:
        super().__init__(con)
        self.stored, self.prompt, self.near = con, prompt, duckdb.connect()
        self.read: set[str] = set()

    def select(self, table: str, where: str, ids: list[str]) -> list[Step]:
        """The rows of a table that a predicate over `$ids` holds for; where it knows the prompt of a row, of this one alone."""
        near = self.prompt is not None and "prompt_id" in TABLES[table].schema.names
        if near and ids and table not in self.read:
            rows = self.stored.sql(f"from {table} where prompt_id = $prompt", params={"prompt": self.prompt})
            self.near.register(table, rows.to_arrow_table())
            self.read.add(table)
        self.con = self.near if near else self.stored
        return super().select(table, where, ids)


@dataclass
class Node:
    """A row of the lineage, as the page draws it."""

    key: Key
    role: str
    facts: list[str]
    texts: list[tuple[str, str, int]]
    """(column, its beginning, its length)."""
    prompt: str | None
    above: bool = False
    """Whether it stands above already."""
    beyond: list["Node"] = field(default_factory=list)
    more: dict[str, int] = field(default_factory=dict)
    """Rows that are left out, by table."""


@dataclass
class RowPage:
    """A row, and where it comes from and went."""

    key: Key
    row: Row
    prompt: str | None
    made_from: Node | None = None
    went_into: Node | None = None
    writers: list[Row] = field(default_factory=list)
    trained: list[Trained] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def row_page(live: Live, round: str, table: str, id: str, prompt: str = "", full: bool = False) -> RowPage:
    """A row and its lineage. Where a file of the project is damaged, the row alone, and what is damaged.

    Raises:
        UnknownName: for a round or table that does not exist.
        NoRow: for a row that the table has not.
    """
    live.check_round(round)
    if table not in IDENTIFIED:
        raise UnknownName("table", table, IDENTIFIED)
    where, given = row_where(table, id, prompt)
    rows = live.select(round, table, "*", where, **given)
    if not rows:
        raise NoRow(f"{table} of {round} have no row with the id {id!r}; a search for it looks in all tables")
    page = RowPage(Key(table, round, id), rows[0], id if table == "prompts" else rows[0].get("prompt_id"))
    try:
        _trace(live, page, full)
    except FlywheelError as error:
        page.notes.append(f"its lineage cannot be read: {error}")
    return page


def _trace(live: Live, page: RowPage, full: bool) -> None:
    try:
        lineage = Nearby(live.catalog(), page.prompt)
        start = [Step(page.key, {"round": page.key.round} | page.row)]
        up, down = lineage.made_from(start)[0], lineage.went_into(start)[0]
    except duckdb.Error as error:
        raise FlywheelError(str(error)) from None
    authors: dict[str, list[str]] = {}
    for name, row in lineage.rounds.items():
        authors.setdefault(row["model"] or "", []).append(name)
    steps = list(_every(up))
    page.made_from, page.went_into = _node(up, ROLES, authors, full), _node(down, ROLES_DOWN, authors, full)
    digests = {step.row.get("model") for step in steps} - {None}
    page.writers = [row for row in lineage.rounds.values() if row["model"] in digests]
    page.trained = trained_in(live.root, lineage, _every(down))


def _every(step: Step) -> Iterator[Step]:
    yield step
    for other in step.beyond or ():
        yield from _every(other)


def _node(step: Step, roles: dict[str, str], authors: dict[str, list[str]], full: bool) -> Node:
    table, row = step.key.table, step.row
    texts = [(name, text[:LINE], len(text)) for name in TEXTS if (text := _one_text(row.get(name)))]
    prompt = step.key.id if table == "prompts" else row.get("prompt_id")
    facts = [] if not row.get("model") else [f"by {'/'.join(authors.get(row['model'], [])) or row['model'][:16]}"]
    facts += [
        f"{name} {_plain(value)}"
        for name in FACTS.get(table, ())
        if (value := row.get(name)) is not None and (name, value) not in PLAIN
    ]
    node = Node(step.key, roles.get(step.link, ""), facts, texts, prompt, step.beyond is None)
    shown: Counter[str] = Counter()
    for other in step.beyond or ():
        shown[other.key.table] += 1
        if full or shown[other.key.table] <= MAX_ROWS:
            node.beyond.append(_node(other, roles, authors, full))
    node.more = {} if full else {name: count - MAX_ROWS for name, count in shown.items() if count > MAX_ROWS}
    return node


def _one_text(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(turn["content"] or "" for turn in value)
    return value or ""


def _plain(value: Any) -> str:
    return (
        {True: "yes", False: "no"}[value]
        if isinstance(value, bool)
        else f"{value:.4g}"
        if isinstance(value, float)
        else str(value)
    )


def columns(page: RowPage) -> Iterator[tuple[str, str, Any, int]]:
    """The columns of a row: name, kind (`prompt`, `chat`, `text`, `value`), value, length of a text."""
    for name in TABLES[page.key.table].schema.names:
        value = page.row[name]
        if value is None or value == []:
            continue
        if isinstance(value, list) and isinstance(value[0], dict) and "role" in value[0]:
            turns = [(turn["role"], (turn["content"] or "")[:LONGEST], len(turn["content"] or "")) for turn in value]
            yield name, "chat", turns, sum(length for _, _, length in turns)
        elif isinstance(value, str) and (len(value) > 80 or "\n" in value or name in TEXTS):
            yield name, "text", value[:LONGEST], len(value)
        else:
            yield name, "prompt" if name == "prompt_id" else "value", value, 0
