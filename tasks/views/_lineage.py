"""Who was made from whom: the links between rows, followed a generation at a time.

A link is a column that holds ids of other rows. Equal texts have equal ids in every round, so an id stands for the row of the
child's own round, or, where the stage reads ancestors, for that of the nearest one that has it.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import duckdb

from tasks.core.errors import FlywheelError, UnknownName
from tasks.core.tables import TABLES

MIN_PREFIX = 4
"""Fewest digits of an id that stand for it."""
MAX_CANDIDATES = 8
IDENTIFIED = tuple(name for name, table in TABLES.items() if "id" in table.schema.names)
"""Tables whose rows have an id."""


class Key(NamedTuple):
    """A row by its table, round and id."""

    table: str
    round: str
    id: str


@dataclass(frozen=True)
class Link:
    """A column that names the rows from which a row was made."""

    table: str
    column: str
    parents: tuple[str, ...]
    """Tables that may have the parent."""
    of_ancestors: bool = False
    """Whether the parent may be an ancestor's row."""
    where: str = "true"
    """SQL predicate of the rows that it holds for."""

    @property
    def is_list(self) -> bool:
        """Whether the column holds several ids."""
        return self.column == "parents"

    def ids(self, row: dict[str, Any]) -> list[str]:
        """The ids of a row's parents."""
        if (self.where == REPLAYED) != (row.get("source") == "replay"):
            return []
        value = row.get(self.column)
        return list(value or []) if self.is_list else [value] if value else []


WRITTEN, REPLAYED = "source is distinct from 'replay'", "source = 'replay'"
LINKS = (
    Link("training", "id", ("training",), of_ancestors=True, where=REPLAYED),
    Link("training", "response_id", ("responses", "refinements", "critiques"), where=WRITTEN),
    *(
        Link(table, column, ("responses", "refinements"), of_ancestors=True)
        for table in ("preferences", "pairs")
        for column in ("chosen_id", "rejected_id")
    ),
    Link("refinements", "critique_id", ("critiques",)),
    *(Link(table, "response_id", ("responses",)) for table in ("refinements", "critiques", "judgments")),
    Link("filtered", "id", ("responses",)),
    Link("prompts", "parents", ("prompts",), of_ancestors=True),
    Link("training", "prompt_id", ("prompts",), where=WRITTEN),
    *(
        Link(table, "prompt_id", ("prompts",))
        for table in ("preferences", "pairs", "refinements", "critiques", "judgments", "filtered", "responses")
    ),
)
"""All links. Of a row's links the nearest parent comes first: an answer before the prompt that it answers."""
ORDER = (
    "responses", "critiques", "refinements", "pairs", "preferences", "training", "prompts", "judgments", "filtered", "evals", "audits",
)  # fmt: skip
"""Tables in the order in which rows descend from a prompt: what is made of an answer stands below the answer."""
DECIDED = {
    "judgments": ("responses", "response_id"),
    "filtered": ("responses", "id"),
    "refinements": ("critiques", "critique_id"),
}
"""Tables whose rows decided about rows of another one, and the column that names these."""
SHORTCUTS = ("prompt_id", "response_id", "verdict")
"""Links to rows that a longer way has shown already. A preference stands below its pair."""


@dataclass
class Step:
    """A row of a lineage: how it was reached, and the rows that lie beyond it."""

    key: Key
    row: dict[str, Any]
    link: str = ""
    """The column that links it to the row before it; `verdict` where it decided about that, `pair` of a pair and its preference."""
    beyond: list["Step"] | None = None
    """None where the row stands elsewhere in the lineage, and its relatives with it."""


Relatives = Callable[[list[Step]], dict[Key, list[Step]]]
"""The relatives of each row of a generation."""


class Lineage:
    """The rows of a project and the rounds that they belong to."""

    def __init__(self, con: duckdb.DuckDBPyConnection) -> None:
        self.con = con
        self.rounds = {row["round"]: row for row in _rows(con.sql("from rounds"))}

    def ancestors(self, round: str) -> tuple[str, ...]:
        """A round and its ancestors: nearest first, parents before anchors."""
        lineage: dict[str, None] = {}
        queue = deque[str | None]([round])
        while queue:
            name = queue.popleft()
            if name and name not in lineage:
                lineage[name] = None
                queue += [self.rounds.get(name, {}).get(k) for k in ("parent", "anchor")]
        return tuple(lineage)

    def descendants(self, round: str) -> list[str]:
        """The rounds with a model that have this one among their ancestors."""
        made = [name for name, row in self.rounds.items() if row["model"] and name != round]
        return [name for name in made if round in self.ancestors(name)]

    def check_round(self, round: str | None) -> None:
        """Refuses a round that is neither in params.yaml nor on disk."""
        if round is not None and round not in self.rounds:
            raise UnknownName("round or base", round, self.rounds)

    def find(self, id: str, round: str | None = None) -> list[Step]:
        """The rows of an id, or of a unique prefix of one, in the one round that has them. Of a row that later rounds replay,
        the first one is taken.

        Raises:
            FlywheelError: for an unknown id, with the nearest ones; for a prefix of several; for an id that several rounds
                have and no `round`.
        """
        self.check_round(round)
        name = self.whole_id(id, round)
        rows = [step for steps in self.fetch({name: IDENTIFIED}).values() for step in steps]
        owners = [r for r in self.rounds if any(s.key.round == r for s in rows)]
        if round is not None and round not in owners:
            raise FlywheelError(
                f"{round} has no row with the id {name}; {_and(owners)} ha{'s' if len(owners) == 1 else 've'} one"
            )
        first = {s.key.round for s in rows if s.row.get("source") != "replay"}
        if round is None and len(first or owners) > 1:
            named = [r for r in owners if r in (first or owners)]
            raise FlywheelError(f"{_and(named)} have a row with the id {name}; name one of them with --round")
        chosen = [s for s in rows if s.key.round == (round or next(iter(first or owners)))]
        return [s for s in chosen if s.key.table != "filtered"] or chosen  # a decision has its response's id

    def whole_id(self, prefix: str, round: str | None = None) -> str:
        """The one id that is this text or begins with it."""
        matches = self._ids("starts_with(id, $text)", prefix, round) or self._ids(
            "starts_with(id, $text)", prefix, None
        )
        if prefix in matches:
            return prefix
        if not matches:
            raise FlywheelError(self._unknown(prefix))
        if len(prefix) < MIN_PREFIX:
            raise FlywheelError(f"the id {prefix!r} is too short; give at least {MIN_PREFIX} digits of it")
        if len(matches) > 1:
            raise FlywheelError(f"{len(matches)} ids begin with {prefix!r}: {self._listed(matches)}; give more digits")
        return matches[0]

    def _unknown(self, id: str) -> str:
        if not self._ids("true", "", None, limit=1):
            return "no stage has stored a row yet; `flywheel run r1` makes the round r1"
        for length in range(len(id) - 1, MIN_PREFIX - 2, -1):
            if near := self._ids("starts_with(id, $text)", id[:length], None):
                return f"no table has a row with the id {id!r}; near it: {self._listed(near)}"
        return (
            f"no table has a row with the id {id!r}; an id is 16 hexadecimal digits from an `id` column, as of "
            '`flywheel sql "select round, id from training"`'
        )

    def _ids(self, where: str, text: str, round: str | None, limit: int = 1000) -> list[str]:
        tables = " union all ".join(f"select round, id from {table}" for table in IDENTIFIED)
        sql = f"select distinct id from ({tables}) where {where} and ($round is null or round = $round) order by id limit {limit}"
        given = {"round": round} | ({"text": text} if "$text" in where else {})
        return [id for (id,) in self.con.sql(sql, params=given).fetchall()]

    def _listed(self, ids: list[str]) -> str:
        """Ids, each with the tables and rounds that have it."""
        homes: dict[str, list[str]] = {id: [] for id in ids[:MAX_CANDIDATES]}
        for (_, id), steps in self.fetch(dict.fromkeys(homes, IDENTIFIED)).items():
            homes[id] += [f"{s.key.table} of {s.key.round}" for s in steps]
        more = len(ids) - MAX_CANDIDATES
        return ", ".join(f"{id} ({', '.join(h)})" for id, h in homes.items()) + (f" … {more} more" if more > 0 else "")

    def fetch(self, tables: dict[str, Iterable[str]]) -> dict[tuple[str, str], list[Step]]:
        """The rows of ids, each looked for in some tables, by (table, id), in every round."""
        found: dict[tuple[str, str], list[Step]] = {}
        for table in IDENTIFIED:
            ids = sorted(id for id, names in tables.items() if table in names)
            for step in self.select(table, "id in (select unnest($ids))", ids):
                found.setdefault((table, step.key.id), []).append(step)
        return found

    def select(self, table: str, where: str, ids: list[str]) -> list[Step]:
        """The rows of a table that a predicate over `$ids` holds for, by round and id."""
        if not ids:
            return []
        rows = _rows(self.con.sql(f"from {table} where {where} order by round, id", params={"ids": ids}))
        return [Step(Key(table, row["round"], row["id"]), row) for row in rows]

    def nearest(self, link: Link, child: Key, candidates: Iterable[Step]) -> Step | None:
        """The parent among rows of one id: that of the child's own round, or of its nearest ancestor that has one."""
        rounds = self.ancestors(child.round) if link.of_ancestors else (child.round,)
        by_round = {s.key.round: s for s in candidates if s.key != child}
        return next((by_round[r] for r in rounds if r in by_round), None)

    # Generations

    def parents(self, generation: list[Step]) -> dict[Key, list[Step]]:
        """The parents of each row, as steps with their link, and what decided about it."""
        wanted: dict[str, set[str]] = {}
        for _, link, id in _named(generation):
            wanted.setdefault(id, set()).update(link.parents)
        rows = self.fetch({id: tuple(tables) for id, tables in wanted.items()})
        parents: dict[Key, list[Step]] = {step.key: [] for step in generation}
        for step, link, id in _named(generation):
            options = (self.nearest(link, step.key, rows.get((table, id), ())) for table in link.parents)
            if parent := next((p for p in options if p), None):
                parents[step.key].append(Step(parent.key, parent.row, link.column))
        for key, verdicts in self._verdicts(generation).items():
            parents[key][:0] = verdicts
        for preference, pair in self._collected(generation, "preferences", "pairs"):
            parents[preference.key].insert(0, Step(pair.key, pair.row, "pair"))
        return parents

    def _verdicts(self, generation: list[Step]) -> dict[Key, list[Step]]:
        """What decided about rows: the judgments of a response, the reward's first, and the filter's decision; the refinements
        of a critique.
        """
        responses = sorted({s.key.id for s in generation if s.key.table == "responses"})
        critiques = sorted({s.key.id for s in generation if s.key.table == "critiques"})
        judgments = self.select("judgments", "response_id in (select unnest($ids))", responses)
        judgments.sort(key=lambda s: (not s.row["reward"], s.row["member"] or "", s.key.id))
        refinements = self.select("refinements", "critique_id in (select unnest($ids))", critiques)
        refinements.sort(key=lambda s: (s.row["sample"] or 0, s.key.id))
        verdicts: dict[Key, list[Step]] = {}
        for step in [*judgments, *self.select("filtered", "id in (select unnest($ids))", responses), *refinements]:
            table, column = DECIDED[step.key.table]
            about = Key(table, step.key.round, step.row[column])
            verdicts.setdefault(about, []).append(Step(step.key, step.row, "verdict"))
        return {s.key: verdicts.get(s.key, []) for s in generation}

    def children(self, generation: list[Step]) -> dict[Key, list[Step]]:
        """The rows that were made from each row, as steps with their link; verdicts aside."""
        children: dict[Key, list[Step]] = {step.key: [] for step in generation}
        for link in (k for k in LINKS if k.table not in ("judgments", "filtered")):
            ids = sorted({s.key.id for s in generation if s.key.table in link.parents})
            inside = "list_has_any(parents, $ids)" if link.is_list else f"{link.column} in (select unnest($ids))"
            rows = self.select(link.table, f"{inside} and {link.where}", ids)
            twins = self.fetch(dict.fromkeys(ids, link.parents)) if rows else {}
            for child in rows:
                for id in link.ids(child.row):
                    options = (self.nearest(link, child.key, twins.get((t, id), ())) for t in link.parents)
                    parent = next((p for p in options if p), None)
                    if parent and parent.key in children:
                        children[parent.key].append(Step(child.key, child.row, link.column))
        for pair, preference in self._collected(generation, "pairs", "preferences"):
            children[pair.key].append(Step(preference.key, preference.row, "pair"))
        for steps in children.values():
            steps.sort(key=lambda s: ORDER.index(s.key.table))
        return children

    def _collected(self, generation: list[Step], table: str, other: str) -> Iterator[tuple[Step, Step]]:
        """Pairs and the preferences that were collected of them: neither names the other, but both their two answers."""
        own = [s for s in generation if s.key.table == table]
        others: dict[tuple[str, ...], list[Step]] = {}
        for step in self.select(other, "chosen_id in (select unnest($ids))", sorted({s.row["chosen_id"] for s in own})):
            others.setdefault(_answers(step), []).append(step)
        yield from ((step, twin) for step in own for twin in others.get(_answers(step), ()))

    def made_from(self, start: list[Step]) -> list[Step]:
        """These rows with all that they were made from beyond them."""
        return self._tree(start, self.parents, {"verdict"})

    def went_into(self, start: list[Step]) -> list[Step]:
        """These rows with all that was made from them beyond them. Of what was written after a prompt was shown, the prompts
        alone: all that came of these would be most of the later rounds.
        """
        return self._tree(start, self.children, {"parents"})

    def _tree(self, start: list[Step], relatives: Relatives, leaves: set[str]) -> list[Step]:
        """Follows relatives generation by generation, but not beyond a link of `leaves`. Each row has its relatives once."""
        known: dict[Key, list[Step]] = {}
        generation = start
        while generation:
            known |= relatives(generation)
            relatives_of = (s for step in generation for s in known[step.key])
            fresh = {s.key: s for s in relatives_of if s.link not in leaves and s.key not in known}
            generation = list(fresh.values())
        placed: set[Key] = set()
        return [_grown(step, known, placed) for step in start]


def _grown(step: Step, known: dict[Key, list[Step]], placed: set[Key]) -> Step:
    placed.add(step.key)
    beyond: list[Step] = []
    for relative in known.get(step.key, ()):
        if relative.key not in placed:
            beyond.append(_grown(relative, known, placed))
        elif relative.link not in SHORTCUTS and relative.key.table != "preferences":
            beyond.append(relative)
    return Step(step.key, step.row, step.link, beyond)


def walk(steps: Iterable[Step]) -> Iterator[Step]:
    """The steps of a tree, each row once, nearest first."""
    queue = deque(steps)
    while queue:
        step = queue.popleft()
        if step.beyond is not None:
            yield step
            queue += step.beyond


def _answers(step: Step) -> tuple[str, ...]:
    return (step.key.round, *(step.row[k] for k in ("prompt_id", "chosen_id", "rejected_id")))


def _named(generation: list[Step]) -> Iterator[tuple[Step, Link, str]]:
    for step in generation:
        for link in (k for k in LINKS if k.table == step.key.table):
            for id in link.ids(step.row):
                yield step, link, id


def _rows(relation: duckdb.DuckDBPyRelation) -> list[dict[str, Any]]:
    return relation.to_arrow_table().to_pylist(maps_as_pydicts="strict")


def _and(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
