"""Slices of a round's training rows, to be left out one at a time."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import polars as pl
from pydantic import BaseModel

from tasks.core import store
from tasks.core.errors import FlywheelError, UnknownName
from tasks.core.tables import TABLES

By = Literal["source", "level", "judge", "member", "author"]
BY: tuple[By, ...] = get_args(By)
COLLECTED = ("training", "preferences")


class Slice(BaseModel):
    """Training rows that have something in common."""

    by: By
    """`source` and `member` are the rows' own (a member of `collect`), `level` is their problem's, `author` the member of
    `generate` that wrote the answer; `judge` is a judge that failed the answer, so that its slice is what it would have kept
    out.
    """
    value: str
    rows: int
    """Those that were trained on."""

    @property
    def name(self) -> str:
        """As it is printed."""
        return f"failed by {self.value}" if self.by == "judge" else f"{self.by} {self.value}"


def slices(root: Path, name: str, by: str) -> list[Slice]:
    """The slices of a round's training rows, the largest first.

    Raises:
        UnknownName: when rows are not told apart by that.
        FlywheelError: when there are fewer than two slices, or no judge failed a row.
    """
    if by not in BY:
        raise UnknownName("slice", by, BY, "--slice")
    usable = [labels(root, name, by, t).filter("usable") for t in COLLECTED]
    counts = pl.concat(usable).group_by("value").len().sort(["len", "value"], descending=[True, False])
    found = [Slice(by=by, value=value, rows=rows) for value, rows in counts.iter_rows()]
    if by == "judge" and not found:
        raise FlywheelError(f"--slice judge: no judge of {name} failed an answer that it was trained on")
    if by != "judge" and len(found) < 2:
        only = f"only the {by} {found[0].value}" if found else "no training rows at all"
        raise FlywheelError(f"--slice {by}: {name} has {only}, so there is nothing to tell apart")
    return found


def leave_out(root: Path, place: Path, old: str, new: str, without: Slice, manifest: store.Manifest) -> None:
    """Writes what `collect` gave in the round `old`, without a slice, as the round `new` of a scratch place."""
    with store.writing(place, new, "collect") as draft:
        for table in COLLECTED:
            gone = labels(root, old, without.by, table).filter(value=without.value)
            rows = store.read(root, old, table)
            draft.table(TABLES[table], rows.join(gone, on="id", how="anti", maintain_order="left"))
        draft.commit(manifest.of_round(new).model_copy(update={"outputs": draft.outputs}))


def labels(root: Path, name: str, by: By, table: str) -> pl.DataFrame:
    """id, value, usable: the slices that each row of a table is in, and whether it is trained on."""
    answer = "response_id" if table == "training" else "chosen_id"
    rows = store.read(root, name, table).select(
        "id", "source", "member", "prompt_id", answer=answer, usable=pl.col("error").is_null()
    )
    labelled: dict[By, Callable[[], pl.DataFrame]] = {
        "source": lambda: rows.with_columns(value="source"),
        "member": lambda: rows.with_columns(value="member"),
        "level": lambda: rows.join(_levels(root, name), on="prompt_id", how="left"),
        "author": lambda: rows.join(_authors(root, name), on="answer", how="left"),
        "judge": lambda: rows.join(_failed(root, name), on="answer"),
    }
    return labelled[by]().select("id", pl.col("value").cast(pl.String).fill_null("none"), "usable")


def _levels(root: Path, name: str) -> pl.DataFrame:
    """Levels of the prompts of a round and of those before it, whose rows may be replayed."""
    rounds, pending = dict[str, None](), [name]
    while pending:
        owner = pending.pop()
        made = store.manifests(root, owner)
        if owner not in rounds and any("prompts" in m.outputs for m in made.values()):
            rounds[owner] = None
            pending += [a for m in made.values() for a in m.plan.ancestors.values()]
    tables = [store.read(root, owner, "prompts").select(prompt_id="id", value="level") for owner in rounds]
    return pl.concat(tables).unique("prompt_id", keep="first", maintain_order=True)


def _authors(root: Path, name: str) -> pl.DataFrame:
    return store.read(root, name, "responses").select(answer="id", value="member")


def _failed(root: Path, name: str) -> pl.DataFrame:
    rows = store.read(root, name, "judgments").filter(verdict="fail")
    return rows.select(answer="response_id", value="member").unique()
