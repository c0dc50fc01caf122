"""Exports a round's SFT rows and preferences as a data set for `datasets` and TRL, with a data card. Rows with an `error`,
which the round was not trained on, are left out, and so are undesirable completions (`label` false), which no SFT trainer
may imitate. `id` is the row's own, by which `flywheel trace` finds what it was made from; trainers leave it out. `weight` is
a further column where any row's is not 1.

<to>/README.md                                  the data set's card; its front matter declares the two configs
<to>/sft/train-00000.parquet                    prompt, completion, id            for trl.SFTTrainer
<to>/preference/train-00000.parquet             prompt, chosen, rejected, id      for trl.DPOTrainer
"""

import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.core import store
from tasks.core.errors import FlywheelError
from tasks.core.tables import TABLES
from tasks.views import catalog

CONFIGS = {"sft": ("prompt", "completion"), "preference": ("prompt", "chosen", "rejected")}
"""Config → TRL's columns, all conversational."""
ID = "id"
"""Column of the row's id in the round's tables."""
SOURCES = {"sft": ("training",), "preference": ("preferences", "pairs")}
"""Config → source tables; the first with rows is used. `pairs` serves rounds whose recipe trains on no preferences."""

CARD_FILE = "README.md"
TAG = "flywheel"
"""In a card's front matter: this was exported, and may be replaced by another export."""

FACTS = """| | |
|---|---|
| round | `{round}` |
| parent | `{parent}` |
| base | `{base}` |
| recipe | `{recipe}` |
| seed | {seed} |
| domain | {domain} |
"""
"""The lines of a card that say which round it was."""

CARD = (
    """---
pretty_name: {title}
{license}task_categories:
- text-generation
tags:
- flywheel
- trl
- synthetic
configs:
{configs}---

# {title}

Training data of the round `{round}` of a data flywheel: problems, the model's own
answers that were kept, and preference pairs of them.

| config | rows | columns |
|---|---|---|
{counts}
`id` is the row's id in the flywheel: `flywheel trace ID --round {round}` shows the prompt, verdicts and models that it was
made from.

```python
from datasets import load_dataset

rows = load_dataset("path/to/this/folder", "sft", split="train")
```

## How it was made
"""
    + FACTS
    + """| engine | {engine} |
| model that the round made (sha256) | `{model}` |
| rows written by (sha256) | {authors} |

Stage by stage:

| stage | strategy | rows | finished (UTC) |
|---|---|---|---|
{stages}
## Licence
{licence}
"""
)
NO_LICENCE = """None is declared. Problems and answers come from the base model and from the domain's own data, and their terms apply:
choose a licence that they allow, and add it to the front matter as `license:`."""


def export(root: Path, round: str, to: Path, licence: str | None = None) -> str:
    """Writes the round's training rows and preferences to the folder `to`, replacing an earlier export; returns a summary.

    `licence` is an identifier of the hub, such as `cc-by-4.0`; the card declares none without it. Keeps the tables' row order and verifies their digests. A config without rows has no file and is not declared in the
    card, because `datasets` cannot read a Parquet file without rows.

    Raises:
        FlywheelError: when the round has nothing to export, or `to` holds anything but an export.
    """
    frames = catalog.consistently(root, lambda: {c: _rows(root, round, c) for c in CONFIGS})
    counts = {c: rows.num_rows for c, rows in frames.items()}
    if not any(counts.values()):
        raise FlywheelError(f"{round} has neither training rows nor preferences; export a round that was trained")
    card = _card(root, round, frames, licence)

    def fill(folder: Path) -> None:
        for config in (c for c, count in counts.items() if count):
            _write(folder / config, frames[config])
        (folder / CARD_FILE).write_text(card, encoding="utf-8")

    replace(to, CONFIGS, fill)
    return f"{to}: {counts['sft']} SFT rows, {counts['preference']} preference pairs of {round}"


def replace(to: Path, known: Iterable[str], fill: Callable[[Path], None]) -> None:
    """Makes `to` the folder that `fill` writes, at once. An export replaces nothing but an empty folder or an earlier export: a
    card with the tag `flywheel` beside files whose names are `known` (patterns).

    Raises:
        FlywheelError: when `to` holds anything else, or cannot be written.
    """
    _check_target(to, known)
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".flywheel-", dir=to.parent) as folder:
            new, old = Path(folder) / "new", Path(folder) / "old"
            new.mkdir()
            fill(new)
            if to.exists():
                to.rename(old)
            new.rename(to)
    except OSError as error:
        raise FlywheelError(f"{to} cannot be written: {error}") from None


def licence_lines(licence: str | None) -> dict[str, str]:
    """A card's front matter and its paragraph on the licence.

    Raises:
        FlywheelError: for what is no identifier of a licence.
    """
    if licence is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence):
        raise FlywheelError(
            f"--license {licence!r} is no identifier of a licence; the hub's are such as cc-by-4.0, mit"
        )
    declared = f"`{licence}`, as declared by who exported it."
    return {
        "license": f"license: {licence}\n" if licence else "",
        "licence": declared if licence else NO_LICENCE,
    }


def _rows(root: Path, round: str, config: str) -> pa.Table:
    """The rows of a config, from the first of its tables that has rows."""
    for table in SOURCES[config]:
        rows = _usable(store.read(root, round, table))
        weights = rows["weight"] if "weight" in rows.columns else pl.Series([], dtype=pl.Float64)
        columns = [*CONFIGS[config], ID, *(["weight"] if (weights != 1).any() else [])]
        schema = pa.schema([TABLES[table].schema.field(c) for c in columns])
        if len(rows):
            break
    return rows.select(columns).to_arrow().cast(schema)


def _usable(rows: pl.DataFrame) -> pl.DataFrame:
    """Without rows that have an error, and without completions to be avoided."""
    if "error" in rows.columns:
        rows = rows.filter(pl.col("error").is_null())
    return rows.filter(pl.col("label").fill_null(True)) if "label" in rows.columns else rows


def _check_target(to: Path, known: Iterable[str]) -> None:
    if to.exists() and not to.is_dir():
        raise FlywheelError(f"{to} is a file; choose a folder")
    names = {p.name for p in to.iterdir()} if to.is_dir() else set()
    foreign = sorted(n for n in names - {CARD_FILE} if not any(fnmatch(n, pattern) for pattern in known))
    if foreign:
        raise FlywheelError(f"{to} contains {foreign[0]!r}, which is no export; choose an empty folder")
    if names and not (
        CARD_FILE in names and len(names) > 1 and is_export((to / CARD_FILE).read_text("utf-8", "replace"))
    ):
        raise FlywheelError(f"{to} is not empty and not an export; choose an empty folder")


def is_export(card: str) -> bool:
    """Whether a card's front matter has the tag of an export."""
    return f"\n- {TAG}\n" in card.split("\n---\n", 1)[0] + "\n"


def _write(folder: Path, rows: pa.Table) -> None:
    folder.mkdir(parents=True)
    pq.write_table(rows, folder / "train-00000.parquet", compression="zstd")


def _card(root: Path, round: str, frames: dict[str, pa.Table], licence: str | None) -> str:
    with catalog.connect(root) as con:
        facts = _query(con, "select * from rounds where round = $round", round)[0]
        stages = _query(con, "select stage, rows, finished from stages where round = $round", round)
        authors = _query(con, "select distinct model from training where round = $round order by model", round)
    strategies = dict(facts["strategies"])
    values = {k: "not recorded" if v is None else v for k, v in facts.items()}
    lines = [f"| {s['stage']} | {strategies.get(s['stage'], '')} | {s['rows']} | {s['finished']} |\n" for s in stages]
    counts = [
        f"| `{c}` | {rows.num_rows} | {', '.join(f'`{n}`' for n in rows.column_names)} |\n"
        for c, rows in frames.items()
    ]
    return CARD.format(
        **{k: values[k] for k in ("round", "parent", "base", "recipe", "seed", "domain", "engine", "model")},
        title=f"Training data of the round {round}",
        configs="".join(_config(c) for c, rows in frames.items() if rows.num_rows),
        counts="".join(counts),
        stages="".join(lines),
        **licence_lines(licence),
        authors=", ".join(f"`{a['model']}`" for a in authors if a["model"]) or "not recorded",
    )


def _config(name: str) -> str:
    files = f"  data_files:\n  - split: train\n    path: {name}/train-*.parquet\n"
    return f"- config_name: {name}\n{files}"


def _query(con: Any, sql: str, round: str) -> list[dict[str, Any]]:
    return con.sql(sql, params={"round": round}).to_arrow_table().to_pylist()
