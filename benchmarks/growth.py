"""What grows with a round in train, prompts and evaluate, with a model that answers at once, and in near-duplicates.

    python benchmarks/growth.py train      [--rows 400000]     rows of training, until the second step of the stage
    python benchmarks/growth.py pool       [--problems 16000]  problems that a pool's author writes
    python benchmarks/growth.py evaluate   [--items 14000]     held-out problems, answered greedily
    python benchmarks/growth.py near       [--texts 1000000]   texts of 40 words, a tenth of them near another, in pieces
    python benchmarks/growth.py fillings   [--texts 32000]     the same of one template

Each is done with a quarter of that many, and with all, in a process of its own: seconds of the processor and the most memory
of each, and the ratio of seconds an item, which is 1 where the time is linear.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import typer
from table import add

from tasks import prompts as prompts_stage
from tasks.core import frames, tables
from tasks.core.roster import Models, Source, one
from tasks.domains.arithmetic import Arithmetic
from tasks.engines.fake import Fake
from tasks.evaluate import EvaluateCase
from tasks.evaluate.answers import Answers
from tasks.prompts.pool import Pool
from tasks.train.sft import SFT

HERE = Path(__file__).resolve().parents[1]
BASE = HERE / "data" / "base"
DOMAIN = Arithmetic()
PIECE = 2**14
MOST = 2.0
"""GiB."""
app = typer.Typer(add_completion=False, help=__doc__)
Once = Annotated[bool, typer.Option(hidden=True)]


def compare(what: str, count: int, option: str) -> None:
    """A row: the part with all, beside a quarter."""
    costs = []
    for size in (count // 4, count):
        command = [sys.executable, __file__, what, option, str(size), "--once"]
        said = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.split()
        costs.append((size, float(said[-2]), float(said[-1])))
    (few, less, low), (many, more, high) = costs
    ratio = more / many / (less / few)
    add(f"{what} {many:,}", f"{more:.1f} s, {high:.2f} GiB", f"{few:,}: {less:.1f} s, {low:.2f} GiB", ratio, 1.2)
    if high > MOST:
        raise typer.Exit(1)


def measured(work: Callable[[], None]) -> None:
    """Does it, and prints seconds of the processor and the most memory in GiB."""
    before = sum(os.times()[:2])
    work()
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**20
    print(f"{sum(os.times()[:2]) - before} {peak}")


@app.command()
def pool(problems: int = 16_000, once: Once = False) -> None:
    """Problems of levels 4 to 8, of which there are enough."""
    if not once:
        return compare("pool", problems, "--problems")
    from random import Random

    from tasks.domains.arithmetic import draw, tell

    def author(messages: list[tuple[str, str]], seed: int) -> str:
        rng = Random(seed)
        return tell(draw(rng, int(messages[-1][1].split()[1].rstrip(",")))[0], rng)

    strategy = Pool(count=problems, levels=dict.fromkeys(range(4, 9), 1.0))
    empty = frames.frame(tables.prompts), frames.frame(tables.responses)
    models = one(Fake.scripted(author), Path("m"))
    return measured(
        lambda: prompts_stage.prompts({"pool": strategy}, *empty, models, DOMAIN, 1).frames["prompts"].collect()
    )


@app.command()
def evaluate(items: int = 14_000, once: Once = False) -> None:
    """Greedy and one sampled answer to each item."""
    if not once:
        return compare("evaluate", items, "--items")
    strategy = Answers(splits=("heldout",), greedy=items, sampled=items, samples=1, ks=(1,))
    models = Models({"model": Source(Fake(answers={"": "Day 1: 12+5=17\nAnswer: 17"}), lambda: BASE)})
    return measured(lambda: strategy(EvaluateCase(models, DOMAIN, 0)))


@app.command()
def near(texts: int = 1_000_000, once: Once = False) -> None:
    """Texts of 40 words drawn by lot, or of an earlier text but one word."""
    if not once:
        return compare("near", texts, "--texts")
    from random import Random

    rng, words = Random(0), [f"w{n}" for n in range(20_000)]

    def drawn(count: int) -> list[str]:
        rows: list[list[str]] = []
        for _ in range(count):
            again = rows and rng.random() < 0.1
            rows.append([*rng.choice(rows)[:39], rng.choice(words)] if again else rng.choices(words, k=40))
        return [" ".join(row) for row in rows]

    return _duplicates(texts, drawn)


@app.command()
def fillings(texts: int = 32_000, once: Once = False) -> None:
    """Fillings of one template, which share buckets and are two thirds alike."""
    if not once:
        return compare("fillings", texts, "--texts")
    from random import Random

    rng = Random(0)
    text = (
        "A baker at the corner of the old market gets up before the sun does and bakes bread for the whole street. On day {} he "
        "sells loaves to {} people, at two coins each, and gives what is left to the poor. How much does he earn?"
    )
    return _duplicates(
        texts, lambda count: [text.format(rng.randrange(10**6), rng.randrange(10**6)) for _ in range(count)]
    )


def _duplicates(texts: int, drawn: Callable[[int], list[str]]) -> None:
    """The sketches of all texts, piece by piece as workers make them, and then what the driver makes of them."""
    from tasks.judge import _minhash

    with tempfile.TemporaryDirectory(prefix="flywheel-") as name:

        def work() -> None:
            clock = sum(os.times()[:2])
            for first in range(0, texts, PIECE):
                some = drawn(min(PIECE, texts - first))
                ids = [f"{n:016x}" for n in range(first, first + len(some))]
                rows = pl.DataFrame({"id": ids, "prompt_id": ids, "text": some})
                _minhash.sketch(rows, 5).write_parquet(f"{name}/{first:012}.parquet")
            sketched = sum(os.times()[:2]) - clock
            found = _minhash.near(pl.scan_parquet(f"{name}/*.parquet"), 5, 0.8)
            folded = sum(os.times()[:2]) - clock - sketched
            typer.echo(
                f"{texts:,}: {sketched:.1f} s to sketch, {folded:.1f} s to fold; {len(found):,} are near", err=True
            )

        measured(work)


@app.command(hidden=True)
def rows(count: int, file: Path) -> None:
    """Writes rows of training of about 80 tokens, as `collect` does, in pieces."""
    from pyarrow.parquet import ParquetWriter

    problems = [DOMAIN.solve(item.problem) for item in DOMAIN.items("train", 2_000, 0)]
    said = [{"role": "assistant", "content": "\n".join(["Day 1: 12+5=17"] * 6) + "\nAnswer: 17"}]
    with ParquetWriter(file, tables.training.schema) as writer:
        for start in range(0, count, 20_000):
            piece = [
                {"id": f"{n:08}", "prompt": problems[n % 2_000], "completion": said, "weight": 1.0}
                for n in range(start, min(start + 20_000, count))
            ]
            writer.write_table(frames.frame(tables.training, piece).collect().to_arrow().cast(tables.training.schema))


@app.command()
def train(rows: int = 400_000, once: Once = False) -> None:
    """The stage with rows of about 80 tokens in a Parquet file, one pass, stopped after the second step."""
    if not once:
        return compare("train", rows, "--rows")
    from transformers import TrainerCallback

    from tasks.train import TrainOptions
    from tasks.train import train as stage
    from tasks.training import loop
    from tasks.where.here import Here

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = state.global_step >= 2

    fit = loop.fit
    loop.fit = lambda trainer, phase: (trainer.add_callback(Stop()), fit(trainer, phase))[1]
    with tempfile.TemporaryDirectory(prefix="flywheel-") as name:
        place = Path(name)
        subprocess.run([sys.executable, __file__, "rows", str(rows), str(place / "training.parquet")], check=True)
        training, none = pl.scan_parquet(place / "training.parquet"), frames.frame(tables.preferences)
        models = Models({"parent": Source(Fake(), lambda: BASE)})
        folders = {"model": place / "model", "work": place / "work"}
        return measured(lambda: stage(SFT(), TrainOptions(), training, none, models, **folders, seed=1, where=Here()))


if __name__ == "__main__":
    app()
