"""How long a page of `flywheel browse` takes over a large round.

    python benchmarks/browse.py        [--responses 10000000] [--length 400]       each page in at most 2 s

One round, 8 answers a problem, two judges, ids as hashes, tables written and ordered as the stages write them. The server runs
as a user starts it; every kind of page is asked for over HTTP, first on a server that has just started and then again, and
the slowest counts. What a page shows is checked. `--keep FOLDER` leaves the project there, for another run.
"""

import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from html import unescape
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pyarrow.parquet as pq
import typer
from diff import judged
from ruamel.yaml import YAML
from table import add

from data import complete
from tasks.core import frames, store
from tasks.core.labels import text_digest
from tasks.core.plan import Plan
from tasks.core.tables import TABLES
from tasks.project import labels

HERE = Path(__file__).resolve().parents[1]
PIECE = 16_384
"""Problems that are written at a time."""
SAMPLES, JUDGES, SECONDS = 8, ("self_consistency", "logprob"), 2.0
TIME = "2026-01-01T10:00:00+00:00"
RARE = "a needle in the haystack"
"""Stands in one answer, near the end."""
app = typer.Typer(add_completion=False, help=__doc__)


def problems(count: int) -> pl.Series:
    """Ids of problems: hashes, in order."""
    return (
        pl.DataFrame({"n": range(count)})
        .select(frames.ids(pl.lit("problem"), pl.col("n").cast(pl.String)))["id"]
        .sort()
    )


def texts(length: int) -> pl.Series:
    """Texts of about so many characters."""
    rng, words = random.Random(0), [f"w{i}" for i in range(50_000)]
    return pl.Series("long", [" ".join(rng.choices(words, k=max(length // 6, 1))) for _ in range(20_000)])


def prompts(ids: pl.Series) -> Iterator[pl.LazyFrame]:
    """Problems with their chats."""
    problem = pl.lit("How many pens has Tom in the end? ") + pl.col("id")
    chat = pl.concat_list(pl.struct(role=pl.lit("user"), content=problem))
    for start in range(0, len(ids), PIECE):
        rows = ids[start : start + PIECE].to_frame().lazy()
        yield rows.with_columns(problem=problem, prompt=chat, level=pl.lit(3), source=pl.lit("model"))


def answers(ids: pl.Series, long: pl.Series) -> Iterator[pl.LazyFrame]:
    """Answers to them, by problem and sample."""
    last = ids[int(len(ids) * 0.95)]
    for start in range(0, len(ids), PIECE):
        draws = ids[start : start + PIECE].alias("prompt_id").to_frame().join(
            pl.DataFrame({"sample": range(SAMPLES)}, schema={"sample": pl.Int32}), how="cross"
        )  # fmt: skip
        noise = pl.struct("prompt_id", "sample").hash(seed=1)
        rare = pl.when((pl.col("prompt_id") == last) & (pl.col("sample") == 3)).then(pl.lit(RARE)).otherwise(pl.lit(""))
        response = long.gather(draws.select(noise % len(long)).to_series()).alias("response")
        rows = draws.with_columns(response, frames.ids("prompt_id", pl.col("sample").cast(pl.String)))
        yield rows.lazy().with_columns(
            member=pl.lit("sample"), seed=pl.col("sample").cast(pl.Int64), tokens=pl.lit(100), finish_reason=pl.lit("stop"),
            response="Day 1: 12+5=17\n" + pl.col("response") + rare + "\nAnswer: " + (noise % 7).cast(pl.String),
            answer=(noise % 7).cast(pl.String), mean_logprob=-(noise % 1000).cast(pl.Float64) / 1000, model=pl.lit("m"),
        )  # fmt: skip


def filtered(rows: pl.LazyFrame) -> pl.LazyFrame:
    """The filter's decisions: a quarter kept, a rare reason for one in a hundred thousand."""
    lot = pl.col("id").hash(seed=2)
    kept = lot % 4 == 0
    reason = pl.when(lot % 100_000 == 1).then(pl.lit("format")).when(~kept).then(pl.lit("score"))
    return rows.select("id", "prompt_id", kept=kept, rank=pl.when(kept).then(1), reason=reason, score=pl.lit(0.5)).sort(
        "prompt_id", "id"
    )


def training(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Every fourth answer, as it is trained on."""
    return rows.filter(pl.col("sample") < 2).select(
        frames.ids(pl.lit("training"), "id"), "prompt_id", response_id="id", source=pl.lit("responses"), weight=pl.lit(1.0),
        prompt=chat("user", pl.col("prompt_id")), completion=chat("assistant", pl.col("response")),
    )  # fmt: skip


def pairs(rows: pl.LazyFrame) -> pl.LazyFrame:
    """A pair of each problem."""
    two = rows.filter(pl.col("sample") < 2).group_by("prompt_id", maintain_order=True)
    ends = two.agg(chosen_id=pl.col("id").first(), rejected_id=pl.col("id").last(), text=pl.col("response").first())
    return ends.with_columns(
        frames.ids("chosen_id", "rejected_id"), prompt=chat("user", pl.col("prompt_id")), chosen=chat("assistant", pl.col("text")),
        rejected=chat("assistant", pl.col("text") + "!"), chosen_score=pl.lit(0.9), rejected_score=pl.lit(0.1),
        weight=pl.lit(1.0), smoothing=pl.lit(0.0), source=pl.lit("responses"),
    )  # fmt: skip


def critiques(rows: pl.LazyFrame) -> pl.LazyFrame:
    """A critique of one answer in eight."""
    return rows.filter(pl.col("sample") == 2).select(
        frames.ids(pl.lit("critique"), "id"), "prompt_id", response_id="id", critique=pl.col("response"), verdict=pl.lit("fail"),
        prompt=chat("user", pl.col("prompt_id")), refinements=pl.lit(2), successes=pl.lit(1), kept=pl.lit(True),
    )  # fmt: skip


def refinements(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Two answers after each critique."""
    two = pl.LazyFrame({"draw": [0, 1]}, schema={"draw": pl.Int32})
    after = rows.filter(pl.col("sample") == 2).join(two, how="cross")
    return after.select(
        frames.ids(pl.lit("refinement"), "id", pl.col("draw").cast(pl.String)), "prompt_id", "response", sample="draw",
        critique_id=frames.ids(pl.lit("critique"), "id"), response_id="id", success=pl.col("draw") == 0, hinted=pl.lit(True),
    )  # fmt: skip


def chat(role: str, text: pl.Expr) -> pl.Expr:
    """A chat of one turn."""
    return pl.concat_list(pl.struct(role=pl.lit(role), content=text))


def judgments(rows: pl.LazyFrame, judge: str) -> pl.LazyFrame:
    """A judge's scores."""
    return judged(rows, judge).with_columns(frames.ids("response_id", "member"))


def make(root: Path, responses: int, length: int) -> None:
    """Writes the project: a base and one round."""
    content = YAML(typ="safe").load((HERE / "params.yaml").read_text())
    root.mkdir(parents=True, exist_ok=True)
    bases, rounds = {"r0": content["bases"]["r0"]}, {"r1": content["rounds"]["r1"]}
    YAML().dump(content | {"bases": bases, "rounds": rounds}, root / "params.yaml")
    (root / "recipes").symlink_to(HERE / "recipes")
    ids, long = problems(responses // SAMPLES), texts(length)

    def every(table: Callable[[pl.LazyFrame], pl.LazyFrame]) -> Iterator[pl.LazyFrame]:
        return (table(rows) for rows in answers(ids, long))

    def by_id(table: Callable[[pl.LazyFrame], pl.LazyFrame]) -> Iterator[pl.LazyFrame]:
        return iter([pl.concat([rows.collect() for rows in every(table)]).lazy().sort("id")])

    write(root, "prompts", {"prompts": prompts(ids)})
    write(root, "generate", {"responses": answers(ids, long)})
    write(root, "judge", {"judgments": (rows for judge in JUDGES for rows in every(partial(judgments, judge=judge)))})
    write(root, "filter", {"filtered": every(filtered)})
    write(root, "critique", {"critiques": by_id(critiques), "refinements": by_id(refinements)})
    write(root, "pair", {"pairs": every(pairs)})
    write(root, "collect", {"training": by_id(training)})


def write(root: Path, stage: str, tables: dict[str, Iterator[pl.LazyFrame]]) -> None:
    """Writes tables as if a stage of r1 had made them."""
    with store.writing(root, "r1", stage) as draft:
        metrics: dict[str, float] = {}
        for name, parts in tables.items():
            metrics |= draft.table(TABLES[name], (complete(TABLES[name], part) for part in parts))
        fields: dict[str, Any] = {key: {} for key in ("inputs", "versions", "tokens", "seconds")}
        plan = Plan(round="r1", stage=stage, members={j: {"strategy": j} for j in JUDGES} if stage == "judge" else {})
        fields |= {"plan": plan, "outputs": draft.outputs, "metrics": metrics, "started": TIME, "finished": TIME}
        draft.commit(store.Manifest(round="r1", stage=stage, **fields))


@contextmanager
def server(root: Path) -> Iterator[httpx.Client]:
    """`flywheel browse` as a user starts it, and a visitor with its token."""
    command = [sys.executable, "-m", "tasks", "browse", "--no-open"]
    environment = os.environ | {"PYTHONPATH": str(HERE)}
    with subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            address = (process.stdout or sys.stdin).readline().strip()
            with httpx.Client(base_url=address.partition("/?")[0], follow_redirects=True, timeout=120) as visitor:
                visitor.get(address).raise_for_status()
                yield visitor
        finally:
            process.kill()


def ask(visitor: httpx.Client, address: str, shows: str) -> tuple[float, str]:
    """Seconds of a page, and the page, which must show something."""
    clock = time.perf_counter()
    answer = visitor.get(address)
    seconds = time.perf_counter() - clock
    assert answer.status_code == 200, f"{address}: {answer.status_code} {answer.text[:2000]}"
    text = unescape(answer.text)
    assert shows in text, f"{address} does not show {shows!r}"
    return seconds, text


def following(text: str) -> str | None:
    """The address of the next page."""
    found = re.search(r'<a rel="next"[^>]* href="([^"]+)"', text)
    return found[1] if found else None


def pages(root: Path, count: int) -> dict[str, tuple[str, str]]:
    """Every kind of page: its address, and what it must show."""

    def row(table: str, part: int, number: int) -> dict[str, Any]:
        parts = sorted((store.round_folder(root, "r1") / table).glob("*.parquet"))
        return pq.read_table(parts[part % len(parts)]).slice(number, 1).to_pylist()[0]

    middle, last = row("responses", 80, 5000), row("responses", -1, 8)
    training, judgment, refinement = row("training", 20, 99), row("judgments", 200, 77), row("refinements", 10, 3)
    prompt = f"/prompt?round=r1&id={middle['prompt_id']}"
    found = {
        "rounds": ("/", f"{count:,}"),
        "responses": ("/rows?round=r1", f"40 of {count:,}"),
        "deep page of responses": ("/rows?round=r1&after=120-30000-", " of "),
        "judgments of the second judge": ("/rows?round=r1&table=judgments&judge=self_consistency", "self_consistency"),
        "by a frequent reason": ("/rows?round=r1&reason=score", "dropped: score"),
        "by a rare reason": ("/rows?round=r1&reason=format", "dropped: format"),
        "by verdict": ("/rows?round=r1&judge=logprob&verdict=fail", "logprob"),
        "by reason and verdict": ("/rows?round=r1&judge=logprob&verdict=fail&reason=kept", "kept"),
        "by a verdict that nobody gave": ("/rows?round=r1&judge=logprob&verdict=error", "looked at"),
        "training rows": ("/rows?round=r1&table=training", "2,500,000" if count == 10_000_000 else ""),
        "a text that is everywhere": ("/rows?round=r1&text=day 1", "Day 1"),
        "a text that is nowhere": ("/rows?round=r1&text=nowhere at all", "looked at"),
        "a text that is nowhere in training rows": ("/rows?round=r1&table=training&text=nowhere", "looked at"),
        "a prompt with 8 answers": (prompt, "8 answers"),
        "the last prompt": (f"/prompt?round=r1&id={last['prompt_id']}", "8 answers"),
        "trace of a prompt": (f"/row?round=r1&table=prompts&id={middle['prompt_id']}", "Went into"),
        "trace of a response": (f"/row?round=r1&table=responses&id={middle['id']}&prompt={middle['prompt_id']}", "Made from"),
        "trace of a response by its id alone": (f"/row?round=r1&table=responses&id={middle['id']}", "Made from"),
        "trace of a judgment by its id alone": (f"/row?round=r1&table=judgments&id={judgment['id']}", "Made from"),
        "trace of a training row": (f"/row?round=r1&table=training&id={training['id']}", "Made from"),
        "trace of a refinement": (f"/row?round=r1&table=refinements&id={refinement['id']}", "critiques"),
        "whole text": (f"/text?round=r1&table=responses&id={middle['id']}&column=response", "Answer: "),
        "search of a response's id": (f"/find?q={middle['id']}", middle["id"]),
        "search of an id that is not there": ("/find?q=0123456789abcdef", "0123"),
        "an answer at random": ("/random?round=r1", "8 answers"),
        "labels": ("/labels", "200 labels"),
        "report": ("/report", ""),
    }  # fmt: skip
    version = store.manifests(root, "r1")["generate"].outputs["responses"].digest[:12]
    return {n: (a + version if a.endswith("-") else a, shows) for n, (a, shows) in found.items()}


def label(root: Path, count: int = 200) -> None:
    """Labels of answers all over the round."""
    parts = sorted((store.round_folder(root, "r1") / "responses").glob("*.parquet"))
    rng = random.Random(0)
    for n in range(count):
        rows = pq.ParquetFile(rng.choice(parts)).read_row_group(0, columns=["id", "prompt_id", "response"])
        [row] = rows.slice(rng.randrange(rows.num_rows), 1).to_pylist()
        digest = text_digest(f"How many pens has Tom in the end? {row['prompt_id']}", row["response"])
        labels.write(
            root, "Ada <ada@example.org>", round="r1", source="responses", id=row["id"], prompt_id=row["prompt_id"],
            digest=digest, label=("right", "wrong")[n % 2],
        )  # fmt: skip


def search_all(visitor: httpx.Client) -> tuple[float, float, int]:
    """Seconds until a text that one answer has is found, the longest wait for a page on the way, and the pages."""
    address: str | None = f"/rows?round=r1&text={RARE}"
    waits = []
    while address:
        seconds, text = ask(visitor, address, "looked at")
        waits.append(seconds)
        if "<li data-item" in text:
            return sum(waits), max(waits), len(waits)
        address = following(text)
    raise AssertionError(f"{RARE!r} was not found")


@app.command()
def main(responses: int = 10_000_000, length: int = 400, repeats: int = 3, keep: Path | None = None) -> None:
    """A round of so many responses of so many characters. Fails when a page takes longer than it may."""
    place = keep or Path(tempfile.mkdtemp(prefix="flywheel-"))
    try:
        if not (place / "params.yaml").exists():
            make(place, responses, length)
            label(place)
        slowest: dict[str, float] = {}
        for _ in range(repeats):  # a new server each time: its first pages find nothing in its memory
            with server(place) as visitor:
                for name, (address, shows) in pages(place, responses).items():
                    times = [ask(visitor, address, shows)[0] for _ in range(2)]
                    slowest[name] = max(slowest.get(name, 0.0), *times)
                whole = search_all(visitor)
        for name, seconds in slowest.items():
            add(f"browse {responses:,} responses: {name}", f"{seconds:.2f} s", f"{SECONDS:g} s", seconds / SECONDS, 1)
        found, wait, count = whole
        what = f"browse {responses:,} responses: search until a text near the end, {count} pages by themselves"
        add(what, f"{found:.1f} s", f"longest page {wait:.2f} s", None, None)
        if max(*slowest.values(), wait) > SECONDS:
            raise typer.Exit(1)
    finally:
        if keep is None:
            shutil.rmtree(place)


if __name__ == "__main__":
    app()
