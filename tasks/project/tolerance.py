"""The first difference between two versions of a table, of a model, of metrics or of a plot, where numbers may differ within
a tolerance.
"""

from collections.abc import Mapping
from pathlib import Path

import polars as pl
from pydantic import BaseModel

from tasks.core import store
from tasks.core.tables import TABLES

RTOL = 1e-4
"""Largest relative difference of two numbers that count as equal; of two weights, relative to the largest of their tensor."""
ATOL = 1e-6
"""Largest difference of two numbers near 0 that count as equal."""


class Difference(BaseModel):
    """The first place where a replayed output is not the stored one."""

    output: str
    """A table, the folder `model`, or a file such as `metrics/train.json`."""
    row: str
    """The row's key, the file in the folder, or the metric."""
    column: str | None = None
    """Or the tensor; None where the whole row or file is missing or another."""
    stored: str
    """As Python writes it, without characters that would steer a terminal."""
    replayed: str


# Tables


def table_difference(name: str, stored: pl.DataFrame, replayed: pl.DataFrame) -> Difference | None:
    """The first row, in the stored order, and its first column that differ."""
    key = [*TABLES[name].key]
    if columns := set(stored.columns) ^ set(replayed.columns):
        column = min(columns)
        texts = ("there" if column in frame.columns else "absent" for frame in (stored, replayed))
        return _at(name, "", column, *texts)
    numbered = replayed.with_columns(here=pl.lit(True))
    both = stored.with_columns(there=pl.lit(True)).join(
        numbered, on=key, how="full", coalesce=True, nulls_equal=True, suffix="/replayed", maintain_order="left_right"
    )
    for lacking, texts in (("here", ("a row", "none")), ("there", ("none", "a row"))):
        if len(rows := both.filter(pl.col(lacking).is_null())):
            return _at(name, _key(rows, key, 0), None, *texts)
    values = [c for c in stored.columns if c not in key]
    differs = {c: _differs(both[c], both[f"{c}/replayed"]) for c in values}
    first = {c: d.arg_max() for c, d in differs.items() if d.any()}
    if not first:
        return None
    column = min(first, key=lambda c: first[c])  # the earliest row; of its columns the first
    row = first[column]
    return _at(name, _key(both, key, row), column, *map(repr, both.select(column, f"{column}/replayed").row(row)))


def _at(output: str, row: str, column: str | None, stored: str, replayed: str) -> Difference:
    return Difference(output=output, row=row, column=column, stored=stored, replayed=replayed)


def _key(rows: pl.DataFrame, key: list[str], row: int) -> str:
    return "/".join(str(rows[k][row]) for k in key)


def _differs(stored: pl.Series, replayed: pl.Series) -> pl.Series:
    """Whether each value is another one; numbers with a fraction may differ by the tolerance."""
    if stored.dtype.is_nested():
        return pl.Series([a != b for a, b in zip(stored.to_list(), replayed.to_list(), strict=True)], dtype=pl.Boolean)
    if not stored.dtype.is_float():
        return stored.ne_missing(replayed)
    pair = pl.DataFrame({"a": stored, "b": replayed})
    largest = pl.max_horizontal(pl.col("a").abs(), pl.col("b").abs())
    close = ((pl.col("a") - pl.col("b")).abs() <= RTOL * largest + ATOL).fill_null(False)
    return pair.select(differs=pl.col("a").ne_missing(pl.col("b")) & ~close)["differs"]


# Metrics and plots


def metrics_difference(name: str, stored: Mapping[str, float], replayed: Mapping[str, float]) -> Difference | None:
    """The first metric by name that one of them lacks, or that differs."""
    for metric in sorted({*stored, *replayed}):
        values = [m.get(metric) for m in (stored, replayed)]
        if _differs(*(pl.Series([v], dtype=pl.Float64) for v in values)).any():
            return _at(name, metric, None, *("none" if v is None else repr(v) for v in values))
    return None


def plot_difference(name: str, stored: Path, replayed: Path) -> Difference | None:
    """The first row and column of a plot's CSV that differ; a row's key is its number, from 1."""
    one, other = _plot(stored), _plot(replayed)
    if one is None or other is None:
        there = ["absent" if f is None else "there" for f in (one, other)]
        return None if one is other else _at(name, "", None, *there)
    if one.columns != other.columns or len(one) != len(other):
        return _at(name, "", None, *(f"{len(f)} rows of {', '.join(f.columns)}" for f in (one, other)))
    for column in one.columns:
        differs = _differs(
            *(f[column] if f[column].dtype.is_numeric() else f[column].cast(pl.String) for f in (one, other))
        )
        if differs.any():
            row = differs.arg_max() or 0
            return _at(name, str(row + 1), column, repr(one[column][row]), repr(other[column][row]))
    return None


def _plot(path: Path) -> pl.DataFrame | None:
    """A plot's rows, numbers as floats; None where there is none. A plot without data is an empty file."""
    if not path.is_file():
        return None
    if not path.read_bytes().strip():
        return pl.DataFrame()
    rows = pl.read_csv(path)
    return rows.with_columns(pl.selectors.numeric().cast(pl.Float64))


# Models


def folder_difference(name: str, stored: Path, replayed: Path) -> Difference | None:
    """The first file that differs, and in a file of weights the first tensor."""
    files = [{p.relative_to(f).as_posix() for p in f.rglob("*") if p.is_file()} for f in (stored, replayed)]
    for file in sorted(files[0] | files[1]):
        if not files[0] & files[1] & {file}:
            there = ("a file", "none") if file in files[0] else ("none", "a file")
            return _at(name, file, None, *there)
        digests = [store.sha256(f / file) for f in (stored, replayed)]
        if digests[0] == digests[1]:
            continue
        found = (
            _weight_difference(name, file, stored, replayed)
            if file.endswith(".safetensors")
            else _at(name, file, None, *digests)
        )
        if found:
            return found
    return None


def _weight_difference(name: str, file: str, stored: Path, replayed: Path) -> Difference | None:
    import torch
    from safetensors import safe_open

    with safe_open(stored / file, "pt") as one, safe_open(replayed / file, "pt") as other:
        tensors = {n: (n in one.keys(), n in other.keys()) for n in sorted({*one.keys(), *other.keys()})}  # noqa: SIM118
        for tensor, there in tensors.items():
            if not all(there):
                return _at(name, file, tensor, *("a tensor" if t else "none" for t in there))
            a, b = one.get_tensor(tensor), other.get_tensor(tensor)
            if a.shape != b.shape or a.dtype != b.dtype:
                return _at(name, file, tensor, *(f"{t.dtype} {list(t.shape)}" for t in (a, b)))
            a, b = a.double().flatten(), b.double().flatten()
            if torch.equal(a, b) or not len(a) or (a - b).abs().max() <= RTOL * a.abs().max():
                continue
            worst = int((a - b).abs().nan_to_num(torch.inf).argmax())
            return _at(name, file, tensor, *(f"{t[worst].item():.6g} at {worst}" for t in (a, b)))
    return None
