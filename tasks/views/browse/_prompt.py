"""A prompt with all its answers, and of each what judges, filter, critics and people say, and where it went."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tasks.core.errors import FlywheelError
from tasks.core.labels import Label
from tasks.core.tables import TABLES
from tasks.views._page_base import LONGEST
from tasks.views.browse._live import Live, Row

ANSWERS = 24
"""Of a page."""
USED = {
    "pairs": ("chosen_id", "rejected_id"),
    "training": ("response_id",),
    "preferences": ("chosen_id", "rejected_id"),
}
"""Tables that name an answer that was used, and the columns."""


class NoRow(FlywheelError):
    """An id that a table has not."""


@dataclass
class Answer:
    """An answer: a response, or a refinement of one."""

    row: Row
    source: str
    digest: str = ""
    """Of the problem and the whole answer: what a label is of."""
    judgments: list[Row] = field(default_factory=list)
    """The reward's first."""
    decision: Row | None = None
    """The filter's."""
    critiques: list[Row] = field(default_factory=list)
    refinements: list["Answer"] = field(default_factory=list)
    uses: list[Row] = field(default_factory=list)
    """Where it went: the table, the id and as what."""
    labels: list[Label] = field(default_factory=list)
    outdated: list[Label] = field(default_factory=list)
    """Labels of the row when it had another text."""


@dataclass
class Sheet:
    """A prompt and a page of its answers."""

    round: str
    prompt: Row
    answers: list[Answer]
    total: int
    before: str | None
    after: str | None
    """Ids of the prompts beside it."""
    notes: list[str]
    """What could not be read."""


def sheet(live: Live, round: str, id: str, start: int = 0) -> Sheet:
    """A prompt with its answers from the one numbered `start`, by member and sample.

    Raises:
        UnknownName: for a round that does not exist.
        NoRow: for a prompt that the round has not, with its neighbours by id.
    """
    live.check_round(round)
    what = f"{_cut('problem')}, * exclude (problem, prompt)"
    found = live.select(round, "prompts", what, "id = $id", id=id, most=LONGEST)
    before, after = _neighbours(live, round, id)
    if not found:
        raise NoRow(_unknown(live, round, id, [n for n in (before, after) if n]))
    rows = live.select(round, "responses", _answer_columns(live, round), "prompt_id = $id", id=id, most=LONGEST)
    rows.sort(key=lambda row: (row["member"] or "", row["sample"] or 0, row["id"]))
    answers = [Answer(row, "responses", row["_digest"]) for row in rows[start : start + ANSWERS]]
    notes = live.damage(round) + _complete(live, round, found[0], answers)
    return Sheet(round, found[0], answers, len(rows), before, after, notes)


def _cut(column: str) -> str:
    return f"left({column}, $most) as {column}, length({column}) as _{column}_length"


def _all_but(column: str) -> str:
    return f"* exclude ({column})"


def _neighbours(live: Live, round: str, id: str) -> tuple[str | None, str | None]:
    before = live.select(round, "prompts", "id", "id < $id order by id desc limit 1", id=id)
    after = live.select(round, "prompts", "id", "id > $id order by id limit 1", id=id)
    return (before[0]["id"] if before else None), (after[0]["id"] if after else None)


def _unknown(live: Live, round: str, id: str, near: list[str]) -> str:
    if live.table(round, "prompts") is None:
        return f"{round} has no prompts yet; `flywheel run {round}` makes them"
    return f"{round} has no prompt with the id {id!r}" + (f"; near it: {', '.join(near)}" if near else "")


def _complete(live: Live, round: str, prompt: Row, answers: list[Answer]) -> list[str]:
    """Adds all that is said of the answers, and that was made of them; returns what could not be read."""
    given = {"id": prompt["id"], "most": LONGEST}
    by_id = {answer.row["id"]: answer for answer in answers}
    said = live.select(round, "judgments", f"{_cut('rationale')}, {_all_but('rationale')}", "prompt_id = $id", **given)
    for row in sorted(said, key=lambda row: (not row["reward"], row["member"] or "")):
        if answer := by_id.get(row["response_id"]):
            answer.judgments.append(row)
    for row in live.select(round, "filtered", "*", "prompt_id = $id", id=prompt["id"]):
        if answer := by_id.get(row["id"]):
            answer.decision = row
    _criticised(live, round, given, by_id)
    every = [a for answer in answers for a in (answer, *answer.refinements)]
    _used(live, round, prompt["id"], {a.row["id"]: a for a in every})
    said, notes = live.labels()
    label(said, round, every)
    return notes


def _criticised(live: Live, round: str, given: Row, answers: dict[str, Answer]) -> None:
    critiques = f"{_cut('critique')}, * exclude (critique, prompt)"
    for row in sorted(
        live.select(round, "critiques", critiques, "prompt_id = $id", **given), key=lambda row: row["id"]
    ):
        if answer := answers.get(row["response_id"]):
            answer.critiques.append(row)
    refined = live.select(round, "refinements", _answer_columns(live, round), "prompt_id = $id", **given)
    for row in sorted(refined, key=lambda row: (row["critique_id"] or "", row["sample"] or 0, row["id"])):
        if answer := answers.get(row["response_id"]):
            answer.refinements.append(Answer(row, "refinements", row["_digest"]))


def _used(live: Live, round: str, prompt: str, answers: dict[str, Answer]) -> None:
    for table, columns in USED.items():
        for row in live.select(round, table, f"id, {', '.join(columns)}", "prompt_id = $id", id=prompt):
            for column in columns:
                if answer := answers.get(row[column]):
                    answer.uses.append({"table": table, "id": row["id"], "role": column.removesuffix("_id")})


def _answer_columns(live: Live, round: str) -> str:
    """An answer with the beginning of its text, and the digest of all of it, of which this process reads no more."""
    return f"{_cut('response')}, {_digest(live, round)} as _digest, {_all_but('response')}"


def _digest(live: Live, round: str) -> str:
    """The digest of the problem `$id` and a whole answer in SQL, as `text_digest` makes it."""
    problems = live.table(round, "prompts")
    problem = f"(select problem from {problems.sql()} where id = $id limit 1)" if problems and problems.parts else "''"
    return f"substr(sha256(coalesce({problem}, '') || chr(31) || coalesce(response, '')), 1, 16)"


def digest_of(live: Live, round: str, source: str, id: str, prompt: str) -> str | None:
    """The digest of the problem and the answer of one row, as they are now; None where there is no such row."""
    what, where = f"{_digest(live, round)} as digest", "prompt_id = $id and id = $row"
    rows = live.select(round, source, what, where, id=prompt, row=id)
    return rows[0]["digest"] if rows else None


def label(labels: Iterable[Label], round: str, answers: Iterable[Answer]) -> None:
    """Adds people's labels to answers: those of the row, and those of the same text elsewhere; apart from these the labels that
    the row had while it had another text.
    """
    texts: dict[str, dict[str, Label]] = {}
    rows: dict[tuple[str, str, str], list[Label]] = {}
    for each in labels:
        known = texts.setdefault(each.digest, {}).get(each.person)
        if known is None or known.time <= each.time:
            texts[each.digest][each.person] = each
        rows.setdefault((each.round, each.source, each.id), []).append(each)
    for answer in answers:
        answer.labels = sorted(texts.get(answer.digest, {}).values(), key=lambda each: each.person)
        of_row = rows.get((round, answer.source, answer.row["id"]), [])
        answer.outdated = [each for each in of_row if each.digest != answer.digest]


def whole(live: Live, round: str, table: str, id: str, column: str, prompt: str = "") -> str:
    """The whole text of a row's column; of a chat, its turns.

    Raises:
        NoRow: when there is no such row or text.
    """
    stored = live.table(round, table)
    kind = None if stored is None else _kind(table, column)
    if kind is None:
        raise NoRow(f"{round} has no text {column!r} in a table {table!r}")
    where, given = row_where(table, id, prompt)
    rows = live.select(round, table, f'"{column}" as value', where, **given)
    if not rows:
        raise NoRow(f"{table} of {round} have no row with the id {id!r}")
    return as_text(rows[0]["value"])


def _kind(table: str, column: str) -> str | None:
    schema = TABLES[table].schema
    kind = str(schema.field(column).type) if column in schema.names else ""
    return kind if kind == "string" or kind.startswith("list<") else None


def row_where(table: str, id: str, prompt: str = "") -> tuple[str, Row]:
    """A predicate of one row. With its prompt, by which tables are sorted, most of a large table is not read."""
    if prompt and "prompt_id" in TABLES[table].schema.names:
        return "id = $id and prompt_id = $prompt", {"id": id, "prompt": prompt}
    return "id = $id", {"id": id}


def as_text(value: Any) -> str:
    """A text; a chat as its turns, each after its role; other lists a line each."""
    if isinstance(value, list):
        turns = [
            f"{v['role']}:\n{v['content'] or ''}" if isinstance(v, dict) and "role" in v else str(v) for v in value
        ]
        return "\n\n".join(turns)
    return "" if value is None else str(value)
