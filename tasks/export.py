"""A round's pairs and SFT rows as a data set that `datasets` loads and TRL trains on, with a card that says what it is.

<to>/README.md                                  the data set's card; its front matter declares the two configs
<to>/sft/train-00000.parquet                    prompt, completion            for trl.SFTTrainer
<to>/preference/train-00000.parquet             prompt, chosen, rejected      for trl.DPOTrainer
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tasks import catalog, store
from tasks.errors import FlywheelError
from tasks.tables import TABLES

CONFIGS = {"sft": ("training", ("prompt", "completion")), "preference": ("pairs", ("prompt", "chosen", "rejected"))}
"""By config: the table that it comes from, and TRL's columns for it, all of them conversations."""

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

What the round `{round}` of a flywheel was trained on: problems that a language
model was given, its own answers that were kept, and preference pairs among them.

| config | rows | columns |
|---|---|---|
{counts}
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
    """Writes the round's training rows and pairs below the folder `to`, in place of an earlier export; says what.

    Row order is the tables' own. Digests of what is read are checked. A config without rows has no file, and is not
    declared in the card: `datasets` cannot read a Parquet file without rows.

    Raises:
        FlywheelError: when the round has nothing to export, or `to` holds anything but an export.
    """
    frames = {c: store.scan(root, round, table)[0] for c, (table, _) in CONFIGS.items()}
    counts = {c: frame.select(pl.len()).collect().item() for c, frame in frames.items()}
    if not any(counts.values()):
        raise FlywheelError(f"{round} has neither training rows nor pairs; export a round that was trained")
    _refuse_others(to)
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".flywheel-", dir=to.parent) as place:
            new, old = Path(place) / "new", Path(place) / "old"
            for config in (c for c, count in counts.items() if count):
                _write(new / config, config, frames[config])
            (new / "README.md").write_text(_card(root, round, counts), encoding="utf-8")
            if to.exists():
                to.rename(old)
            new.rename(to)
    except OSError as error:
        raise FlywheelError(f"{to} cannot be written: {error}") from None
    return f"{to}: {counts['sft']} SFT rows, {counts['preference']} preference pairs of {round}"


def _refuse_others(to: Path) -> None:
    """An export replaces an export or an empty folder, and nothing else."""
    if to.exists() and not to.is_dir():
        raise FlywheelError(f"{to} is a file; choose a folder")
    found = {p.name for p in to.iterdir()} if to.is_dir() else set()
    if strange := sorted(found - {"README.md", *CONFIGS}):
        raise FlywheelError(f"{to} holds {strange[0]!r}, which is no export; choose an empty folder")
    if found and not ("README.md" in found and found & set(CONFIGS)):
        raise FlywheelError(f"{to} is not empty, and no export; choose an empty folder")


def _write(folder: Path, config: str, frame: pl.LazyFrame) -> None:
    table, columns = CONFIGS[config]
    schema = pa.schema([TABLES[table].schema.field(c) for c in columns])
    folder.mkdir(parents=True)
    rows = frame.select(columns).collect().to_arrow().cast(schema)
    pq.write_table(rows, folder / "train-00000.parquet", compression="zstd")


def _card(root: Path, round: str, counts: dict[str, int]) -> str:
    with catalog.connect(root) as con:
        facts = _rows(con, "select * from rounds where round = $round", round)[0]
        stages = _rows(con, "select stage, rows, finished from stages where round = $round", round)
        authors = _rows(con, "select distinct model from training where round = $round order by model", round)
    strategies = dict(facts["strategies"])
    told = {k: "not recorded" if v is None else v for k, v in facts.items()}
    lines = [f"| {s['stage']} | {strategies.get(s['stage'], '')} | {s['rows']} | {s['finished']} |\n" for s in stages]
    rows = [f"| `{c}` | {counts[c]} | {', '.join(f'`{n}`' for n in names)} |\n" for c, (_, names) in CONFIGS.items()]
    return CARD.format(
        **{k: told[k] for k in ("round", "parent", "base", "seed", "domain", "engine", "model")},
        title=f"Training data of the round {round}",
        configs="".join(_config(c) for c in CONFIGS if counts[c]),
        counts="".join(rows),
        stages="".join(lines),
        authors=", ".join(f"`{a['model']}`" for a in authors if a["model"]) or "not recorded",
    )


def _config(name: str) -> str:
    files = f"  data_files:\n  - split: train\n    path: {name}/train-*.parquet\n"
    return f"- config_name: {name}\n{files}"


def _rows(con: Any, sql: str, round: str) -> list[dict[str, Any]]:
    return con.sql(sql, params={"round": round}).to_arrow_table().to_pylist()
