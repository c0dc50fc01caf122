"""Pages of rows: the parts of a table are read in their order until a page is full or the time for it is over.

So a page takes as long with a hundred million rows as with a thousand, whatever is asked for, and nothing is counted or
sorted. What was not reached is one link further on: a place is the part and row of the last row that was looked at
(keyset pagination; no OFFSET).
"""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from tasks.core.errors import FlywheelError, UnknownName
from tasks.core.tables import TABLES
from tasks.views import _statements
from tasks.views.browse._live import Live, Row, Stored

ROWS = 40
"""Of a page."""
SECONDS = 0.6
"""After which no further parts are read."""
FIRST, MOST = 1, 16
"""Parts that are read at once: at first, and at most."""
PREVIEW = 240
"""Characters of a text that a list shows."""
TEXTS = {
    "prompts": ("problem",),
    "responses": ("response",),
    "judgments": ("rationale",),
    "critiques": ("critique",),
    "refinements": ("response",),
    "pairs": ("chosen", "rejected"),
    "training": ("completion",),
    "preferences": ("chosen", "rejected"),
    "evals": ("response", "problem"),
}
"""Columns of texts that are shown and searched."""
REASONS = {
    "responses": ("dropped/", "filter"),
    "filtered": ("dropped/", "filter"),
    "prompts": ("prompts_rejected/", "prompts"),
    "training": ("training_dropped/", "collect"),
    "preferences": ("preferences_dropped/", "collect"),
}
"""Tables whose rows are dropped for a reason: the metrics that count them, and their stage."""
KEPT, DROPPED = "kept", "dropped"
JUDGED = ("responses", "judgments")
VERDICTS = {
    "pass": "verdict = 'pass'",
    "fail": "verdict = 'fail'",
    "none": "verdict is null and error is null",
    "error": "error is not null",
}
QUOTED = re.compile(r"[!-/:-@\[-^`{-~]")
"""Characters that mean something in a regular expression, and a few that do no harm there."""
TABLES_SHOWN = tuple(name for name in TABLES if name not in ("measures", "decisions"))


@dataclass(frozen=True)
class Filter:
    """What is asked for."""

    round: str
    table: str = "responses"
    reason: str = ""
    judge: str = ""
    verdict: str = ""
    text: str = ""

    @property
    def address(self) -> dict[str, str]:
        """Its parameters in an address; those that are empty are left out."""
        return {name: value for name, value in vars(self).items() if value}


@dataclass(frozen=True)
class Place:
    """Where a page ended: the part and the row in it, of a version of the table."""

    part: int
    row: int
    version: str

    def __str__(self) -> str:
        return f"{self.part}-{self.row}-{self.version[:12]}"

    @classmethod
    def parse(cls, text: str) -> "Place | None":
        """The place of an address; None where it is none."""
        read = re.fullmatch(r"(\d{1,9})-(-?\d{1,12})-(\w{1,12})", text)
        return cls(int(read[1]), int(read[2]), read[3]) if read else None


@dataclass
class Page:
    """Rows that were found, and how far the table was read."""

    rows: list[Row] = field(default_factory=list)
    next: Place | None = None
    """Where to go on; None at the end of the table."""
    read: int = 0
    """Rows up to that place, from the start of the table."""
    total: int = 0
    notes: list[str] = field(default_factory=list)


def options(live: Live, asked: Filter) -> dict[str, dict[str, int | None]]:
    """The values that reasons and judges have in a round, from its manifests: value → rows, where that is known."""
    prefix, stage = REASONS.get(asked.table, ("", ""))
    manifests = live.manifests(asked.round)
    metrics = manifests[stage].metrics if stage in manifests else {}
    reasons: dict[str, int | None] = {
        n.removeprefix(prefix): int(v) for n, v in metrics.items() if n.startswith(prefix)
    }
    if stage == "filter" and metrics:
        kept = int(metrics.get("kept", 0))
        reasons = {KEPT: kept, DROPPED: sum(v or 0 for v in reasons.values())} | reasons
    judges = manifests["judge"].plan.members if "judge" in manifests and asked.table in JUDGED else ()
    named: dict[str, int | None] = dict.fromkeys(sorted(judges))
    return {"reason": reasons, "judge": named, "verdict": dict.fromkeys(VERDICTS if named else ())}


def find(live: Live, asked: Filter, after: str = "") -> Page:
    """A page of rows that the filter lets through, in the order in which they are stored.

    Raises:
        UnknownName: for a round, table, judge or verdict that does not exist.
    """
    live.check_round(asked.round)
    if asked.table not in TABLES_SHOWN:
        raise UnknownName("table", asked.table, TABLES_SHOWN)
    _check(live, asked)
    stored = live.table(asked.round, asked.table)
    if stored is None:
        return Page(notes=[f"{asked.round} has no {asked.table} yet; `flywheel run {asked.round}` makes them"])
    page = Page(total=stored.rows, notes=list(stored.damage))
    start = Place.parse(after) or Place(0, -1, stored.version)
    if not stored.version.startswith(start.version) or start.part >= max(len(stored.parts), 1):
        page.notes.append(f"{asked.table} of {asked.round} were made again meanwhile: this is the first page")
        start = Place(0, -1, stored.version)
    _read(partial(_matches, live, stored, asked), stored, start, page)
    return page


def _check(live: Live, asked: Filter) -> None:
    for name, known in options(live, asked).items():
        value = getattr(asked, name)
        if value and not known and name != "reason":
            raise FlywheelError(f"{asked.table} of {asked.round} have no {name}; filter responses or judgments by it")
        if value and known and value not in known:
            raise UnknownName(name, value, known)
    if asked.reason and asked.table not in REASONS:
        raise FlywheelError(f"{asked.table} have no reason; {', '.join(REASONS)} do")


def _read(matches: Callable[[range, int, int], list[Row]], stored: Stored, start: Place, page: Page) -> None:
    """Reads parts from a place on until the page is full or its time is over."""
    clock, at, row, step = time.monotonic(), start.part, start.row, FIRST
    while at < len(stored.parts):
        began = time.monotonic()
        parts = range(at, min(at + step, len(stored.parts)))
        page.rows += matches(parts, row, ROWS + 1 - len(page.rows))
        if len(page.rows) > ROWS:
            page.rows = page.rows[:ROWS]
            last = page.rows[-1]
            page.next = Place(last["_part"], last["_row"], stored.version)
            page.read = sum(stored.counts[: page.next.part]) + page.next.row + 1
            return
        at, row, spent = parts.stop, -1, time.monotonic() - began
        if time.monotonic() - clock > SECONDS:
            break
        step = min(MOST, step * 2) if spent < SECONDS / 4 else step if spent < SECONDS / 2 else max(1, step // 2)
    page.read = sum(stored.counts[:at])
    page.next = Place(at, -1, stored.version) if at < len(stored.parts) else None


def _matches(live: Live, stored: Stored, asked: Filter, parts: range, after: int, limit: int) -> list[Row]:
    """The first rows of some parts that the filter lets through. Their places come first, from the columns that the filter
    needs; then what a page shows is read of these rows alone.
    """
    chosen = [stored.parts[n] for n in parts]
    names = [path.name for path in chosen]
    conditions, given, joined = _conditions(live, stored, asked, parts)
    if after >= 0:
        conditions.append("(parse_filename(filename) <> $first or file_row_number > $after)")
        given |= {"first": names[0], "after": after}
    own = [name for name in ("id", "prompt_id") if name in TABLES[asked.table].schema.names]
    order = "order by _file, _row" if joined else ""  # a join may change the order, a scan does not
    places = live.query(
        f"""select parse_filename(filename) as _file, file_row_number as _row, {", ".join(own)} from {stored.sql(chosen)}
            where {" and ".join(conditions) or "true"} {order} limit {limit}""",
        **given,
    )
    for place in places:
        place["_part"] = parts[names.index(place.pop("_file"))]
    shown = _shown(live, stored, places)
    return [shown[place["id"]] | place for place in places]


def _shown(live: Live, stored: Stored, places: list[Row]) -> dict[str, Row]:
    """What a list shows of some rows, by id."""
    if not places:
        return {}
    parts = [stored.parts[n] for n in sorted({place["_part"] for place in places})]
    where = [
        one_of(name, sorted({place[name] for place in places})) for name in ("id", "prompt_id") if name in places[0]
    ]
    sql = f"select {', '.join(_columns(stored.table))} from {stored.sql(parts)} where {' and '.join(where)}"
    return {row["id"]: row for row in live.query(sql)}


def _columns(table: str) -> Iterator[str]:
    """What a list shows of a row: everything but long texts, of which it shows the beginning."""
    schema, texts = TABLES[table].schema, TEXTS.get(table, ())
    for name in schema.names:
        if name in texts:
            yield f'left({_text(table, name)}, {PREVIEW}) as "{name}"'
            yield f'length({_text(table, name)}) as "_{name}_length"'
        elif name == "error":
            yield f"left(error, {PREVIEW}) as error"
        elif str(schema.field(name).type) in ("string", "bool", "int32", "double"):
            yield (
                f'"{name}"'
                if name not in ("problem", "response", "rationale")
                else f'left("{name}", {PREVIEW}) as "{name}"'
            )


def _text(table: str, column: str) -> str:
    """A text, or the texts of a chat, as SQL."""
    is_chat = str(TABLES[table].schema.field(column).type) != "string"
    return (
        f'array_to_string(list_transform("{column}", lambda turn: turn.content), chr(10))' if is_chat else f'"{column}"'
    )


def _conditions(live: Live, stored: Stored, asked: Filter, parts: range) -> tuple[list[str], Row, bool]:
    """The filter as SQL predicates, with their parameters, and whether other tables are joined."""
    conditions, given, joined = [], {}, []
    if asked.text:
        conditions.append(_contains(asked))
        given["text"] = asked.text if _is_exact(asked.text) else QUOTED.sub(r"\\\g<0>", asked.text)
    if asked.table == "responses":
        joined, span = _joined(live, stored, asked, parts)
        conditions, given = conditions + joined, given | span
    elif asked.reason:
        conditions.append(_reason(asked.reason) if asked.table == "filtered" else "split_part(error, ':', 1) = $reason")
    if asked.table == "judgments":
        conditions += _judged(asked)
    used = " ".join(conditions)
    return conditions, given | {n: getattr(asked, n) for n in ("reason", "judge") if f"${n}" in used}, bool(joined)


def _contains(asked: Filter) -> str:
    texts = [_text(asked.table, column) for column in TEXTS.get(asked.table, ())]
    if not texts:
        raise FlywheelError(f"{asked.table} hold no texts; search {', '.join(TEXTS)}")
    form = "contains({}, $text)" if _is_exact(asked.text) else "regexp_matches({}, $text, 'i')"  # faster than lower()
    return f"({' or '.join(form.format(text) for text in texts)})"


def _is_exact(text: str) -> bool:
    """A text with a capital letter is searched as it is; one without finds capitals too."""
    return text != text.lower()


def _reason(reason: str) -> str:
    return {KEPT: "kept", DROPPED: "not kept"}.get(reason, "reason = $reason")


def _judged(asked: Filter) -> list[str]:
    return (["member = $judge"] if asked.judge else []) + ([VERDICTS[asked.verdict]] if asked.verdict else [])


def _joined(live: Live, stored: Stored, asked: Filter, parts: range) -> tuple[list[str], Row]:
    """Predicates of responses by the filter's decisions and by judgments, of which only those of the same prompts are read. A
    judge without a verdict lets all through: the page shows what that judge says.
    """
    others = [("filtered", "id", [_reason(asked.reason)])] if asked.reason else []
    others += [("judgments", "response_id", _judged(asked))] if asked.verdict else []
    if not others:
        return [], {}
    chosen = stored.sql([stored.parts[n] for n in parts])
    [span] = live.query(f"select min(prompt_id) as low, max(prompt_id) as high from {chosen}")
    between = "prompt_id between $low and $high"
    return [_in(live, asked.round, table, column, [between, *where]) for table, column, where in others], span


def _in(live: Live, round: str, table: str, column: str, where: list[str]) -> str:
    other = live.table(round, table)
    if other is None or not other.parts:
        return "$low is null and $high is null"
    return f"id in (select {column} from {other.sql()} where {' and '.join(where)})"


def one_of(column: str, ids: list[str]) -> str:
    """That a column is one of some ids, written out: DuckDB then reads only the parts of a sorted table that may have them."""
    return f"{column} in ({', '.join(map(_statements.quoted, ids))})" if ids else "false"


def decide(live: Live, asked: Filter, rows: list[Row]) -> None:
    """Adds to responses what became of them: the filter's decision, and the judgment of the judge that is asked for, or else
    of the reward.
    """
    if not rows or asked.table != "responses":
        return
    nearby = one_of("prompt_id", sorted({row["prompt_id"] for row in rows}))
    ids = sorted(row["id"] for row in rows)
    kept = live.select(asked.round, "filtered", "id, kept, reason", f"{nearby} and {one_of('id', ids)}")
    judge, named = ("member = $judge", {"judge": asked.judge}) if asked.judge else ("reward", {})
    what = "response_id as id, member as judge, score, verdict, left(error, 80) as judge_error"
    judged = live.select(
        asked.round, "judgments", what, f"{nearby} and {one_of('response_id', ids)} and {judge}", **named
    )
    for found in (kept, judged):
        by_id = {row["id"]: row for row in found}
        for row in rows:
            row |= by_id.get(row["id"], {})
