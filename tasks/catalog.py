"""SQL over all rounds: DuckDB views of what the manifests name, in memory, so that no process shares a writable file.

    prompts, responses, judgments, …   every table of `tables.py`, with the column `round` in front
    rounds                             what each base and round is: parent, strategies, model, whether it was promoted
    stages                             what each stage of each round cost: rows, tokens, seconds
    metrics                            every number that a stage measured: (round, stage, name, value)

Files are taken from manifests, never from globs: what a killed process left behind is in no manifest, so in no view.
A table that no round has written is a view without rows.
"""

import csv
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from tasks import models, params, store
from tasks.errors import FlywheelError, StoreError, UnknownName
from tasks.store import Manifest, Output
from tasks.tables import TABLES, Table

Rounds = dict[str, dict[str, Manifest]]
"""The manifests of every round by stage, in the order of params.yaml; what is on disk only comes last."""

Format = Literal["table", "csv", "json"]

TEXT, INTEGER, NUMBER, FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()
ROUNDS = pa.schema(
    {
        "round": TEXT,
        "kind": TEXT,  # `base` or `round`; null when params.yaml no longer has it
        "parent": TEXT,
        "base": TEXT,
        "seed": INTEGER,
        "domain": TEXT,
        "engine": TEXT,
        "strategies": pa.map_(TEXT, TEXT),  # by stage; the members of a panel are joined by ` + `
        "model": TEXT,  # digest of the weights, as rows carry it; null for an adapter that no round made
        "promoted": FLAG,  # what the gate said; null before it has run
        "stages": INTEGER,  # how many have run
        "finished": TEXT,  # the last of them, ISO 8601, UTC
    }
)
STAGES = pa.schema(
    {
        "round": TEXT,
        "stage": TEXT,
        "rows": INTEGER,  # written, over all its tables
        "prompt_tokens": INTEGER,
        "completion_tokens": INTEGER,
        "requests": INTEGER,
        "seconds": NUMBER,  # all of them; `start_seconds` is the part that is process start-up and model loading
        "start_seconds": NUMBER,
        "model_seconds": NUMBER,  # generating, scoring, training
        "run_seconds": NUMBER,
        "write_seconds": NUMBER,
        "started": TEXT,
        "finished": TEXT,
    }
)
METRICS = pa.schema({"round": TEXT, "stage": TEXT, "name": TEXT, "value": NUMBER})

SHOWN_ROWS, SHOWN_WIDTH = 200, 60
"""What a printed table is cut to, in rows and in characters a cell; csv, json and Parquet are never cut."""


def connect(root: Path) -> duckdb.DuckDBPyConnection:
    """A connection to a database in memory with the views over all rounds of the project at `root`.

    Raises:
        StoreError: when a file that a manifest names is missing, cut short, or no Parquet.
    """
    con = duckdb.connect()
    _build(con, root)
    return con


def query(root: Path, sql: str) -> pa.Table:
    """The rows of a query over all rounds; no columns where the statement gives no rows.

    The digests of the tables that it names are checked first. A second column of the same name gets a number.

    Raises:
        StoreError: when a file of these tables is not what was written.
        UnknownName: for a table that is not there, with the nearest names.
        FlywheelError: with DuckDB's message, for any other error in the query.
    """
    con = connect(root)
    # by the words of the text: DuckDB's own list of names stops at pivots, prepared statements and views of views
    _verify(root, {word.lower() for word in re.findall(r"\w+", sql)})
    try:
        result = con.sql(sql)
        found = pa.table({}) if result is None else result.to_arrow_table()
    except duckdb.Error as error:
        raise _explained(error) from None
    return found.rename_columns(_unique(found.column_names))


def _unique(names: list[str]) -> list[str]:
    """Names of which none is lost in a dict: a second `id` is `id_1`, as in a table that DuckDB makes of them."""
    found: dict[str, None] = {}
    for name in names:
        others = (f"{name}_{n}" for n in count(1))
        found[name if name not in found else next(o for o in others if o not in found)] = None
    return list(found)


def show(root: Path, sql: str, format: Format = "table", out: Path | None = None) -> None:
    """Prints the rows of a query, or writes them to the Parquet file `out`, whole or not at all."""
    rows = query(root, sql)
    if out is not None:
        _write_parquet(rows, out)
        print(f"{out}: {rows.num_rows} rows")
    else:
        {"table": _print_table, "csv": _print_csv, "json": _print_json}[format](rows)


def write_views(root: Path, file: Path) -> None:
    """Makes a small DuckDB file of the views for other clients, in place of an older one; whole or not at all.

    The views name their Parquet files by absolute path, so they work from any folder of this machine; `rounds`,
    `stages` and `metrics` are copies. Neither knows of what runs later: make the file again then.

    Raises:
        FlywheelError: when the file cannot be written, or when another kind of file would be lost.
    """
    with _replacing(file, b"DUCK") as new, duckdb.connect(new) as con:
        _build(con, root)


def show_trace(root: Path, id: str, round: str | None = None) -> None:
    """Prints everything that a row descends from, a line each: table, round, and what the row holds as JSON."""
    for table, row in trace(connect(root), id, round):
        told = {k: v for k, v in row.items() if v is not None and k != "round"}
        print(table, row["round"], json.dumps(told, ensure_ascii=False, default=str))


def trace(con: duckdb.DuckDBPyConnection, id: str, round: str | None = None) -> list[tuple[str, dict[str, Any]]]:
    """Everything that a row descends from, nearest first, as (table, row) pairs.

    Follows the ids that rows carry: from a training row or pair to its responses, their prompt and the prompts that
    its author was shown, with every verdict on a response, the filter's decision, and the round whose model wrote it.
    Equal texts have equal ids in every round, so an id is looked for in its row's own round, then in the ancestors.

    Raises:
        FlywheelError: when no table has a row with that id, or when several rounds have one and `round` names none.
    """
    parents = dict(con.sql("select round, parent from rounds").fetchall())
    start = _start(con, id, round, list(parents))
    steps: list[tuple[str, dict[str, Any]]] = []
    seen, queue = {(start, id)}, [(start, id)]
    while queue:
        for table, row in _mentions(con, _lineage(queue[0][0], parents), queue[0][1]):
            steps.append((table, row))
            fresh = [asked for asked in _parents(row, parents) if asked not in seen]
            seen.update(fresh)
            queue += fresh
        queue.pop(0)
    return steps + [("rounds", r) for r in _authors(con, {row.get("model") for _, row in steps})]


# Building the views


def _build(con: duckdb.DuckDBPyConnection, root: Path) -> None:
    content = params.plain(params.read(root)) if (root / params.FILE).is_file() else {}
    rounds = _rounds(root, content)
    for table in TABLES.values():
        query = _select(con, root, table, rounds)
        try:
            con.execute(f"create view {table.name} as {query}")
        except duckdb.Error as error:  # it reads the files' footers
            _verify(root, {table.name})
            raise StoreError(
                f"table {table.name} cannot be read: {error}; run the stage that writes it again"
            ) from None
    _create(con, "rounds", [_round_row(root, n, m, content) for n, m in rounds.items()], ROUNDS)
    stages = [m for manifests in rounds.values() for m in sorted(manifests.values(), key=lambda m: m.finished)]
    _create(con, "stages", [_stage_row(m) for m in stages], STAGES)
    metrics = [
        {"round": m.round, "stage": m.stage, "name": n, "value": v} for m in stages for n, v in m.metrics.items()
    ]
    _create(con, "metrics", metrics, METRICS)


def _create(con: duckdb.DuckDBPyConnection, name: str, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    con.register("_rows", pa.Table.from_pylist(rows, schema))
    con.execute(f"create table {name} as from _rows")
    con.unregister("_rows")


def _rounds(root: Path, content: dict[str, Any]) -> Rounds:
    known = [*(content.get("bases") or {}), *(content.get("rounds") or {})]
    return {name: store.manifests(root, name) for name in dict.fromkeys([*known, *_on_disk(root)])}


def _on_disk(root: Path) -> list[str]:
    return sorted(p.name.removeprefix("round=") for p in (root / "data").glob("round=*"))


def _select(con: duckdb.DuckDBPyConnection, root: Path, table: Table, rounds: Rounds) -> str:
    """One typed branch without rows, then one a round; by name, so that an older round may lack a newer column."""
    columns = con.from_arrow(pa.Table.from_batches([], table.schema))
    typed = ", ".join(f'null::{t} as "{c}"' for c, t in zip(columns.columns, columns.types, strict=True))
    branches = [f"select null::varchar as round, {typed} where false"]
    for name, output in _written(table, rounds):
        files = ", ".join(_quoted(str(path)) for path in _parts(root, name, table.name, output))
        if files:
            branches.append(
                f"select {_quoted(name)} as round, * from read_parquet([{files}], hive_partitioning = false)"
            )
    own = ", ".join(f'"{c}"' for c in columns.columns)
    return f"select round, {own} from ({' union all by name '.join(branches)})"


def _written(table: Table, rounds: Rounds) -> Iterator[tuple[str, Output]]:
    for name, manifests in rounds.items():
        for manifest in manifests.values():
            if table.name in manifest.outputs:
                yield name, manifest.outputs[table.name]


def _verify(root: Path, names: set[str]) -> None:
    """Checks the digests of every round's part of the tables with these names."""
    rounds = {name: store.manifests(root, name) for name in _on_disk(root)}
    for table in (t for n, t in TABLES.items() if n in names):
        for name, output in _written(table, rounds):
            store.verify(store.round_folder(root, name) / table.name, output)


def _parts(root: Path, name: str, table: str, output: Output) -> Iterator[Path]:
    """Absolute paths of a table's parts. Sizes are checked here, digests in `query`: other readers must not read every byte."""
    for part in output.parts:
        path = (store.round_folder(root, name) / table / part.file).resolve()
        size = path.stat().st_size if path.is_file() else None
        if size != part.bytes:
            what = "is missing" if size is None else f"has {size} bytes, its manifest says {part.bytes}"
            raise StoreError(f"{path} {what}; restore it with `dvc checkout --force`, or run its stage again")
        yield path


def _round_row(root: Path, name: str, manifests: dict[str, Manifest], content: dict[str, Any]) -> dict[str, Any]:
    kinds = [k for k in ("bases", "rounds") if name in (content.get(k) or {})]
    block = content[kinds[0]][name] or {} if kinds else {}
    asked = {k: v for m in manifests.values() for k, v in m.params.items()}
    files = {p.file: p.sha256 for m in manifests.values() if "model" in m.outputs for p in m.outputs["model"].parts}
    decided = [m.metrics["promoted"] > 0 for m in manifests.values() if "promoted" in m.metrics]
    stages = {s: _strategy(m.params.get(s) or block.get(s)) for s, m in manifests.items()}
    return {
        "round": name,
        "kind": kinds[0].removesuffix("s") if kinds else None,
        "parent": block.get("parent"),
        "base": block.get("base") if kinds == ["rounds"] else name if kinds else None,
        "seed": block.get("seed", next((m.seed for m in manifests.values()), None)),
        "domain": _strategy(asked.get("domain") or block.get("domain")),
        "engine": _strategy(asked.get("engine") or block.get("engine")),
        "strategies": [(s, v) for s, v in sorted(stages.items()) if v],
        "model": models.told_digest(store.round_folder(root, name) / "model", files) if files else None,
        "promoted": decided[0] if decided else None,
        "stages": len(manifests),
        "finished": max((m.finished for m in manifests.values()), default=None),
    }


def _strategy(block: Any) -> str | None:
    if not isinstance(block, dict):
        return None
    return " + ".join(block["panel"]) if isinstance(block.get("panel"), dict) else block.get("strategy")


def _stage_row(manifest: Manifest) -> dict[str, Any]:
    return {
        "round": manifest.round,
        "stage": manifest.stage,
        "rows": sum(o.rows or 0 for o in manifest.outputs.values()),
        **{k: manifest.tokens.get(k, 0) for k in ("prompt_tokens", "completion_tokens", "requests")},
        "seconds": sum(manifest.seconds.values()),
        **{f"{k}_seconds": manifest.seconds.get(k) for k in ("start", "model", "run", "write")},
        "started": manifest.started,
        "finished": manifest.finished,
    }


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


# Tracing


def _start(con: duckdb.DuckDBPyConnection, id: str, round: str | None, known: list[str]) -> str:
    having = [r for r in known if any(_mentions(con, [r], id))]
    if round is not None and round not in known:
        raise UnknownName("round or base", round, known)
    if not having or (round is not None and round not in having):
        where = f"; {', '.join(having)} has one" if having else ""
        raise FlywheelError(
            f"no table{f' of {round}' if round else ''} has a row with the id {id!r}{where}; "
            "an id is 16 hexadecimal digits from an `id` column"
        )
    if round is None and len(having) > 1:
        raise FlywheelError(f"{', '.join(having)} have a row with the id {id!r}; name one of them with --round")
    return round or having[0]


def _lineage(name: str | None, parents: dict[str, str | None]) -> list[str]:
    return [] if name is None else [name, *_lineage(parents.get(name), parents)]


def _mentions(con: duckdb.DuckDBPyConnection, rounds: list[str], id: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows with this id in the first of these rounds that has any; for a response also the verdicts on it."""
    found = []
    for table in TABLES.values():
        keys = ["id"] if "id" in table.schema.names else []
        keys += ["response_id"] if table.name == "judgments" else []
        if keys:
            where = f"list_contains($rounds, round) and ({' or '.join(f'{k} = $id' for k in keys)})"
            rows = con.sql(f"from {table.name} where {where} order by id", params={"id": id, "rounds": rounds})
            found += [(table.name, row) for row in rows.to_arrow_table().to_pylist()]
    there = {row["round"] for _, row in found}
    nearest = next((r for r in rounds if r in there), None)
    yield from ((table, row) for table, row in found if row["round"] == nearest)


def _parents(row: dict[str, Any], parents: dict[str, str | None]) -> list[tuple[str, str]]:
    """What a row was made from, as (round, id); a replayed row is the parent's row of the same id."""
    if row.get("source") == "replay" and (parent := parents.get(row["round"])):
        return [(parent, row["id"])]
    ids = [v for k, v in row.items() if k.endswith("_id") and v]
    return [(row["round"], i) for i in ids + (row.get("parents") or [])]


def _authors(con: duckdb.DuckDBPyConnection, models: set[str | None]) -> list[dict[str, Any]]:
    known = sorted(m for m in models if m)
    sql = "select * from rounds where list_contains($models, model) order by round"
    found = con.sql(sql, params={"models": known})
    return found.to_arrow_table().to_pylist()


# Errors and printing


def _explained(error: duckdb.Error) -> FlywheelError:
    missing = re.search(r"Table with name (\S+) does not exist", str(error))
    if missing:
        return UnknownName("table", missing[1], [*TABLES, "rounds", "stages", "metrics"], "sql")
    return FlywheelError(f"sql: {str(error).strip()}")


def _write_parquet(rows: pa.Table, out: Path) -> None:
    with _replacing(out, b"PAR1") as new:
        pq.write_table(rows, new)


@contextmanager
def _replacing(file: Path, magic: bytes) -> Iterator[Path]:
    """A place beside `file` for what takes its place once it is whole; only a file with `magic` at its start is replaced."""
    try:
        if file.exists() and not file.is_file():
            raise FlywheelError(f"{file} is a folder or device; name a file")
        if file.exists() and file.stat().st_size and magic not in _head(file):
            raise FlywheelError(f"{file} is another kind of file and stays as it is; choose another name")
        with TemporaryDirectory(prefix=".flywheel-", dir=file.parent) as place:
            yield Path(place) / file.name
            (Path(place) / file.name).replace(file)
    except (OSError, duckdb.IOException) as error:
        raise FlywheelError(f"{file} cannot be written: {error}") from None


def _head(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(12)


def _print_table(rows: pa.Table) -> None:
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid()
    for column in rows.schema:
        numeric = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
        grid.add_column(Text(column.name), justify="right" if numeric else "left")
    for row in rows.slice(0, SHOWN_ROWS).to_pylist():
        grid.add_row(*(Text(_shown(v)) for v in row.values()))
    console = Console() if sys.stdout.isatty() else Console(width=10_000)  # a pipe or a file wraps nothing
    console.print(grid)
    left = rows.num_rows - SHOWN_ROWS
    console.print(
        f"{rows.num_rows} row{'s' * (rows.num_rows != 1)}" + (f", the last {left} not shown" if left > 0 else "")
    )


def _shown(value: Any) -> str:
    text = "" if value is None else f"{value:.6g}" if isinstance(value, float) else _flat(value)
    text = text.replace("\n", "⏎")
    return text if len(text) <= SHOWN_WIDTH else text[: SHOWN_WIDTH - 1] + "…"


def _flat(value: Any) -> Any:
    """A value as text: lists and structs as JSON, others as they print."""
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict | tuple) else str(value)


def _print_csv(rows: pa.Table) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(rows.column_names)
    writer.writerows(["" if v is None else _flat(v) for v in row.values()] for row in rows.to_pylist())


def _print_json(rows: pa.Table) -> None:
    print(json.dumps(rows.to_pylist(maps_as_pydicts="strict"), ensure_ascii=False, default=str))
