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

import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import duckdb
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.core import labels, pointers, remembered, store
from tasks.core.errors import FlywheelError, StoreError, UnknownName
from tasks.core.pointers import StoredPath
from tasks.core.store import Manifest, Output
from tasks.core.tables import TABLES, Table
from tasks.project import params
from tasks.views import _reads, _statements
from tasks.views._printing import Format, print_rows
from tasks.views._reads import Reads
from tasks.views._summaries import DOCS, Rounds, empty_summaries, summaries

T = TypeVar("T")
MEMORY = "25%"
"""Share of the memory of this machine that a query takes at most."""
BARRED = (
    "queries read the project's own files, but no hidden ones, no links and no patterns in its first folder (data/*.csv is "
    "fine); --allow-files lets one read anything"
)
SPILL = Path(".flywheel/tmp")
STORAGE = "storage_compatibility_version"
"""DuckDB's setting of the format of a file."""


def connect(root: Path, rounds: Collection[str] | None = None) -> duckdb.DuckDBPyConnection:
    """Connects to an in-memory database with the views over all rounds of the project at `root`, or over some.

    Raises:
        ParamsError: when the folder is no project.
        StoreError: when a file of a manifest is missing, cut short or changed. A file that has not changed since its digest
            was last checked is not read.
    """
    con = _database()
    reads = _reads.everything(_on_disk(root))
    if rounds is not None:
        reads = replace(_reads.everything(rounds), only=set(rounds))
    remembered.verify(root, _outputs(root, reads))
    _build(con, root, reads)
    return con


def _database(**settings: str) -> duckdb.DuckDBPyConnection:
    return duckdb.connect(
        config={"python_enable_replacements": False, **settings}
    )  # a name is a table's, no variable's


@contextmanager
def _spill(root: Path) -> Iterator[dict[str, str]]:
    """Settings of a database that takes a part of this machine's memory, and puts on disk what needs more."""
    place = root / SPILL
    try:
        place.mkdir(parents=True, exist_ok=True)
        for left in place.glob("sql-*"):  # by a process that was killed
            if not psutil.pid_exists(int(left.name.split("-")[1])):
                shutil.rmtree(left, ignore_errors=True)
        folder = TemporaryDirectory(prefix=f"sql-{os.getpid()}-", dir=place)
    except OSError:  # a read-only project
        folder = TemporaryDirectory(prefix="flywheel-sql-")
    with folder as spill:
        yield {"memory_limit": MEMORY, "temp_directory": spill}


def query(root: Path, sql: str, allow_files: bool = False) -> pa.Table:
    """Runs one or several queries over all rounds; returns the rows of the last.

    Verifies the digests of the parts that the query reads, and opens those of no other round. A second column of the same name
    gets a number as suffix. Files of the project can be read too (`read_csv('notes.csv')`), hidden ones left out; those, files
    outside and URLs need `allow_files`. `show tables` and `describe TABLE` say what each table and column holds.

    Raises:
        ParamsError: when the folder is no project.
        StoreError: when a file of these tables was changed.
        UnknownName: for an unknown table or column, with the nearest names.
        FlywheelError: for a statement that is not a query; for any other error, with DuckDB's message.
    """
    con = _database()
    statements = _statements.check(con, sql)
    reads = _reads.reads(root, sql, statements, _on_disk(root), _columns(con), allow_files)
    names = _on_disk(root) if reads.summaries else reads.rounds
    return store.steady(root, names, lambda: _run(root, sql, reads, allow_files))


def consistently(root: Path, read: Callable[[], T]) -> T:
    """Calls `read` until no stage of any round commits while it runs, and returns its result."""
    return store.steady(root, _on_disk(root), read)


def _run(root: Path, sql: str, reads: Reads, allow_files: bool) -> pa.Table:
    if not (root / params.FILE).is_file():
        params.values(root)  # says that this is no project, before anything is made in the folder
    remembered.verify(root, _outputs(root, reads))
    with _spill(root) as settings, _database(**settings) as con:
        files = _build(con, root, reads)
        try:
            _statements.confine(con, root, files, allow_files)
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
        _build(con, root, _reads.everything(_on_disk(root)))


# Building the views


def _build(con: duckdb.DuckDBPyConnection, root: Path, reads: Reads) -> list[StoredPath]:
    """Makes the views and returns the files that they read. A table that is not read has its columns and no rows."""
    content = _content(root, reads)
    rounds = _rounds(root, content, reads)
    files: list[StoredPath] = []
    for table in TABLES.values():
        parts = {
            n: list(_parts(root, n, table.name, rounds[n])) for n in rounds if n in reads.tables.get(table.name, ())
        }
        pointers.attach(con, (path for paths in parts.values() for path in paths))
        files += [path for paths in parts.values() for path in paths]
        try:
            con.execute(f"create view {table.name} as {_select(con, table, parts)}")
        except duckdb.TransactionException:  # the database's own file cannot be written
            raise
        except duckdb.Error as error:  # DuckDB reads the files' footers
            remembered.verify(root, _outputs(root, Reads({table.name: reads.tables[table.name]}, set())))
            raise StoreError(
                f"table {table.name} cannot be read: {error}; run the stage that writes it again"
            ) from None
    for name, rows in _summaries(root, content, rounds, reads).items():
        con.register("_rows", rows)
        con.execute(f"create table {name} as from _rows")
        con.unregister("_rows")
    return files


def _content(root: Path, reads: Reads) -> dict[str, Any]:
    """params.yaml, where it has a say: the summaries are made from it, and it orders the rounds."""
    if reads.summaries or len(reads.rounds) > 1 or not (root / params.FILE).is_file():
        return params.values(root)
    return {}


def _rounds(root: Path, content: dict[str, Any], reads: Reads) -> Rounds:
    """The manifests of the rounds that are read, in the order of params.yaml; those that are only on disk come last."""
    known = [*(content.get("bases") or {}), *(content.get("rounds") or {})]
    wanted = reads.only or (None if reads.summaries else reads.rounds)
    names = [n for n in dict.fromkeys([*known, *_on_disk(root)]) if wanted is None or n in wanted]
    return {name: store.manifests(root, name) for name in names}


def _on_disk(root: Path) -> list[str]:
    return sorted(p.name.removeprefix("round=") for p in (root / "data").glob("round=*"))


def _summaries(root: Path, content: dict[str, Any], rounds: Rounds, reads: Reads) -> dict[str, pa.Table]:
    """The tables that are no round's; those that are not read are empty."""
    own = labels.LABELS.name
    said = labels.table(labels.read(root / labels.FOLDER) if own in reads.summaries else ())
    if reads.summaries - {own}:
        for name in rounds:
            _check_whole(root, name, rounds[name])
        return summaries(root, content, rounds) | {own: said}
    return empty_summaries() | {own: said}


def _columns(con: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """The columns of every table as SQL declares them, without the round of a stage's table."""
    schemas = {name: table.schema for name, table in (TABLES | {labels.LABELS.name: labels.LABELS}).items()}
    schemas |= {name: table.schema for name, table in empty_summaries().items()}
    relations = {name: con.from_arrow(pa.Table.from_batches([], schema)) for name, schema in schemas.items()}
    return {n: ", ".join(f'"{c}" {t}' for c, t in zip(r.columns, r.types, strict=True)) for n, r in relations.items()}


def _select(con: duckdb.DuckDBPyConnection, table: Table, parts: dict[str, list[StoredPath]]) -> str:
    """A union by name of an empty typed branch and one branch per round, so that an older round may lack a newer column."""
    columns = con.from_arrow(pa.Table.from_batches([], table.schema))
    typed = ", ".join(f'null::{t} as "{c}"' for c, t in zip(columns.columns, columns.types, strict=True))
    branches = [f"select null::varchar as round, {typed} where false"]
    for name, paths in parts.items():
        files = ", ".join(_statements.quoted(str(path)) for path in paths)
        if files:
            branches.append(
                f"select {_statements.quoted(name)} as round, * from read_parquet([{files}], hive_partitioning = false)"
            )
    own = ", ".join(f'"{c}"' for c in columns.columns)
    return f"select round, {own} from ({' union all by name '.join(branches)})"


def _outputs(root: Path, reads: Reads) -> Iterator[tuple[Path, Output]]:
    """The tables that are read, by folder and entry in the manifests.

    Raises:
        StoreError: when a manifest is missing that may have named one of them.
    """
    for name in sorted(reads.rounds):
        manifests = store.manifests(root, name)
        outputs = {table: output for m in manifests.values() for table, output in m.outputs.items()}
        wanted = [table for table, rounds in reads.tables.items() if name in rounds]
        if not outputs.keys() >= set(wanted):
            _check_whole(root, name, manifests)
        yield from ((store.round_folder(root, name) / table, outputs[table]) for table in wanted if table in outputs)


def _check_whole(root: Path, name: str, manifests: dict[str, Manifest]) -> None:
    """Refuses a round that has lost a manifest: a stage's metrics are there, which are written together with it."""
    for stage in store.lost_manifests(root, name, manifests):
        path = store.round_folder(root, name) / "manifests" / f"{stage}.json"
        raise StoreError(f"{path} is missing, and what {stage}@{name} wrote is in no table without it; {store.REMAKE}")


def _parts(root: Path, name: str, table: str, manifests: dict[str, Manifest]) -> Iterator[StoredPath]:
    """Absolute paths or URLs of a table's parts. They may be outside the project: DVC's cache may link to them."""
    for output in (m.outputs[table] for m in manifests.values() if table in m.outputs):
        files = store.paths(store.round_folder(root, name) / table, output)
        for path, part in zip(files, output.parts, strict=True):
            if isinstance(path, Path):  # objects were asked for when they were verified
                size = path.stat().st_size if path.is_file() else None
                if size != part.bytes:
                    raise StoreError(store.damage(path, part, None))
            yield path.resolve()


# Errors and files


def _flywheel_error(error: duckdb.Error, sql: str) -> FlywheelError:
    text = str(error)
    if missing := re.search(r"Table with name (\S+) does not exist", text):
        return UnknownName("table", missing[1], DOCS, "sql")
    column = re.search(r'Referenced column "(\w+)" not found|does not have a column named "(\w+)"', text)
    if column:
        return _unknown_column(column[1] or column[2], {word.lower() for word in re.findall(r"\w+", sql)})
    hint = f"; {BARRED}" if isinstance(error, duckdb.PermissionException) else ""
    return FlywheelError(f"sql: {text.strip()}{hint}")


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
    except (OSError, duckdb.Error) as error:
        raise FlywheelError(f"{file} cannot be written, and what was there stays: {error}") from None


def _head(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(12)
