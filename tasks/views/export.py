"""Exports a round's SFT rows and preferences as a data set for `datasets` and TRL, with a data card. Rows with an `error`,
which the round was not trained on, are left out, and so are undesirable completions (`label` false), which no SFT trainer
may imitate. `id` is the row's own, by which `flywheel trace` finds what it was made from; trainers leave it out. `weight` is
a further column where any row's is not 1.

<to>/README.md                                  the data set's card; its front matter declares the two configs
<to>/sft/train-00000.parquet                    prompt, completion, id            for trl.SFTTrainer
<to>/preference/train-00000.parquet             prompt, chosen, rejected, id      for trl.DPOTrainer
"""

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

CARD = """---
pretty_name: {title}
task_categories:
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
| | |
|---|---|
| round | `{round}` |
| parent | `{parent}` |
| base | `{base}` |
| recipe | `{recipe}` |
| seed | {seed} |
| domain | {domain} |
| engine | {engine} |
| model that the round made (sha256) | `{model}` |
| rows written by (sha256) | {authors} |

Stage by stage:

| stage | strategy | rows | finished (UTC) |
|---|---|---|---|
{stages}
## Licence
None is declared. Problems and answers come from the base model and from the domain's own data, and their terms apply:
choose a licence that they allow, and add it to the front matter as `license:`.
"""


def export(root: Path, round: str, to: Path) -> str:
    """Writes the round's training rows and preferences to the folder `to`, replacing an earlier export; returns a summary.

    Keeps the tables' row order and verifies their digests. A config without rows has no file and is not declared in the
    card, because `datasets` cannot read a Parquet file without rows.

    Raises:
        FlywheelError: when the round has nothing to export, or `to` holds anything but an export.
    """
    frames = catalog.consistently(root, lambda: {c: _rows(root, round, c) for c in CONFIGS})
    counts = {c: rows.num_rows for c, rows in frames.items()}
    if not any(counts.values()):
        raise FlywheelError(f"{round} has neither training rows nor preferences; export a round that was trained")
    _check_target(to)
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".flywheel-", dir=to.parent) as folder:
            new, old = Path(folder) / "new", Path(folder) / "old"
            for config in (c for c, count in counts.items() if count):
                _write(new / config, frames[config])
            (new / "README.md").write_text(_card(root, round, frames), encoding="utf-8")
            if to.exists():
                to.rename(old)
            new.rename(to)
    except OSError as error:
        raise FlywheelError(f"{to} cannot be written: {error}") from None
    return f"{to}: {counts['sft']} SFT rows, {counts['preference']} preference pairs of {round}"


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


def _check_target(to: Path) -> None:
    """An export only replaces an export or an empty folder."""
    if to.exists() and not to.is_dir():
        raise FlywheelError(f"{to} is a file; choose a folder")
    names = {p.name for p in to.iterdir()} if to.is_dir() else set()
    if foreign := sorted(names - {"README.md", *CONFIGS}):
        raise FlywheelError(f"{to} contains {foreign[0]!r}, which is no export; choose an empty folder")
    if names and not ("README.md" in names and names & set(CONFIGS)):
        raise FlywheelError(f"{to} is not empty and not an export; choose an empty folder")


def _write(folder: Path, rows: pa.Table) -> None:
    folder.mkdir(parents=True)
    pq.write_table(rows, folder / "train-00000.parquet", compression="zstd")


def _card(root: Path, round: str, frames: dict[str, pa.Table]) -> str:
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
        authors=", ".join(f"`{a['model']}`" for a in authors if a["model"]) or "not recorded",
    )


def _config(name: str) -> str:
    files = f"  data_files:\n  - split: train\n    path: {name}/train-*.parquet\n"
    return f"- config_name: {name}\n{files}"


def _query(con: Any, sql: str, round: str) -> list[dict[str, Any]]:
    return con.sql(sql, params={"round": round}).to_arrow_table().to_pylist()
