"""SQL over all rounds: DuckDB views of the tables in the manifests, in memory, so no process shares a writable file.

    prompts, responses, judgments, …   every table of `tables.py`, with the column `round` in front
    rounds                             each base and round: parent, strategies, model, whether it was promoted
    stages                             cost of each stage of each round: rows, tokens, seconds, GPU hours, money
    costs                              tokens and money of each stage by engine
    warnings                           every warning of every stage
    labels                             people's labels of answers, from data/labels
    metrics                            every metric of every stage: (round, stage, name, value)

Views list the files of manifests, not globs, so leftovers of a killed process are in no view. A table that no round has
written is an empty view. Queries never write, and read only files of the project unless other files are allowed. A query
runs again when a stage commits while it runs.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.core import labels, store
from tasks.core.errors import FlywheelError, StoreError, UnknownName
from tasks.core.store import Output
from tasks.core.tables import TABLES, Table
from tasks.project import params
from tasks.views import _statements
from tasks.views._printing import Format, print_rows
from tasks.views._summaries import DOCS, Rounds, summaries

T = TypeVar("T")
STORAGE = "storage_compatibility_version"
"""DuckDB's setting of the format of a file."""


def connect(root: Path) -> duckdb.DuckDBPyConnection:
    """Connects to an in-memory database with the views over all rounds of the project at `root`.

    Raises:
        ParamsError: when the folder is no project.
        StoreError: when a file of a manifest is missing, truncated, or not Parquet.
    """
    con = duckdb.connect(config={"python_enable_replacements": False})  # a name is a table's, never a variable's
    _build(con, root)
    return con


def query(root: Path, sql: str, allow_files: bool = False) -> pa.Table:
    """Runs one or several queries over all rounds; returns the rows of the last.

    Verifies the digests of the tables that a query names. A second column of the same name gets a number as suffix. Files
    of the project can be read too (`read_csv('notes.csv')`); files outside and URLs need `allow_files`. `show tables` and
    `describe TABLE` say what each table and column holds.

    Raises:
        ParamsError: when the folder is no project.
        StoreError: when a file of these tables was changed.
        UnknownName: for an unknown table or column, with the nearest names.
        FlywheelError: for a statement that is not a query; for any other error, with DuckDB's message.
    """
    return consistently(root, lambda: _run(root, sql, allow_files))


def consistently(root: Path, read: Callable[[], T]) -> T:
    """Calls `read` until no stage of any round commits while it runs, and returns its result."""
    return store.steady(root, _on_disk(root), read)


def _run(root: Path, sql: str, allow_files: bool) -> pa.Table:
    con = connect(root)
    _statements.check(con, sql)
    # by the words of the text: DuckDB's own list of table names misses pivots, prepared statements and nested views
    _verify(root, {word.lower() for word in re.findall(r"\w+", sql)})
    try:
        _statements.confine(con, root, _all_parts(root), allow_files)
        result = con.sql(sql)
        rows = pa.table({}) if result is None else result.to_arrow_table()
    except duckdb.Error as error:
        raise _flywheel_error(error, sql) from None
    return _explained(rows.rename_columns(_unique(rows.column_names)), sql)


def _explained(rows: pa.Table, sql: str) -> pa.Table:
    """The rows of `show tables` and `describe TABLE` with what each table and column holds."""
    words = sql.strip().rstrip(";").lower().split()
    if words == ["show", "tables"]:
        return rows.append_column("holds", pa.array([DOCS[name][0] for name in rows["name"].to_pylist()], pa.string()))
    if len(words) == 2 and words[0] in ("describe", "desc") and words[1] in DOCS:
        docs = DOCS[words[1]][1]
        holds = [docs.get(name, "") for name in rows["column_name"].to_pylist()]
        return rows.select(["column_name", "column_type"]).append_column("holds", pa.array(holds, pa.string()))
    return rows


def _unique(names: list[str]) -> list[str]:
    """Makes column names unique: a second `id` becomes `id_1`, as in DuckDB's own tables."""
    unique: dict[str, None] = {}
    for name in names:
        candidates = (f"{name}_{n}" for n in count(1))
        unique[name if name not in unique else next(c for c in candidates if c not in unique)] = None
    return list(unique)


def show(root: Path, sql: str, format: Format = "table", out: Path | None = None, allow_files: bool = False) -> None:
    """Prints the rows of a query, or writes them atomically to the Parquet file `out`.

    Raises:
        FlywheelError: when `out` cannot be written, belongs to the project, or is another kind of file.
    """
    if out is None:
        print_rows(query(root, sql, allow_files), format)
        return
    if format not in ("table", "parquet"):
        raise FlywheelError(f"--out {out} writes Parquet; for {format} write `--format {format} > FILE`")
    refuse_own(root, out)
    rows = query(root, sql, allow_files)
    _write_parquet(rows, out)
    print(f"{out}: {rows.num_rows} rows")


def write_views(root: Path, file: Path) -> None:
    """Writes a small DuckDB file of the views for other clients, in the format that every DuckDB from 1.0 on opens; replaces
    an older one atomically.

    The views name their Parquet files by absolute path, so they work from any folder of this machine; `rounds`, `stages`
    and `metrics` are copies. Neither includes later runs: write the file again then.

    Raises:
        FlywheelError: when the file cannot be written, belongs to the project, or would overwrite another kind of file.
    """
    refuse_own(root, file)
    consistently(root, lambda: _write_views(root, file))


def _write_views(root: Path, file: Path) -> None:
    with replacing(file, b"DUCK") as new, duckdb.connect(new, config={STORAGE: "v1.0.0"}) as con:
        _build(con, root)


# Building the views


def _build(con: duckdb.DuckDBPyConnection, root: Path) -> None:
    content = params.plain(params.read(root))
    rounds = _rounds(root, content)
    for table in TABLES.values():
        query = _select(con, root, table, rounds)
        try:
            con.execute(f"create view {table.name} as {query}")
        except duckdb.Error as error:  # DuckDB reads the files' footers
            _verify(root, {table.name})
            raise StoreError(
                f"table {table.name} cannot be read: {error}; run the stage that writes it again"
            ) from None
    said = {labels.LABELS.name: labels.table(labels.read(root / labels.FOLDER))}
    for name, rows in (summaries(root, content, rounds) | said).items():
        con.register("_rows", rows)
        con.execute(f"create table {name} as from _rows")
        con.unregister("_rows")


def _rounds(root: Path, content: dict[str, Any]) -> Rounds:
    known = [*(content.get("bases") or {}), *(content.get("rounds") or {})]
    return {name: store.manifests(root, name) for name in dict.fromkeys([*known, *_on_disk(root)])}


def _on_disk(root: Path) -> list[str]:
    return sorted(p.name.removeprefix("round=") for p in (root / "data").glob("round=*"))


def _select(con: duckdb.DuckDBPyConnection, root: Path, table: Table, rounds: Rounds) -> str:
    """A union by name of an empty typed branch and one branch per round, so that an older round may lack a newer column."""
    columns = con.from_arrow(pa.Table.from_batches([], table.schema))
    typed = ", ".join(f'null::{t} as "{c}"' for c, t in zip(columns.columns, columns.types, strict=True))
    branches = [f"select null::varchar as round, {typed} where false"]
    for name, output in _outputs(table, rounds):
        files = ", ".join(_statements.quoted(str(path)) for path in _parts(root, name, table.name, output))
        if files:
            branches.append(
                f"select {_statements.quoted(name)} as round, * from read_parquet([{files}], hive_partitioning = false)"
            )
    own = ", ".join(f'"{c}"' for c in columns.columns)
    return f"select round, {own} from ({' union all by name '.join(branches)})"


def _outputs(table: Table, rounds: Rounds) -> Iterator[tuple[str, Output]]:
    for name, manifests in rounds.items():
        for manifest in manifests.values():
            if table.name in manifest.outputs:
                yield name, manifest.outputs[table.name]


def _verify(root: Path, names: set[str]) -> None:
    """Verifies the digests of these tables in every round."""
    rounds = {name: store.manifests(root, name) for name in _on_disk(root)}
    for table in (t for n, t in TABLES.items() if n in names):
        for name, output in _outputs(table, rounds):
            store.verify(store.round_folder(root, name) / table.name, output)


def _parts(root: Path, name: str, table: str, output: Output) -> Iterator[Path]:
    """Absolute paths of a table's parts. Checks sizes; `query` checks digests, which would make other readers read all bytes."""
    for part in output.parts:
        path = (store.round_folder(root, name) / table / part.file).resolve()
        size = path.stat().st_size if path.is_file() else None
        if size != part.bytes:
            damage = "is missing" if size is None else f"has {size} bytes, its manifest says {part.bytes}"
            raise StoreError(f"{path} {damage}; restore it with `dvc checkout --force`, or run its stage again")
        yield path


def _all_parts(root: Path) -> Iterator[Path]:
    """Paths of the parts of all tables. They may be outside the project: DVC's cache may link to them."""
    for name in _on_disk(root):
        for manifest in store.manifests(root, name).values():
            for table in TABLES.keys() & manifest.outputs.keys():
                yield from _parts(root, name, table, manifest.outputs[table])


# Errors and files


def _flywheel_error(error: duckdb.Error, sql: str) -> FlywheelError:
    text = str(error)
    if missing := re.search(r"Table with name (\S+) does not exist", text):
        return UnknownName("table", missing[1], DOCS, "sql")
    column = re.search(r'Referenced column "(\w+)" not found|does not have a column named "(\w+)"', text)
    if column:
        return _unknown_column(column[1] or column[2], {word.lower() for word in re.findall(r"\w+", sql)})
    return FlywheelError(f"sql: {text.strip()}")


def _unknown_column(name: str, words: set[str]) -> FlywheelError:
    """Suggests the nearest columns of the tables that a query names, and the tables that have one of this name."""
    named = [table for table in DOCS if table in words]
    where = f"sql, {', '.join(named)}" if named else "sql"
    owners = [table for table, (_, columns) in DOCS.items() if name.lower() in columns]
    if owners:
        return FlywheelError(f"{where}: there is no column {name!r} here; {', '.join(owners)} have one")
    return UnknownName("column", name, {column for table in named for column in DOCS[table][1]}, where)


def refuse_own(root: Path, file: Path) -> None:
    """Refuses a file among those that the project, DVC or git writes."""
    root, target = root.resolve(), file.parent.resolve() / file.name
    own = [root / "data" / "plan", root / ".dvc", root / ".git", *(store.round_folder(root, n) for n in _on_disk(root))]
    if any(target.is_relative_to(folder.resolve()) for folder in own):
        raise FlywheelError(f"{file} is among the project's own files; choose another folder")


def _write_parquet(rows: pa.Table, out: Path) -> None:
    with replacing(out, b"PAR1") as new:
        pq.write_table(rows, new)


@contextmanager
def replacing(file: Path, magic: bytes) -> Iterator[Path]:
    """Yields a temporary path beside `file` and replaces `file` with it at the end. Only replaces a file that starts with `magic`."""
    try:
        if file.exists() and not file.is_file():
            raise FlywheelError(f"{file} is a folder or device; name a file")
        if file.exists() and file.stat().st_size and magic not in _head(file):
            raise FlywheelError(f"{file} is another kind of file and stays as it is; choose another name")
        with TemporaryDirectory(prefix=".flywheel-", dir=file.parent) as folder:
            yield Path(folder) / file.name
            (Path(folder) / file.name).replace(file)
    except (OSError, duckdb.IOException) as error:
        raise FlywheelError(f"{file} cannot be written: {error}") from None


def _head(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(12)
