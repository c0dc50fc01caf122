"""Prints a round on a few prompts: each prompt with its answers, their verdicts, what the filter did, and what is learnt."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tasks.core import store
from tasks.project.preview import place, previewed
from tasks.views._diff_text import plain

DEFAULT_WIDTH = 120
MAX_TEXT = 400
"""Characters of a text that are printed."""
REJECTED = 5
"""Rejected prompts that are printed."""
MARKS = {"pass": " ✓", "fail": " ✗"}
TABLES = (
    "prompts",
    "responses",
    "judgments",
    "filtered",
    "critiques",
    "refinements",
    "pairs",
    "training",
    "preferences",
)
Rows = dict[str, pl.DataFrame]


def show(root: Path, name: str, prompts: int) -> None:
    """Makes the preview of a round and prints it; only answers in the request cache stay."""
    console, clock = Console(width=None if sys.stdout.isatty() else DEFAULT_WIDTH, highlight=False), time.perf_counter()
    with (
        console.status(name) as status,
        previewed(root, name, prompts, lambda stage: status.update(f"{stage}@{name} …")) as made,
    ):
        rows = {table: store.read(place(root, name), name, table) for table in TABLES}
    usable = rows["prompts"].filter(pl.col("error").is_null())
    for number, prompt in enumerate(usable.iter_rows(named=True), 1):
        console.print(_title(f"{number}/{len(usable)}", prompt))
        own = {t: f.filter(prompt_id=prompt["id"]) for t, f in rows.items() if "prompt_id" in f.columns}
        for renderable in _prompt(own):
            console.print(renderable)
    for renderable in _rejected(rows["prompts"]):
        console.print(renderable)
    for warning in (f"{stage}: {text}" for stage, manifest in made.items() for text in manifest.warnings):
        console.print(Text(f"warning: {plain(warning)}", style="yellow"))
    console.print(_summary(name, rows, made, time.perf_counter() - clock))


def _title(number: str, prompt: dict[str, Any]) -> RenderableType:
    level = "" if prompt["level"] is None else f", level {prompt['level']}"
    head = Text(f"\n{number}  {prompt['id']}  by {prompt['member']}{level}", style="bold")
    return Text.assemble(head, "\n", _cut(prompt["problem"]))


def _prompt(own: Rows) -> Iterator[RenderableType]:
    answers = list(_answers(own))
    table = Table(box=SIMPLE_HEAD, expand=True, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("#", justify="right")
    table.add_column("answer", ratio=1)
    table.add_column("verdicts", no_wrap=True)
    table.add_column("filter", max_width=19, overflow="fold")
    for answer in answers:
        table.add_row(str(answer["number"]), _text(answer), _verdicts(own, answer["ids"][0]), _filter(answer))
    yield table
    names = {id: f"answer {answer['number']}" for answer in answers for id in answer["ids"]}
    names |= {c["id"]: f"the critique of {names.get(c['response_id'])}" for c in own["critiques"].iter_rows(named=True)}
    for line in (*_critiques(own, names), *_pairs(own, names), *_learnt(own, names)):
        yield Padding(line, (0, 0, 0, 2))


def _answers(own: Rows) -> Iterator[dict[str, Any]]:
    """Equal answers together, the kept ones first."""
    decided = own["responses"].join(own["filtered"].drop("prompt_id"), on="id", how="left", maintain_order="left")
    ordered = decided.sort("rank", "sample", nulls_last=True, maintain_order=True)
    several = ordered["member"].n_unique() > 1
    for number, (_, same) in enumerate(ordered.group_by("member", "response", "error", maintain_order=True), 1):
        first = same.sort(pl.col("reason") == "duplicate", nulls_last=False, maintain_order=True).row(0, named=True)
        ids = [first["id"], *(id for id in same["id"] if id != first["id"])]
        yield first | {"number": number, "ids": ids, "author": f"{first['member']}: " if several else ""}


def _verdicts(own: Rows, response: str) -> Text:
    """A line for each judge, the one whose score is the reward first."""
    judged = own["judgments"].filter(response_id=response).sort("reward", "member", descending=[True, False])
    return Text("\n").join(_verdict(row) for row in judged.iter_rows(named=True))


def _verdict(row: dict[str, Any]) -> Text:
    name = f"{row['member']}{' (reward)' if row['reward'] else ''} "
    if row["error"] is not None:
        return Text.assemble(name, ("error", "red"))
    style = {"pass": "green", "fail": "red"}.get(row["verdict"] or "", "")
    return Text.assemble(name, (f"{row['score']:.3g}{MARKS.get(row['verdict'] or '', '')}", style))


def _text(answer: dict[str, Any]) -> Text:
    if answer["error"] is not None:
        return Text(f"error: {plain(answer['error'])}", style="red")
    count = len(answer["ids"])
    return Text.assemble((answer["author"] + (f"{count} × " if count > 1 else ""), "dim"), _cut(answer["response"]))


def _filter(answer: dict[str, Any]) -> Text:
    if answer["kept"]:
        return Text(f"kept, rank {answer['rank']}", style="green")
    if answer["reason"] is None:
        return Text("")
    margin = "" if answer["margin"] is None else f" by {answer['margin']:.3g}"
    return Text(f"dropped: {answer['reason']}{margin}", style="yellow")


def _critiques(own: Rows, names: dict[str, str]) -> Iterator[Text]:
    for row in own["critiques"].iter_rows(named=True):
        reached = f"{row['successes']} of {row['refinements']} refinements reach the target"
        status = row["error"] or f"{reached}, {'kept' if row['kept'] else 'dropped'}"
        yield _line(f"{names[row['id']].removeprefix('the ')} ({plain(status)}): ", row["critique"])


def _pairs(own: Rows, names: dict[str, str]) -> Iterator[Text]:
    for row in own["pairs"].iter_rows(named=True):
        scores = f"{row['chosen_score']:.3g} over {row['rejected_score']:.3g}"
        yield _line(f"pair by {row['member']} ({scores}): ", _sides(row, names))


def _learnt(own: Rows, names: dict[str, str]) -> Iterator[Text]:
    for row in own["training"].iter_rows(named=True):
        text = names.get(row["response_id"]) or row["completion"][-1]["content"]
        yield _line(f"training row of {row['source']}{_left_out(row)}: ", text)
    for row in own["preferences"].iter_rows(named=True):
        yield _line(f"preference{_left_out(row)}: ", _sides(row, names))


def _sides(row: dict[str, Any], names: dict[str, str]) -> str:
    """The chosen and the rejected completion, by name where it was printed before."""
    return " over ".join(names.get(row[f"{s}_id"]) or row[s][-1]["content"] for s in ("chosen", "rejected"))


def _left_out(row: dict[str, Any]) -> str:
    return f", left out: {plain(row['error'])}" if row["error"] else ""


def _line(head: str, text: str | None) -> Text:
    return Text.assemble((head, "dim"), _cut(text))


def _cut(text: str | None) -> str:
    shown = plain(text)
    return shown if len(shown) <= MAX_TEXT else f"{shown[: MAX_TEXT - 1]}…"


def _rejected(prompts: pl.DataFrame) -> Iterator[RenderableType]:
    rejected = prompts.filter(pl.col("error").is_not_null())
    if len(rejected):
        yield Text(f"\nrejected prompts: {len(rejected)}", style="bold")
    for row in rejected.head(REJECTED).iter_rows(named=True):
        yield Padding(_line(f"{plain(row['error'])}: ", row["problem"]), (0, 0, 0, 2))


def _summary(name: str, rows: Rows, made: dict[str, store.Manifest], seconds: float) -> Text:
    counts = {
        "prompts": len(rows["prompts"].filter(pl.col("error").is_null())),
        "answers": len(rows["responses"]),
        "kept": int(rows["filtered"]["kept"].sum()),
        "critiques": len(rows["critiques"]),
        "refinements": len(rows["refinements"]),
        "pairs": len(rows["pairs"]),
        "training rows": len(rows["training"].filter(pl.col("error").is_null())),
        "preferences": len(rows["preferences"].filter(pl.col("error").is_null())),
    }
    tokens = sum(manifest.tokens.get("completion_tokens", 0) for manifest in made.values())
    told = ", ".join(f"{count} {what}" for what, count in counts.items())
    return Text(
        f"\n{name} on {counts['prompts']} prompts: {told}; {tokens:,} tokens in {seconds:.0f} s. "
        "Nothing was kept but the answers in the request cache.",
        style="bold",
    )
