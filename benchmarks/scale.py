"""What a hundred million and ten billion answers would take: a cost model whose constants are measured here, at small scale.

    python benchmarks/scale.py [--responses 262144] [--workers 64] [--text 800]

Measured, by the project's own code: bytes a row of each table; a core's seconds a row of judge, filter and pair, with reading,
checks, digests and writing; what a receipt and a part cost the driver in memory and seconds, as the slope between two sizes; what
a first pass over all prompts leaves with the driver; and how fast one process hashes files for DVC. Calculated: the rest,
linear in these. Not in it: the model's own seconds, which are the GPUs', and the network.
"""

import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import typer
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from table import add

from data import candidates, choose, project, put
from tasks.core import objects, store
from tasks.core._parts import GROUPS_PER_PART, ROWS_PER_GROUP
from tasks.core.manifest import Manifest, Part, read_manifest
from tasks.core.plan import Plan
from tasks.filter.threshold import Threshold
from tasks.filter.top_fraction import TopFraction
from tasks.project import pieces
from tasks.project.driver import _together
from tasks.project.execute import run_stage
from tasks.project.worker import Receipt, receipt_name

HERE = Path(__file__).resolve().parent
SAMPLES = 8
"""Answers a prompt."""
SIZES = (100_000_000, 10_000_000_000)
STAGES = {"judge": "judgments", "filter": "filtered", "pair": "pairs"}
"""Stages that ask no model, each with its table."""
READS = {
    "judge": ("prompts", "responses"),
    "filter": ("prompts", "responses", "judgments"),
    "pair": ("prompts", "responses", "judgments", "filtered"),
}
OVERVIEWS = {"filter.top_fraction": TopFraction(), "filter.threshold.per_level": Threshold(per_level=1_000)}
"""Members that look at all prompts first."""
SUMMARY = 2**18
"""Candidates in the summary of a piece."""
COMPARED = 32_000_000
"""Candidates that these members are measured with."""
MOST = 1.0
"""GB that the driver may hold."""
PART = ROWS_PER_GROUP * GROUPS_PER_PART
app = typer.Typer(add_completion=False, help=__doc__)


@dataclass(frozen=True)
class Constants:
    """What was measured."""

    bytes: dict[str, float]
    """A row of each table on disk."""
    share: dict[str, float]
    """Rows of each table for one response."""
    seconds: dict[str, float]
    """Of a core, for each response, by stage."""
    piece_rows: int
    """Responses in a piece."""
    base: float
    """Bytes of the driver's process before it knows a piece."""
    part: dict[str, float]
    """Of each part: `memory` where it is made and `known` where it is read, `json` in bytes; `fold` and `read` in seconds."""
    receipt: dict[str, float]
    """Of each piece: `memory` in bytes, and `write` and `read` in seconds."""
    overview: dict[str, dict[str, float]]
    """By member, what its look at all candidates costs the driver: `memory` in bytes at `COMPARED` of them, `growth` in bytes for
    each one more, `seconds` for each."""
    md5: float
    """Bytes that one process hashes in a second."""


# Measuring


def tables(root: Path, responses: int, text: int) -> None:
    """Prompts and answers of about `text` characters, in the order of their prompts, as stages write them."""
    rng = random.Random(0)
    words = [f"w{i}" for i in range(50_000)]
    texts = pl.Series("response", [" ".join(rng.choices(words, k=max(1, text // 6))) for _ in range(20_000)])
    starts = range(0, responses // SAMPLES, ROWS_PER_GROUP)

    def asked(first: int) -> pl.DataFrame:
        rows = candidates(ROWS_PER_GROUP, SAMPLES, first)[0].with_columns(id=digest_like("id"))
        problem = texts.sample(rows.height, with_replacement=True, seed=first).str.slice(0, 200)
        rows = rows.with_columns(problem=problem)
        return rows.with_columns(prompt=pl.concat_list(pl.struct(role=pl.lit("user"), content=pl.col("problem"))))

    def answered(first: int) -> pl.DataFrame:
        rows = candidates(ROWS_PER_GROUP, SAMPLES, first)[1]
        response = texts.sample(rows.height, with_replacement=True, seed=first) + rows["response"]
        return rows.with_columns(response=response, id=number("id", 16), prompt_id=digest_like("prompt_id"))

    put(root, "prompts", {"prompts": map(asked, starts)})
    put(root, "generate", {"responses": map(answered, starts)})
    put(root, "critique", {"critiques": [], "refinements": []})


def digest_like(column: str) -> pl.Expr:
    """Sorted ids that compress as badly as sorted digests do."""
    return pl.col(column).str.tail(10) + number(column, 8)


def number(column: str, digits: int) -> pl.Expr:
    """Digits that look drawn by lot, the same for the same text."""
    return (pl.col(column).hash(seed=1) % 10**digits).cast(pl.String).str.zfill(digits)


def measure(responses: int, text: int) -> Constants:
    """All constants."""
    with project() as root:
        tables(root, responses, text)
        choose(root, {})
        seconds = {}
        for stage in STAGES:
            before = sum(os.times()[:2])
            run_stage(root, "r1", stage)
            seconds[stage] = (sum(os.times()[:2]) - before) / responses
        found = {name: o for m in store.manifests(root, "r1").values() for name, o in m.outputs.items() if o.rows}
        place, responses_out = store.find(root, "r1", "responses")
        files = [place / part.file for part in responses_out.parts]
        groups = [group for file in files for group in pieces.row_groups(file)]
        rows = int(pieces._most(groups, pieces.MAX_ROWS))
        clock = time.process_time()
        hashed = sum(len(hashlib.md5(file.read_bytes()).hexdigest()) and file.stat().st_size for file in files)
        md5 = hashed / (time.process_time() - clock)
        few, long, many = (child("driver", str(root), *map(str, of)) for of in ((2_000, 2), (2_000, 10), (8_000, 2)))
    part = {k: (long[k] - few[k]) / 16_000 for k in ("memory", "json", "known")}
    part |= {k: long[k] / 20_000 for k in ("fold", "read")}
    receipt = {k: many[f"receipt_{k}"] / 8_000 for k in ("write", "read")}
    receipt["memory"] = (many["memory"] - few["memory"]) / 6_000 - 2 * part["memory"]
    overview = {}
    for name in OVERVIEWS:
        less, more = (child("overview", name, str(n)) for n in (COMPARED // 4, COMPARED))
        growth = (more["memory"] - less["memory"]) / (COMPARED - COMPARED // 4)
        overview[name] = {"memory": more["memory"], "growth": max(0.0, growth), "seconds": more["seconds"] / COMPARED}
    return Constants(
        bytes={name: sum(p.bytes for p in o.parts) / o.rows for name, o in found.items() if o.rows},
        share={name: o.rows / responses for name, o in found.items() if o.rows},
        seconds=seconds,
        piece_rows=rows,
        base=few["base"],
        part=part,
        receipt=receipt,
        overview=overview,
        md5=md5,
    )


def child(what: str, *arguments: str) -> dict[str, float]:
    """Measures in a process of its own, whose most memory is that of this one thing."""
    command = [sys.executable, __file__, "measured", what, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def resident(most: bool = True) -> float:
    """Bytes of memory of this process: the most that it had, or what it has."""
    key = "VmHWM:" if most else "VmRSS:"
    return float(Path("/proc/self/status").read_text().split(key)[1].split()[0]) * 1024


def driver(root: str, count: str, each: str) -> dict[str, float]:
    """What so many pieces of so many parts each cost the process that folds their receipts into a manifest, and then the next
    one, which reads it.
    """
    base, pieces = resident(most=False), int(count)
    costs: dict[str, float] = {"base": base}
    with tempfile.TemporaryDirectory(prefix="flywheel-") as folder:
        place = objects.place(Path(folder))
        with timed(costs, "receipt_write"):
            for n in range(pieces):
                content = receipt(n, int(each)).model_dump_json(indent=1).encode()
                place.put_once(receipt_name("s", "rows", n), content)
        with timed(costs, "receipt_read"):
            names = (receipt_name("s", "rows", n) for n in range(pieces))
            receipts = [Receipt.model_validate_json(place.read(name)) for name in names]
        with timed(costs, "fold"):
            done = _together(receipts)
            fields: dict[str, Any] = {key: {} for key in ("inputs", "versions", "metrics", "tokens", "seconds")}
            fields |= {"plan": Plan.read(Path(root), "r1", "judge"), "outputs": {"judgments": done.output}}
            manifest = Manifest(round="r1", stage="judge", started="", finished="", **fields)
            path = Path(folder) / "round=r1" / "manifests" / "judge.json"
            path.parent.mkdir(parents=True)
            path.write_text(manifest.text)
        costs |= {"memory": resident() - base, "json": float(path.stat().st_size)}
        code = f"import scale; print(scale.reading({str(path)!r}))"
        done = subprocess.run([sys.executable, "-c", code], cwd=HERE, stdout=subprocess.PIPE, check=True, text=True)
        costs["known"], costs["read"] = map(float, done.stdout.split())
    return costs


def reading(path: str) -> str:
    """Bytes of memory, and seconds, of a process that reads a manifest."""
    base, clock = resident(most=False), time.process_time()
    read_manifest(Path(path))
    return f"{resident() - base} {time.process_time() - clock}"


@contextmanager
def timed(to: dict[str, float], name: str) -> Iterator[None]:
    """Puts the processor's seconds of a block into a dictionary."""
    clock = time.process_time()
    yield
    to[name] = time.process_time() - clock


def receipt(number: int, each: int) -> Receipt:
    """A receipt as a worker leaves it."""
    sha = hashlib.sha256(str(number).encode()).hexdigest()
    names = [f"part-{number:06d}-{n:03d}-{sha[:16]}.parquet" for n in range(each)]
    keys = {"first": sha[:16], "last": sha[16:32]}
    parts = [Part(file=name, bytes=12_345_678, sha256=sha, rows=PART, **keys) for name in names]
    return Receipt(piece=number, parts=parts, seconds={"run": 1.234567, "write": 0.123456}, by="node-17, process 12345")


def overview(name: str, candidates: str) -> dict[str, float]:
    """What a member's overview of so many candidates costs the process that folds the summaries."""
    strategy, count, rng = OVERVIEWS[name], int(candidates), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for first in range(0, count, SUMMARY):
            rows = min(SUMMARY, count - first)
            ids = pl.int_range(first, first + rows, eager=True).cast(pl.String).str.zfill(16)
            score = rng.integers(1, SAMPLES + 1, rows) / SAMPLES  # as votes are: many are equal
            columns = {
                "level": rng.integers(2, 9, rows, dtype=np.int32),
                "score": score,
                "tie_break": -rng.random(rows),
                "id": ids,
            }
            pl.DataFrame(columns).write_parquet(f"{folder}/{first:012d}.parquet")
        base, clock = resident(most=False), time.perf_counter()
        strategy.fold(pl.scan_parquet(f"{folder}/*.parquet"))
        return {"memory": resident() - base, "seconds": time.perf_counter() - clock}


# The model


@dataclass(frozen=True)
class Cost:
    """What one stage takes at a size."""

    parts: float
    pieces: float
    gigabytes: float
    hours: float
    """Of the workers, all together at work."""
    fold_minutes: float
    """Of the driver alone, after the last piece."""
    driver: float
    """GB."""
    worker: float
    """GB that each worker has to know of the manifests of what it reads."""


def cost(found: Constants, stage: str, responses: int, workers: int) -> Cost:
    """The cost of a stage at a size, linear in what was measured."""
    made = STAGES[stage]
    number = max(1.0, responses / found.piece_rows)
    parts = max(number, responses * found.share[made] / PART)
    read = sum(max(1.0, responses * found.share[table] / PART) for table in READS[stage])
    return Cost(
        parts=parts,
        pieces=number,
        gigabytes=responses * found.share[made] * found.bytes[made] / 1e9,
        hours=responses * found.seconds[stage] / workers / 3600,
        fold_minutes=(number * found.receipt["read"] + parts * found.part["fold"] + read * found.part["read"]) / 60,
        driver=(
            found.base + number * found.receipt["memory"] + parts * found.part["memory"] + read * found.part["known"]
        )
        / 1e9,
        worker=read * found.part["known"] / 1e9,
    )


def breaks(found: Constants, workers: int) -> list[tuple[float, str]]:
    """Responses at which something is at its limit, the first one first, and what that is."""

    def size(limit: Callable[[Cost], bool], stage: str) -> float:
        low, high = 1e5, 1e14
        for _ in range(60):
            middle = (low * high) ** 0.5
            low, high = (low, middle) if limit(cost(found, stage, int(middle), workers)) else (middle, high)
        return high

    limits = [
        (size(lambda c: c.driver > MOST, s), f"{s}: the driver holds {MOST:g} GB of parts and receipts") for s in STAGES
    ]
    limits += [
        (
            COMPARED + (MOST * 1e9 - found.base - own["memory"]) / own["growth"],
            f"{name}: its look at all candidates is {MOST:g} GB",
        )
        for name, own in found.overview.items()
        if own["growth"]
    ]
    limits += [(size(lambda c: c.pieces > 1e6, s), f"{s}: a million receipts in one folder") for s in ("judge",)]
    return sorted(limits)


# Printing


def show(found: Constants, workers: int, responses: int) -> None:
    """Prints what was measured, what it comes to, and what breaks first."""
    console = Console(width=140)
    constants = Table("measured", "", box=MARKDOWN, title=f"{responses:,} responses, {responses // SAMPLES:,} prompts")
    for name, size in found.bytes.items():
        constants.add_row(f"{name}: bytes a row", f"{size:.0f} ({found.share[name]:.2f} rows a response)")
    for stage, seconds in found.seconds.items():
        constants.add_row(f"{stage}: seconds of a core a million responses", f"{1e6 * seconds:.1f}")
    constants.add_row("a piece, at most", f"{found.piece_rows:,} responses")
    constants.add_row(
        "a part in a manifest", f"{found.part['json']:.0f} bytes, {1e6 * found.part['read']:.0f} µs to read"
    )
    memory = f"{found.part['memory']:,.0f} bytes where it is made, {found.part['known']:,.0f} where it is read"
    constants.add_row("a part in memory", memory)
    receipt = f"{found.receipt['memory']:,.0f} bytes in memory, written in {1e3 * found.receipt['write']:.2f} ms"
    constants.add_row("a receipt", f"{receipt}, read in {1e3 * found.receipt['read']:.2f} ms")
    for name, own in found.overview.items():
        seconds = f"{1e6 * own['seconds']:.2f} s a million candidates, {SIZES[-1] * own['seconds'] / 60:.0f} minutes for {SIZES[-1]:,}"
        constants.add_row(
            f"{name}: the driver's look at all", f"{own['memory'] / 1e6:,.0f} MB at {COMPARED:,}; {seconds}"
        )
    constants.add_row("DVC's hash of local files", f"{found.md5 / 1e6:,.0f} MB/s, one process")
    console.print(constants)
    columns = (
        "responses",
        "stage",
        "pieces",
        "parts",
        "GB",
        f"hours, {workers} workers",
        "minutes to fold",
        "driver GB",
    )
    model = Table(*columns, "worker's manifests GB", box=MARKDOWN, title="calculated")
    for size in SIZES:
        for stage in STAGES:
            c = cost(found, stage, size, workers)
            numbers = (f"{c.pieces:,.0f}", f"{c.parts:,.0f}", f"{c.gigabytes:,.0f}", f"{c.hours:.2f}")
            model.add_row(f"{size:,}", stage, *numbers, f"{c.fold_minutes:.1f}", f"{c.driver:.2f}", f"{c.worker:.2f}")
    console.print(model)
    local = sum(found.share[table] * found.bytes[table] for table in found.bytes)
    for size in SIZES:
        hours = size * local / found.md5 / 3600
        console.print(
            f"{size:,} responses in a local folder: {size * local / 1e9:,.0f} GB, which DVC hashes in {hours:,.1f} hours"
        )
    console.print("What breaks first:")
    for size, text in breaks(found, workers):
        console.print(f"  at {size:,.0f} responses  {text}", highlight=False)


@app.callback(invoke_without_command=True)
def main(context: typer.Context, responses: int = 4 * PART, workers: int = 64, text: int = 800) -> None:
    """Measures, and prints the model; fails where the driver would hold more than a GB for ten billion responses."""
    if context.invoked_subcommand:
        return
    found = measure(responses, text)
    show(found, workers, responses)
    worst = max(cost(found, stage, SIZES[-1], workers).driver for stage in STAGES)
    add(f"driver of {SIZES[-1]:,} responses, calculated", f"{worst:.2f} GB", f"{MOST:g} GB", worst / MOST, 1)


@app.command(hidden=True)
def measured(what: str, arguments: list[str]) -> None:
    """One measurement, in a process of its own."""
    print(json.dumps({"driver": driver, "overview": overview}[what](*arguments)))


if __name__ == "__main__":
    app()
