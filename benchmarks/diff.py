"""How long `flywheel diff` takes over two large rounds, and how much memory.

    python benchmarks/diff.py        [--responses 1000000] [--length 2000]       in at most 20 s and 4 GiB

Both rounds answer the same problems, 8 answers each; half of the answers differ, a tenth of the problems are others. The
tables are written as the stages write them. The command runs as a user starts it; memory is the highest resident set of its
process. What it counts is compared with what was planted.
"""

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import typer
from ruamel.yaml import YAML
from table import add

from data import candidates, complete, project
from tasks.core import store
from tasks.core.plan import Plan
from tasks.core.tables import TABLES

PIECE = 16_384
"""Problems that are written at a time."""
JUDGES = ("self_consistency", "logprob")
SECONDS, GIB = 20.0, 4.0
PEAK = """
import sys
from pathlib import Path
from tasks.__main__ import main
try:
    main()
finally:
    print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0], file=sys.stderr)
"""
app = typer.Typer(add_completion=False, help=__doc__)


def write(root: Path, name: str, stage: str, tables: dict[str, Iterator[pl.LazyFrame]]) -> None:
    """Writes tables as if a stage of a round had made them."""
    with store.writing(root, name, stage) as draft:
        for table, frames in tables.items():
            draft.table(TABLES[table], (complete(TABLES[table], frame) for frame in frames))
        fields: dict[str, Any] = {key: {} for key in ("inputs", "versions", "metrics", "tokens", "seconds")}
        plan = Plan(round=name, stage=stage)
        draft.commit(
            store.Manifest(round=name, stage=stage, plan=plan, outputs=draft.outputs, started="", finished="", **fields)
        )


def pieces(prompts: int, new: bool, texts: pl.Series) -> Iterator[tuple[pl.LazyFrame, pl.LazyFrame]]:
    """Problems and their answers. The new round starts a tenth later, and every second of its answers is another."""
    start = prompts // 10 if new else 0
    for first in range(start, start + prompts, PIECE):
        problems, answers = candidates(min(PIECE, start + prompts - first), first=first)
        long = texts.gather(answers["id"].hash(seed=0) % len(texts))
        own = pl.when(pl.lit(new) & (pl.col("sample") % 2 == 0)).then(pl.lit("!")).otherwise(pl.lit(""))
        answers = answers.with_columns(
            member=pl.lit("sample"), response=pl.col("response") + "\n" + pl.col("id") + long.alias("long") + own
        )
        answers = answers.with_columns(id=pl.col("id") + pl.lit("new" if new else "old"))
        yield problems.lazy(), answers.lazy()


def judged(answers: pl.LazyFrame, judge: str) -> pl.LazyFrame:
    """A judge's scores of answers, which depend on their texts."""
    score = (pl.col("response").hash() % 1000).cast(pl.Float64) / 1000
    verdict = pl.when(score > 0.5).then(pl.lit("pass")).otherwise(pl.lit("fail"))
    return answers.select(
        pl.col("id") + judge, "prompt_id", response_id="id", member=pl.lit(judge), reward=pl.lit(judge == JUDGES[0]),
        score=score, verdict=verdict,
    )  # fmt: skip


def filtered(answers: pl.LazyFrame) -> pl.LazyFrame:
    """Every answer, kept or dropped by its text."""
    score = (pl.col("response").hash() % 1000).cast(pl.Float64) / 1000
    kept = score > 0.5
    return answers.select(
        "id", "prompt_id", kept=kept, rank=pl.when(kept).then(1), score=score,
        reason=pl.when(~kept).then(pl.lit("min_reward")),
    )  # fmt: skip


def training(answers: pl.LazyFrame) -> pl.LazyFrame:
    """Every fourth answer, as it is trained on."""

    def chat(role: str, text: pl.Expr) -> pl.Expr:
        return pl.concat_list(pl.struct(role=pl.lit(role), content=text))

    return answers.filter(pl.col("sample") < 2).select(
        "id", "prompt_id", response_id="id", source=pl.lit("responses"), weight=pl.lit(1.0),
        prompt=chat("user", pl.col("prompt_id")), completion=chat("assistant", pl.col("response")),
    )  # fmt: skip


def exam(new: bool, items: int = 350) -> pl.LazyFrame:
    """Sampled answers to held-out problems, a third of which the new round answers better."""
    rows = pl.DataFrame({"n": range(items)}).join(pl.DataFrame({"sample": range(8)}), how="cross").lazy()
    right = pl.col("sample") < pl.col("n") % 8 + pl.lit(int(new)) * (pl.col("n") % 3 == 0)
    return rows.select(
        id=pl.format("{}/{}", "n", "sample"), item=pl.col("n").cast(pl.String), sample="sample", correct=right,
        member=pl.lit("answers"), split=pl.lit("heldout"), mode=pl.lit("sampled"), response=pl.lit("x"),
    )  # fmt: skip


def make(root: Path, name: str, prompts: int, length: int) -> None:
    """Writes a round."""
    new, rng = name == "r2", random.Random(0)
    words = [f"w{i}" for i in range(50_000)]
    texts = pl.Series("long", [" ".join(rng.choices(words, k=length // 6)) for _ in range(20_000)])

    def answers() -> Iterator[pl.LazyFrame]:
        return (rows for _, rows in pieces(prompts, new, texts))

    write(root, name, "prompts", {"prompts": (rows for rows, _ in pieces(prompts, new, texts))})
    write(root, name, "generate", {"responses": answers()})
    write(root, name, "judge", {"judgments": (judged(rows, judge) for judge in JUDGES for rows in answers())})
    write(root, name, "filter", {"filtered": (filtered(rows) for rows in answers())})
    write(root, name, "collect", {"training": (training(rows) for rows in answers())})
    write(root, name, "evaluate", {"evals": iter([exam(new)])})


@app.command()
def main(responses: int = 1_000_000, length: int = 2000, repeats: int = 3) -> None:
    """Two rounds of so many responses of so many characters. Fails when it takes longer or needs more than it may."""
    prompts = responses // 8
    with project() as root:
        yaml = YAML()
        content = yaml.load(root / "params.yaml")
        content["rounds"]["r2"] = {"parent": "r1", "base": "r0", "seed": 2}
        yaml.dump(content, root / "params.yaml")
        for name in ("r1", "r2"):
            make(root, name, prompts, length)
        seconds, peaks = [], []
        for _ in range(repeats):
            clock = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", PEAK, "diff", "r1", "r2", "--json"], cwd=root, capture_output=True, check=True
            )
            seconds.append(time.perf_counter() - clock)
            peaks.append(int(done.stderr.split()[-1]) / 2**20)
        tables = json.loads(done.stdout)["tables"]
        common = prompts - prompts // 10
        assert tables["prompts"]["added"] == tables["prompts"]["gone"] == prompts // 10
        assert tables["responses"]["changed"] == tables["responses"]["columns"]["response"] == common * 4
        assert tables["responses"]["added"] == prompts // 10 * 8
    best, peak = sorted(seconds)[len(seconds) // 2], max(peaks)
    what = f"diff of two rounds, {responses:,} responses of {length:,} characters"
    add(what, f"{best:.1f} s", f"{SECONDS:g} s", best / SECONDS, 1)
    add(f"{what}: memory", f"{peak:.2f} GiB", f"{GIB:g} GiB", peak / GIB, 1)
    if best > SECONDS or peak > GIB:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
