"""Matches the rows of two rounds, table by table, and counts what was added, is gone and changed. DuckDB does it over the
Parquet parts, within a memory limit.

Ids are content hashes that take in the digest of the model, so of two rounds with different models no response has an id in
common. Rows are therefore matched by what they are about, their *place*:

    prompts                         their id, the content of the problem
    responses                       prompt, member, sample
    judgments                       the place of the response, judge
    filtered, critiques             the place of the response (and the member)
    refinements                     the place of the criticised response, member, sample
    pairs, preferences              member, prompt and the two texts, whichever is the chosen one
    training                        the texts: prompt, completion, tag
    evals                           member, item, split, mode, sample
    audits                          member, item, judge, truth
    measures, decisions             their key

Rows of one place, such as several critiques of one response, are numbered in the order of their ids, and matched by number.
A row that both rounds have is *changed* where a column differs. Ids, seeds and digests of models say where a row comes from
and not what it is; they are not compared (the digests of the models stand above the tables).

Places and texts are compared by 64-bit hashes: two rounds of a million rows confuse two places with a chance of 1 in 10⁷.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.core import pointers
from tasks.core.errors import StoreError
from tasks.core.pointers import StoredPath
from tasks.core.tables import TABLES, Table
from tasks.views._diff_sides import Side
from tasks.views._statements import quoted

MEMORY = "2GB"
"""DuckDB's limit; what does not fit goes to a temporary folder."""
SIDES = ("old", "new")
CHANGES = ("gone", "added", "changed")
ANSWER = {"answer_id": "key", "answer_prompt": "prompt_id", "answer_member": "member", "answer_sample": "sample",
          "answer_text": "text"}  # fmt: skip
"""Of the response that a row is about: the name in the SQL below, and the column."""
KIND = "split_part(error, ':', 1)"
VERDICT = "case when error is not null then 'error' else coalesce(verdict, 'score') end"
TEXTS = "hash(least(hash(chosen), hash(rejected)), greatest(hash(chosen), hash(rejected)))"


@dataclass(frozen=True)
class Rule:
    """How the rows of a table are compared, in SQL over their columns and those of the response that they are about."""

    place: tuple[str, ...]
    """What a row is about, beside the response."""
    reason: str = "null"
    """By which rows are counted."""
    value: str = "null"
    """A number: rows whose value changed most are the worst."""
    response: str | None = None
    """The column with the id of the response that a row is about."""
    extra: str = "null"
    """What `match_…` also has of both sides."""

    @property
    def whole_place(self) -> str:
        """The place as a list of SQL expressions; where the response is unknown, its id stands for it."""
        answer = (
            (f"coalesce(answer_prompt, {self.response})", "answer_member", "answer_sample") if self.response else ()
        )
        return ", ".join((*answer, *self.place))


RULES = {
    "prompts": Rule(("id",), f"coalesce({KIND}, 'usable')"),
    "responses": Rule(
        ("prompt_id", "member", "sample"),
        f"coalesce({KIND}, case when answer is null then 'no answer' else 'answered' end)",
        "mean_logprob",
    ),
    "judgments": Rule(("member",), f"member || ': ' || {VERDICT}", "score", "response_id", "answer_text"),
    "filtered": Rule((), "coalesce(reason, 'kept')", "score", "id"),
    "critiques": Rule(
        ("member",),
        f"case when kept then 'kept' else coalesce({KIND}, 'not kept') end",
        "successes / nullif(refinements, 0)",
        "response_id",
    ),
    "refinements": Rule(
        ("member", "sample"),
        f"coalesce({KIND}, case when success then 'success' else 'failure' end)",
        "success::int",
        "response_id",
    ),
    "pairs": Rule(("member", "prompt_id", TEXTS), "source", "chosen_score - rejected_score", extra="hash(chosen)"),
    "training": Rule(
        ("hash(prompt)", "hash(completion)", "tag"),
        f"source || coalesce(', left out: ' || {KIND}, '')",
        "case when error is null then weight else 0 end",
    ),
    "preferences": Rule(
        ("member", "prompt_id", TEXTS),
        f"source || coalesce(', left out: ' || {KIND}, '')",
        "weight",
        extra="hash(chosen)",
    ),
    "evals": Rule(
        ("member", "item", "split", "mode", "sample"),
        f"mode || ': ' || coalesce({KIND}, case when correct then 'right' when not correct then 'wrong' else 'unchecked' end)",
        "coalesce(score, correct::int)",
    ),
    "audits": Rule(("member", "item", "judge", "truth", "true_step"), f"judge || ': ' || {VERDICT}", "score"),
    "measures": Rule(("name", "level"), value="value"),
    "decisions": Rule(("gate",), "gate || case when passed then ': passed' else ': refused' end", "value"),
}
NOT_COMPARED = {"id", "seed", "model", "chosen_model", "rejected_model", "group", "parents"}
"""Beside columns that end in `_id`: they say where a row comes from."""


@dataclass(frozen=True)
class Reason:
    """Rows of a table that have one reason: those of both sides, and how one becomes the other:
    new = old - gone + added - left + came.
    """

    reason: str
    old: int = 0
    new: int = 0
    gone: int = 0
    added: int = 0
    left: int = 0
    """Of rows that both have: had this reason, and have another."""
    came: int = 0
    """Of rows that both have: had another, and have this reason."""

    @property
    def moved(self) -> int:
        """Rows that came or went."""
        return self.gone + self.added + self.left + self.came


@dataclass(frozen=True)
class Example:
    """A row that differs."""

    change: str
    key: str
    columns: list[str]
    """Those that differ; all that are compared where only one side has the row."""
    old: dict[str, Any] | None
    new: dict[str, Any] | None


@dataclass(frozen=True)
class TableDiff:
    """What differs in a table, in rows."""

    old: int
    new: int
    gone: int = 0
    added: int = 0
    changed: int = 0
    columns: dict[str, int] = field(default_factory=dict)
    """Column → changed rows that differ in it."""
    reasons: list[Reason] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)

    @property
    def same(self) -> int:
        """Rows that both have, with equal columns."""
        return self.old - self.gone - self.changed


def compared(table: Table) -> list[str]:
    """The columns that make a row another one, if they differ."""
    return [c for c in table.schema.names if c not in NOT_COMPARED and not c.endswith("_id")]


def row_key(table: Table) -> str:
    """A row's name within its side, in SQL."""
    return "name || coalesce('/level_' || level, '')" if table.name == "measures" else f'"{table.key[0]}"'


class Database:
    """Both sides' tables as `old_…` and `new_…`; what differs as `diff_…`, made when it is asked for."""

    def __init__(self, con: duckdb.DuckDBPyConnection, old: Side, new: Side) -> None:
        self.con, self.sides = con, {"old": old, "new": new}
        self.ready: set[str] = set()

    def has(self, table: str) -> bool:
        """Whether both sides have the table."""
        return all(side.output(table) for side in self.sides.values())

    def is_equal(self, table: str) -> bool:
        """Whether both sides have the same bytes."""
        digests = {output.digest for side in self.sides.values() if (output := side.output(table))}
        return self.has(table) and len(digests) == 1

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """The rows of a query as dicts."""
        return self.con.sql(sql).to_arrow_table().to_pylist()

    def load(self, name: str) -> None:
        """Makes the views `old_…` and `new_…` of a table.

        Raises:
            StoreError: when a side does not have it, or its files were changed.
        """
        if name in self.ready:
            return
        lacking = [side for side in self.sides.values() if not side.output(name)]
        if lacking:
            side = lacking[0]
            raise StoreError(f"{side.label} has no {name} yet; `flywheel run {side.name}` makes it")
        for which, side in self.sides.items():
            self.con.execute(f"create view {which}_{name} as {self._select(TABLES[name], side)}")
        self.ready.add(name)

    def _select(self, table: Table, side: Side) -> str:
        """All columns of the table; null where the files are older than a column."""
        files = side.parts(table.name)
        pointers.attach(self.con, files)
        present = _columns(files[0]) if files else set()
        empty = self.con.from_arrow(pa.Table.from_batches([], table.schema))
        columns = ", ".join(
            f'"{c}"' if c in present else f'null::{t} as "{c}"' for c, t in zip(empty.columns, empty.types, strict=True)
        )
        source = f"read_parquet([{', '.join(quoted(str(f)) for f in files)}], hive_partitioning = false)"
        return f"select {columns} from {source}" if files else f"select {columns} limit 0"

    def match(self, name: str) -> None:
        """Makes the table `match_…` (change, both rows' keys, reasons, what differs) and the view `diff_…`."""
        if f"match_{name}" in self.ready:
            return
        self._narrow(name)
        columns = range(len(compared(TABLES[name])))
        differs = " + ".join(f"((o.c{i} is distinct from n.c{i})::bigint << {i})" for i in columns)
        self.con.execute(f"""
            create table work.match_{name} as
            select *, case when new is null then 'gone' when old is null then 'added' when differs = 0 then 'same'
                      else 'changed' end::enum ('gone', 'added', 'same', 'changed') as change
            from (
                select o.key as old, n.key as new, o.reason as reason_old, n.reason as reason_new, o.extra as extra_old,
                       n.extra as extra_new, abs(coalesce(n.value, 0) - coalesce(o.value, 0)) as severity,
                       case when o.key is null or n.key is null then 0 else {differs} end as differs
                from work.narrow_old_{name} o full join work.narrow_new_{name} n on o.place = n.place
            )
        """)
        if name != "responses":  # which judgments and others are placed by
            for which in SIDES:
                self.con.execute(f"drop table work.narrow_{which}_{name}")
        self._view(name)
        self.ready.add(f"match_{name}")

    def _narrow(self, name: str) -> None:
        """Makes the tables `narrow_old_…` and `narrow_new_…`: of every row its key, place, and hashes of what is compared."""
        if f"narrow_{name}" in self.ready:
            return
        self.load(name)
        if RULES[name].response:
            self._narrow("responses")
        repeated = False
        for which in SIDES:
            self.con.execute(f"create table work.narrow_{which}_{name} as {self._narrow_select(name, which)}")
            [(clash,)] = self.con.execute(
                f"select count(*) > count(distinct place) from work.narrow_{which}_{name}"
            ).fetchall()
            repeated = repeated or clash
        number = "hash(place, row_number() over (partition by place order by key))"
        for narrow in (f"work.narrow_{which}_{name}" for which in SIDES if repeated):
            self.con.execute(f"create or replace table {narrow} as select * replace ({number} as place) from {narrow}")
        self.ready.add(f"narrow_{name}")

    def _narrow_select(self, name: str, which: str) -> str:
        rule, table = RULES[name], TABLES[name]
        columns = [
            f"{row_key(table)} as key", f"hash({rule.whole_place}) as place", f"{rule.reason} as reason",
            f"({rule.value})::double as value", f"{rule.extra} as extra",
        ]  # fmt: skip
        columns += [f"{_comparable(table, c)} as c{i}" for i, c in enumerate(compared(table))]
        columns += ["prompt_id", "member", "sample", "hash(response) as text"] if name == "responses" else []
        return f"select {', '.join(columns)} from {self._rows_with_response(name, which)}"

    def _rows_with_response(self, name: str, which: str) -> str:
        """A FROM clause: the rows of a table, beside the response that each is about."""
        if not (response := RULES[name].response):
            return f"{which}_{name}"
        answer = ", ".join(f"{column} as {alias}" for alias, column in ANSWER.items())
        return f"{which}_{name} as rows left join (select {answer} from work.narrow_{which}_responses) on answer_id = rows.{response}"

    def _view(self, name: str) -> None:
        rule, table = RULES[name], TABLES[name]
        names = f"[{', '.join(map(quoted, compared(table)))}]"
        columns = [f'{which[0]}."{c}" as {c}_{which}' for c in table.schema.names for which in SIDES]
        rows = [
            f"""left join (select {row_key(table)} as row_key, concat_ws('/', {rule.whole_place}) as row_place, *
                from {self._rows_with_response(name, which)}) {which[0]} on m.{which} = {which[0]}.row_key"""
            for which in SIDES
        ]
        self.con.execute(f"""
            create view diff_{name} as
            select m.change::varchar as change, coalesce(n.row_place, o.row_place) as key,
                   list_filter({names}, lambda c, i: (m.differs >> (i - 1)) & 1 = 1) as columns, {", ".join(columns)}
            from work.match_{name} m {" ".join(rows)} where m.change <> 'same'
        """)

    # Counts

    def table(self, name: str, examples: int) -> TableDiff:
        """What differs in a table, with so many examples of each change."""
        old, new = (side.output(name) for side in self.sides.values())
        assert old is not None
        assert new is not None
        if self.is_equal(name):
            return TableDiff(old.rows or 0, new.rows or 0)
        self.match(name)
        names = compared(TABLES[name])
        sums = ", ".join(f"sum((differs >> {i}) & 1)::bigint" for i in range(len(names)))
        groups = self.con.execute(f"""
            select change, reason_old, reason_new, count(*), {sums} from work.match_{name} group by all order by all
        """).fetchall()
        count = {change: sum(g[3] for g in groups if g[0] == change) for change in (*CHANGES, "same")}
        columns = {c: total for i, c in enumerate(names) if (total := sum(g[4 + i] for g in groups))}
        return TableDiff(
            old=count["gone"] + count["changed"] + count["same"],
            new=count["added"] + count["changed"] + count["same"],
            **{change: count[change] for change in CHANGES},
            columns=dict(sorted(columns.items(), key=lambda item: -item[1])),
            reasons=_reasons([g[:4] for g in groups]),
            examples=[
                e for change in CHANGES if count[change] for e in self.examples(name, f"change = '{change}'", examples)
            ],
        )

    def examples(self, name: str, where: str, limit: int) -> list[Example]:
        """The worst matches of a table of which a condition holds."""
        chosen = self.rows(
            f"from work.match_{name} where {where} order by severity desc nulls last, old, new limit {limit}"
        )
        names, sides = compared(TABLES[name]), {}
        for which in SIDES:
            keys = ", ".join(quoted(row[which]) for row in chosen if row[which] is not None)
            query = f"select {row_key(TABLES[name])} as row_key, * from {which}_{name} where row_key in ({keys})"
            sides[which] = {row.pop("row_key"): row for row in self.rows(query)} if keys else {}
        return [
            Example(
                row["change"],
                row["new"] or row["old"],
                [c for i, c in enumerate(names) if row["differs"] >> i & 1],
                sides["old"].get(row["old"]),
                sides["new"].get(row["new"]),
            )
            for row in chosen
        ]


def _comparable(table: Table, column: str) -> str:
    """A number or flag as it is, and of all else a hash."""
    kind = table.schema.field(column).type
    small = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return f'"{column}"' if small else f'hash("{column}")'


def _reasons(groups: Sequence[tuple[str, str | None, str | None, int]]) -> list[Reason]:
    """Counts by reason from (change, old reason, new reason, rows), those that moved most first."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for change, old, new, rows in groups:
        if old is not None:
            counts[old]["old"] += rows
            counts[old]["gone" if change == "gone" else "left" if old != new else "stayed"] += rows
        if new is not None:
            counts[new]["new"] += rows
            counts[new]["added" if change == "added" else "came" if old != new else "stayed"] += rows
    reasons = [
        Reason(name, *(c[k] for k in ("old", "new", "gone", "added", "left", "came"))) for name, c in counts.items()
    ]
    return sorted(reasons, key=lambda r: (-r.moved, r.reason))


def _columns(file: StoredPath) -> set[str]:
    with file.open("rb") as opened:
        return set(pq.read_schema(opened).names)


@contextmanager
def open_database(old: Side, new: Side) -> Iterator[Database]:
    """A database in memory over both sides."""
    with TemporaryDirectory(prefix="flywheel-diff-") as spill:
        config = {
            "memory_limit": MEMORY,
            "temp_directory": spill,
            "preserve_insertion_order": False,
            "python_enable_replacements": False,
        }
        with duckdb.connect(config=config) as con:
            con.execute("set enable_progress_bar = false; create schema work")
            yield Database(con, old, new)
