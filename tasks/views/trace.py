"""Traces a row both ways: what it was made from, and the rows, rounds and models that it went into.

A terminal shows a line of each text and a few rows of each kind; a pipe or file gets them whole.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
from rich.console import Console, Group
from rich.text import Text
from rich.tree import Tree

from tasks.core import store
from tasks.core.plugin import load
from tasks.views._lineage import Key, Lineage, Step, walk
from tasks.views.catalog import connect, consistently

MAX_ROWS = 8
"""Rows of one kind that a terminal shows below a row."""
DIGITS = 16
"""Of a model's digest that the tree shows."""
UNLIMITED = 1_000_000
"""Columns of a pipe: no text is wrapped or cut."""
FACTS = {
    "prompts": ("source", "level", "reference", "member"),
    "responses": ("answer", "sample", "tokens", "finish_reason", "hinted", "author", "member"),
    "judgments": ("member", "score", "verdict", "reward"),
    "filtered": ("kept", "rank", "reason", "margin", "score"),
    "critiques": ("verdict", "wrong_step", "target", "successes", "refinements", "kept", "member"),
    "refinements": ("answer", "success", "sample", "member"),
    "pairs": ("source", "chosen_score", "rejected_score", "judge", "weight", "smoothing", "member"),
    "training": ("source", "label", "reward", "weight", "tag", "tokens", "member"),
    "preferences": ("source", "weight", "smoothing", "tokens", "member"),
    "evals": ("split", "mode", "sample", "level", "answer", "correct", "score", "item"),
    "audits": ("judge", "truth", "true_step", "verdict", "wrong_step", "score", "item"),
}
"""What is printed of a row beside its id, in this order."""
PLAIN = {("hinted", False), ("author", "parent"), ("weight", 1.0), ("smoothing", 0.0), ("finish_reason", "stop")}
"""What goes without saying."""
TEXTS = ("problem", "response", "critique", "rationale", "completion", "chosen", "rejected", "error")
ROLES = {
    "id": "replayed from",
    "chosen_id": "chosen",
    "rejected_id": "rejected",
    "parents": "example",
}
ROLES_DOWN = {"id": "replayed", "chosen_id": "as chosen", "rejected_id": "as rejected", "parents": "written after it"}
Row = tuple[str, dict[str, Any]]
"""(table name, row)."""


@dataclass(frozen=True)
class Trained:
    """What a round's training did with rows of the lineage."""

    round: str
    strategy: str | None
    """None where the round has not trained yet."""
    model: str | None
    learnt: bool
    """Whether its model was trained on one of them at least."""
    descendants: list[str]
    """Rounds whose models descend from it."""

    @property
    def fate(self) -> str:
        """The same in words, after `the model of the round`."""
        if self.strategy is None:
            return "has not been trained yet"
        if not self.learnt:
            return f"was not trained on it ({self.strategy})"
        heirs = self.descendants
        more = f"; {', '.join(heirs)} descend{'s' * (len(heirs) == 1)} from it" if heirs else ""
        return f"was trained on it ({self.strategy}){more}"


class Trace:
    """The lineage of a row, both ways."""

    def __init__(self, con: duckdb.DuckDBPyConnection, id: str, round: str | None = None) -> None:
        self.lineage = Lineage(con)
        start = self.lineage.find(id, round)
        self.made_from = self.lineage.made_from(start)
        self.went_into = self.lineage.went_into(start)

    @property
    def subject(self) -> Key:
        """The row that is traced."""
        return self.made_from[0].key

    @cached_property
    def authors(self) -> dict[str, list[str]]:
        """The rounds whose model has a digest."""
        authors: dict[str, list[str]] = {}
        for name, row in self.lineage.rounds.items():
            if row["model"]:
                authors.setdefault(row["model"], []).append(name)
        return authors

    def writers(self) -> list[dict[str, Any]]:
        """The rounds whose models wrote what the row was made from, and the row."""
        digests = {s.row.get("model") for s in walk(self.made_from)}
        return [row for row in self.lineage.rounds.values() if row["model"] in digests - {None}]

    def trained(self, root: Path) -> list[Trained]:
        """The rounds that collected the row or what was made from it, in their order."""
        return trained_in(root, self.lineage, walk(self.went_into))

    def as_json(self, root: Path) -> dict[str, Any]:
        """All of it: rows with every column, each with its link to the row `of` which it is."""
        table, round, id = self.subject
        return {
            "table": table,
            "round": round,
            "id": id,
            "row": self.made_from[0].row,
            "made_from": list(_links(self.made_from)),
            "written_by": self.writers(),
            "went_into": list(_links(self.went_into)),
            "trained": [vars(t) for t in self.trained(root)],
        }


def trained_in(root: Path, lineage: Lineage, steps: Iterable[Step]) -> list[Trained]:
    """What the rounds that have training rows or preferences among these rows did with them, in the rounds' order."""
    rows = [s for s in steps if s.key.table in ("training", "preferences")]
    owners = {s.key.round for s in rows}
    return [_trained(root, lineage, n, [s for s in rows if s.key.round == n]) for n in lineage.rounds if n in owners]


def _trained(root: Path, lineage: Lineage, name: str, rows: list[Step]) -> Trained:
    manifest = store.manifests(root, name).get("train")
    if manifest is None:
        return Trained(name, None, None, False, [])
    strategies = [values.get("strategy", member) for member, values in manifest.plan.members.items()]
    tables = {table for strategy in strategies for table in learnt_tables(strategy)}
    learnt = any(s.row["error"] is None and s.key.table in tables for s in rows)
    return Trained(name, " + ".join(strategies), lineage.rounds[name]["model"], learnt, lineage.descendants(name))


def learnt_tables(strategy: str) -> set[str]:
    """The tables that a strategy of `train` learns from."""
    trainer = load("train", strategy)
    learns = {"training": trainer.learns_from_training, "preferences": trainer.learns_from_preferences}
    return {table for table, does in learns.items() if does}


def trace(con: duckdb.DuckDBPyConnection, id: str, round: str | None = None) -> list[Row]:
    """What a row was made from, nearest first: itself, its answers with every verdict and the filter's decision, its prompt
    and the prompts that the author was shown, and the rounds whose models wrote them. A unique prefix of an id will do.

    Raises:
        FlywheelError: when no table has a row with that id, or when several rounds have one and `round` is None.
    """
    found = Trace(con, id, round)
    return [(s.key.table, s.row) for s in walk(found.made_from)] + [("rounds", row) for row in found.writers()]


def show(
    root: Path,
    id: str,
    round: str | None = None,
    as_json: bool = False,
    full: bool = False,
    console: Console | None = None,
) -> None:
    """Prints the lineage of a row as a tree, or as JSON with every column."""

    def read() -> tuple[Trace, dict[str, Any], list[Trained]]:
        found = Trace(connect(root), id, round)
        return found, found.as_json(root), found.trained(root)

    found, document, trained = consistently(root, read)
    if as_json:
        print(json.dumps(document, ensure_ascii=False, default=str, indent=1))
        return
    console = console or printer()
    page = _Page(found, full or not console.is_terminal)
    console.print(page.tree(trained))
    if page.cut:
        console.print(Text("Cut to the screen: --full shows all rows and texts, --json every column.", style="dim"))


def printer() -> Console:
    """As wide as the terminal; in a pipe or file as wide as it takes."""
    return Console(width=None if sys.stdout.isatty() else UNLIMITED, highlight=False)


class _Page:
    """Draws a trace."""

    def __init__(self, trace: Trace, full: bool) -> None:
        self.trace, self.full, self.cut = trace, full, False

    def tree(self, trained: list[Trained]) -> Tree:
        subject = self.trace.made_from[0]
        tree = Tree(self._label(subject, ""), guide_style="dim")
        up = tree.add(Text("made from", style="italic"))
        self._grow(up, subject.beyond or [], ROLES)
        self._add_writers(up)
        down = tree.add(Text("went into", style="italic"))
        self._grow(down, self.trace.went_into[0].beyond or [], ROLES_DOWN)
        self._add_models(down, trained)
        return tree

    def _grow(self, branch: Tree, steps: list[Step], roles: dict[str, str], depth: int = 0) -> None:
        shown: Counter[str] = Counter()
        for step in steps:
            shown[step.key.table] += 1
            if self.full or shown[step.key.table] <= MAX_ROWS:
                self._add(branch, step, roles, depth)
        for table, count in shown.items():
            if count > MAX_ROWS and not self.full:
                self.cut = True
                branch.add(Text(f"… {count - MAX_ROWS} more {table}", style="dim"))

    def _add(self, branch: Tree, step: Step, roles: dict[str, str], depth: int) -> None:
        role = roles.get(step.link, "")
        if step.beyond is None:
            branch.add(self._head(step, role) + Text("  see above", style="dim"))
            return
        twig = branch.add(self._label(step, role))
        examples = step.link == "parents" and not self.full
        if examples and step.beyond:
            self.cut = True
            earlier = sum(1 for _ in walk(step.beyond))
            twig.add(Text(f"… {earlier} earlier prompt{'s' * (earlier != 1)} behind it", style="dim"))
        else:
            self._grow(twig, step.beyond, roles, depth + 1)

    def _add_writers(self, branch: Tree) -> None:
        for row in self.trace.writers():
            kind = f"{row['kind'] or 'round'} {row['round']}"
            facts = [f"recipe {row['recipe']}" if row["recipe"] else f"engine {row['engine']}"]
            facts += [f"parent {row['parent']}"] if row["parent"] else []
            branch.add(
                Text.assemble(
                    ("model of the ", "bold"), (kind, "bold"), f"  {', '.join(facts)}  ", (row["model"][:DIGITS], "dim")
                )
            )
        if not branch.children:
            branch.add(Text("nothing that is stored: a person or the domain wrote it", style="dim"))

    def _add_models(self, branch: Tree, trained: list[Trained]) -> None:
        for each in trained:
            branch.add(
                Text.assemble(
                    (f"model of the round {each.round}", "bold"),
                    f"  {each.fate}",
                    ("  " + (each.model or "")[:DIGITS], "dim"),
                )
            )
        if not branch.children:
            branch.add(Text("nothing that is stored", style="dim"))

    def _head(self, step: Step, role: str) -> Text:
        table, round, id = step.key
        head = Text.assemble((table, "bold cyan"), " ", (round, "bold"), " ", (id, "yellow"))
        return head.append(f"  ({role})", "italic") if role else head

    def _label(self, step: Step, role: str) -> Group:
        head = self._head(step, role).append("  ").append(", ".join(self._facts(step)))
        return Group(head, *(self._line(*text) for text in _texts(step.row)))

    def _facts(self, step: Step) -> Iterator[str]:
        if model := step.row.get("model"):
            yield f"by {'/'.join(self.trace.authors.get(model, [])) or model[:DIGITS]}"
        for name in FACTS.get(step.key.table, ()):
            value = step.row.get(name)
            if value is not None and (name, value) not in PLAIN:
                yield f"{name} {_plain(value)}"

    def _line(self, name: str, text: str) -> Text:
        label = f"  {name:<10}  "
        lines = text.splitlines() or [""]
        if self.full:
            return Text.assemble((label, "dim"), f"\n{' ' * len(label)}".join(lines))
        self.cut = True
        return Text.assemble((label, "dim"), " ⏎ ".join(lines), no_wrap=True, overflow="ellipsis")


def _texts(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name in TEXTS:
        if (value := row.get(name)) not in (None, "", []):
            yield name, value if isinstance(value, str) else "\n".join(turn["content"] or "" for turn in value)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _links(steps: list[Step]) -> Iterator[dict[str, Any]]:
    """The rows beyond these as flat objects, nearest first; each as often as it is linked, its columns the first time."""
    for step in walk(steps):
        for other in step.beyond or ():
            place = {"table": other.key.table, "round": other.key.round, "id": other.key.id}
            link = {"of": step.key.id, "link": other.link}
            yield place | link | ({} if other.beyond is None else {"row": other.row})
