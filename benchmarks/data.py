"""What the stages that ask no model take, each beside its peer in one run.

    python benchmarks/data.py votes        [--prompts 125000]     judge by votes, filter, pair  against  DuckDB SQL
    python benchmarks/data.py write        [--rows 2000000]       write and version a table     against  pyarrow and a copy
    python benchmarks/data.py memory       [--responses 1000000]  judge, filter, pair over 2 kB each  in at most 2 GiB
                           [--case NAME …]
    python benchmarks/data.py duplicates   [--texts 800]          near-duplicates by ROUGE-L    against  self-instruct's loop

Each prints both sides' median seconds and their ratio, and checks first that both sides decide the same. The sides take
turns. Memory is the highest resident set of each stage's own process.
"""

import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import duckdb
import polars as pl
import pyarrow.parquet as pq
import typer
from polars.testing import assert_frame_equal
from ruamel.yaml import YAML
from table import add

from tasks.core import frames, store
from tasks.core.plan import Plan
from tasks.core.tables import TABLES, Table
from tasks.project import plan
from tasks.project.execute import run_stage
from tasks.project.params import plain
from tasks.prompts._near import Texts

HERE = Path(__file__).resolve().parents[1]
PEAK = """
import sys
from pathlib import Path
from tasks.commands.rounds import stage
stage(sys.argv[1], "r1")
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""
"""Runs a stage as a user does, and prints the most memory that its process had, in KiB (getrusage would count the parent's)."""
MANY = {10_000: 2, 100_000: 15}
"""Texts to screen, and the most seconds that it may take."""
VERDICT = "Day 1: 12+5=17, said 17: right\nAnswer: 17, said 17: right\nVerdict: correct"
CASES: dict[str, dict[str, Any]] = {
    "judge by votes": {},
    "filter by a threshold": {},
    "pair": {},
    "filter with a limit a level": {"filter.threshold.per_level": 10_000},
    "filter by top_fraction": {"filter.threshold": None, "filter.top_fraction.fraction": 0.5},
    "judge by self_judge": {
        "judge": {"reward": "self_judge", "self_consistency": None, "self_judge": {"likeliest": None}},
    },
}
"""What is measured, and the values with which r1 does it; the first word is the stage."""
app = typer.Typer(add_completion=False, help=__doc__)

SQL = {
    "judge": """
copy (
  with responses as (
    select id, prompt_id, answer, error, error is not null or response is null as failed
    from read_parquet('{round}/responses/*.parquet')
  ),
  counts as (select prompt_id, answer, count(*) as votes from responses where not failed group by all),
  tops as (
    select prompt_id, sum(votes) as voters, max(votes) filter (answer is not null) as top from counts group by prompt_id
  ),
  leads as (
    select prompt_id, any_value(voters) as voters, any_value(top) as top,
           count(*) filter (votes = top and answer is not null) as leaders
    from counts join tops using (prompt_id) group by prompt_id
  ),
  judged as (
    select r.id, r.prompt_id, case when r.answer is not null then votes / voters end as score,
           case when r.answer is null then null when votes < top then 'fail' when leaders = 1 then 'pass' end as verdict,
           case when r.answer is null then 'no answer in the response' end as error
    from responses r
    join counts c on c.prompt_id = r.prompt_id and c.answer is not distinct from r.answer
    join leads l on l.prompt_id = r.prompt_id
    where not failed
    union all
    select id, prompt_id, null, null, 'no response: ' || coalesce(error, 'nothing came back')
    from responses where failed
  )
  select substr(sha256(id || chr(31) || 'self_consistency'), 1, 16) as id, id as response_id, prompt_id,
         'self_consistency' as member, true as reward, score, verdict, null::varchar as rationale, error
  from judged order by prompt_id, response_id
) to '{place}/judgments.parquet' ({written});
""",
    "filter": """
copy (
  with scored as (
    select r.id, r.prompt_id, r.mean_logprob, hash(r.response) as text, j.score,
           case when r.error is not null then 'error'
                when r.answer is null or r.finish_reason = 'length' then 'format'
                when r.tokens < 1 then 'short'
                when j.score is null then 'unjudged'
                when j.score < 0.4 then 'score' end as reason,
           case when r.tokens < 1 then 1 - r.tokens when j.score < 0.4 then 0.4 - j.score end as margin
    from read_parquet('{round}/responses/*.parquet') r
    left join read_parquet('{place}/judgments.parquet') j on j.response_id = r.id and j.reward
  ),
  copies as (
    select *, row_number() over (
      partition by prompt_id, text, reason is null order by score desc nulls last, mean_logprob desc nulls last, id
    ) as copy
    from scored
  ),
  distinct_ones as (
    select * replace (case when reason is null and copy > 1 then 'duplicate' else reason end as reason) from copies
  ),
  ranked as (
    select *, case when reason is null then row_number() over (
      partition by prompt_id, reason is null order by score desc nulls last, mean_logprob desc nulls last, id
    ) end as place
    from distinct_ones
  )
  select id, prompt_id, coalesce(place <= 1, false) as kept, case when place <= 1 then place end::int as rank,
         case when place > 1 then 'rank' else reason end as reason,
         case when place > 1 then place - 1 when place = 1 then score - 0.4 else margin end as margin, score
  from ranked order by prompt_id, id
) to '{place}/filtered.parquet' ({written});
""",
    "pair": """
copy (
  with rated as (
    select r.id, r.prompt_id, r.response, r.mean_logprob, r.model, j.score, f.rank
    from read_parquet('{round}/responses/*.parquet') r
    join read_parquet('{place}/judgments.parquet') j on j.response_id = r.id and j.reward and j.score is not null
    left join read_parquet('{place}/filtered.parquet') f on f.id = r.id and f.kept
    where r.error is null and r.answer is not null and r.finish_reason is distinct from 'length'
  ),
  ends as (
    select prompt_id, arg_min(id, rank) as chosen_id, arg_min(response, rank) as chosen,
           arg_min(score, rank) as chosen_score, arg_min(model, rank) as chosen_model,
           first(id order by score, mean_logprob desc nulls last, id) as rejected_id,
           first(response order by score, mean_logprob desc nulls last, id) as rejected, min(score) as rejected_score,
           first(model order by score, mean_logprob desc nulls last, id) as rejected_model
    from rated group by prompt_id
  )
  select substr(sha256(concat_ws(chr(31), 'best_worst', prompt_id, chosen_id, rejected_id)), 1, 16) as id,
         'best_worst' as member, prompt_id, p.prompt, chosen_id, [{{role: 'assistant', content: chosen}}] as chosen,
         chosen_score, chosen_model, rejected_id, [{{role: 'assistant', content: rejected}}] as rejected, rejected_score,
         rejected_model, 'responses' as source, 'self_consistency' as judge, 1.0 as weight, 0.0 as smoothing
  from ends join read_parquet('{round}/prompts/*.parquet') p on p.id = prompt_id
  where chosen_score - rejected_score >= 0.25 and chosen_score >= 0.4 and chosen <> rejected
  order by prompt_id
) to '{place}/pairs.parquet' ({written});
""",
}
"""Votes, filter and pair as somebody writes them for this one recipe: the same columns, ids, reasons and margins, in the same
order, compressed alike."""
WRITTEN = "format parquet, compression zstd, compression_level 1"


def compare(what: str, sides: dict[str, Callable[[], Any]], repeats: int, goal: float | None = None) -> None:
    """A row of both sides' median seconds, and the ratio of the first to the second; the sides take turns."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            clock, processor = time.perf_counter(), time.process_time()
            side()
            times[name].append((time.perf_counter() - clock, time.process_time() - processor))
    (_, ours), (other, theirs) = ((name, [*map(median, zip(*of, strict=True))]) for name, of in times.items())
    add(what, _seconds(*ours), f"{other} {_seconds(*theirs)}", ours[0] / theirs[0], goal)


def _seconds(clock: float, processor: float) -> str:
    return f"{clock:.2f} s (processor {processor:.2f})"


@contextmanager
def project(engine: dict[str, Any] | None = None, domain: dict[str, Any] | None = None) -> Iterator[Path]:
    """An empty project with r0 and r1, whose only judge are the votes; with one answer a prompt where the base has another
    engine and domain.
    """
    with tempfile.TemporaryDirectory(prefix="flywheel-") as place:
        root = Path(place)
        for folder in ("data", "recipes"):
            (root / folder).mkdir()
        for name in ("tasks", "data/base", "data/seeds"):
            (root / name).symlink_to(HERE / name)
        recipe = plain(YAML().load((HERE / "recipes/sharpen.yaml").read_text()))
        stages = recipe["stages"]
        stages["judge"] = {"reward": "self_consistency", "self_consistency": {}}
        stages["filter"]["threshold"]["require"] = {}
        stages["generate"]["sample"] |= {"samples": 1} if engine else {}
        YAML().dump(recipe, root / "recipes/votes.yaml")
        content = plain(YAML().load((HERE / "params.yaml").read_text()))
        base = content["bases"]["r0"]
        base |= {"engine": engine or base["engine"], "domain": domain or base["domain"]}
        rounds = {"r1": {"parent": "r0", "base": "r0", "seed": 1}}
        YAML().dump({"defaults": {"recipe": "votes"}, "bases": {"r0": base}, "rounds": rounds}, root / "params.yaml")
        plan.write(root)
        run_stage(root, "r0", "base")
        yield root


def choose(root: Path, values: dict[str, Any]) -> None:
    """Gives r1 other values than its recipe's, by their dotted paths."""
    content = plain(YAML().load((root / "params.yaml").read_text()))
    content["rounds"]["r1"]["set"] = values
    YAML().dump(content, root / "params.yaml")
    plan.write(root)


def put(root: Path, stage: str, tables: dict[str, Iterable[store.Frame]]) -> None:
    """Writes tables as if a stage had made them, each frame after the other."""
    with store.writing(root, "r1", stage) as draft:
        for name, parts in tables.items():
            draft.table(TABLES[name], (complete(TABLES[name], part) for part in parts))
        fields: dict[str, Any] = {key: {} for key in ("inputs", "versions", "metrics", "tokens", "seconds")}
        fields |= {"plan": Plan.read(root, "r1", stage), "outputs": draft.outputs, "started": "", "finished": ""}
        draft.commit(store.Manifest(round="r1", stage=stage, **fields))


def complete(table: Table, frame: store.Frame) -> pl.LazyFrame:
    """A frame with all of a table's columns; those that it lacks are null."""
    present, types = frame.lazy().collect_schema(), frames.frame(table).collect_schema()
    missing = [pl.lit(None).alias(c) for c in types if c not in present]
    return frame.lazy().with_columns(missing).select(table.schema.names).cast(dict(types))  # type: ignore[arg-type]


def candidates(prompts: int, samples: int = 8, first: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Prompts, and answers to them that agree more or less, as `generate` writes them."""
    rows = pl.DataFrame({"n": range(first, first + prompts)}, schema={"n": pl.Int64})
    name = pl.col("n").cast(pl.String).str.zfill(16)
    questions = rows.select(id=name, problem=pl.lit("How many? ") + name, level=pl.lit(3)).with_columns(
        prompt=pl.concat_list(pl.struct(role=pl.lit("user"), content=pl.col("problem")))
    )
    draws = rows.join(pl.DataFrame({"sample": range(samples)}, schema={"sample": pl.Int64}), how="cross")
    noise = pl.struct("n", "sample").hash(seed=1)
    answer = pl.when(noise % 3 == 0).then(noise // 3 % 5).otherwise(pl.col("n") % 5).cast(pl.String)
    answers = draws.with_columns(
        id=name + pl.col("sample").cast(pl.String), prompt_id=name, answer=answer, seed=pl.col("sample"),
        mean_logprob=-(noise % 1000).cast(pl.Float64) / 1000, tokens=pl.lit(12), prompt_tokens=pl.lit(20),
        finish_reason=pl.lit("stop"), hinted=pl.lit(False), model=pl.lit("m"),
    )  # fmt: skip
    answers = answers.with_columns(response=pl.lit("Day 1: 12+5=17\nAnswer: ") + pl.col("answer"))
    return questions, answers.with_columns(response=pl.col("response") + "\n" + (noise % 7).cast(pl.String))


@app.command()
def votes(prompts: int = 125_000, repeats: int = 5) -> None:
    """Majority vote, filter and best-worst pair: this project's stages against DuckDB SQL written by hand.

    Both read the same Parquet, make the same three tables with ids, reasons and margins, sort them, and write them as Parquet
    with zstd at level 1. This project's stages verify the sha256 of what they read, too, check what they wrote, compute
    metrics, hash and sync it, and commit it with a manifest; the SQL does none of that.
    """
    with project() as root:
        questions, answers = candidates(prompts)
        put(root, "prompts", {"prompts": [questions]})
        put(root, "generate", {"responses": [answers]})
        put(root, "critique", {"critiques": [], "refinements": []})
        names = {"round": store.round_folder(root, "r1"), "place": root, "written": WRITTEN}

        def ours(*stages: str) -> None:
            for stage in stages:
                run_stage(root, "r1", stage)

        def theirs(*stages: str) -> None:
            for stage in stages:
                duckdb.connect().execute(SQL[stage].format(**names))

        ours(*SQL)
        theirs(*SQL)
        made = {table: store.read(root, "r1", table) for table in ("judgments", "filtered", "pairs")}
        for table, rows in made.items():
            assert_frame_equal(
                rows, pl.read_parquet(root / f"{table}.parquet").select(rows.columns), check_dtypes=False
            )
        kept, pairs = made["filtered"]["kept"].sum(), made["pairs"].height
        print(f"{answers.height:,} candidates, {kept:,} kept, {pairs:,} pairs; both make the same rows")
        what = f"{answers.height:,} candidates"
        for stage in SQL:
            compare(f"{stage}: {what}", {"ours": partial(ours, stage), "DuckDB SQL": partial(theirs, stage)}, repeats)
        sides = {"ours": partial(ours, *SQL), "DuckDB SQL": partial(theirs, *SQL)}
        compare(f"vote, filter, pair: {what}", sides, repeats, 1.3)


@app.command()
def write(rows: int = 2_000_000, repeats: int = 5) -> None:
    """A table of responses against the same rows written by pyarrow as it comes, then hashed and copied.

    This side: Parquet with zstd at level 1, in parts that two threads encode, read again for the table's checks, counted for
    its metrics, hashed, synced and committed with a manifest. The other side: one `pyarrow.parquet.write_table` with its
    defaults (snappy, dictionaries, statistics), the sha256 of the file, and a copy of it, as a cache keeps one.
    """
    with project() as root:
        words = random.Random(0).choices([f"w{i}" for i in range(50_000)], k=200_000)
        texts = [" ".join(words[i : i + 60]) for i in range(0, 100_000)]
        _, answers = candidates(rows // 8)
        responses = pl.Series("response", texts).sample(answers.height, with_replacement=True, seed=0)
        answers = answers.with_columns(responses + answers["id"])
        answers = complete(TABLES["responses"], answers).collect()
        file = root / "responses.parquet"

        def ours() -> None:
            put(root, "generate", {"responses": [answers]})

        def theirs() -> None:
            pq.write_table(answers.to_arrow(), file)
            store.sha256(file)
            shutil.copy(file, root / "copy.parquet")

        ours()
        theirs()
        parts = (store.round_folder(root, "r1") / "responses").iterdir()
        sizes = sum(part.stat().st_size for part in parts) / 1e9, file.stat().st_size / 1e9
        what = f"write and version {answers.height:,} responses"
        compare(what, {"ours": ours, "pyarrow, sha256 and copy": theirs}, repeats, 1.3)
        add(f"{what}: bytes on disk", f"{sizes[0]:.2f} GB", f"pyarrow {sizes[1]:.2f} GB", sizes[0] / sizes[1], 1)


@app.command()
def memory(responses: int = 1_000_000, most: float = 2.0, case: list[str] = list(CASES)) -> None:  # noqa: B006
    """Judge, filter and pair over that many responses of 2 kB, 8 a prompt, each stage as the process that a user starts; a
    model that is asked answers at once, from no cache. Fails when one of them needs more GiB than `most`.
    """
    if unknown := set(case) - set(CASES):
        raise typer.BadParameter(f"no case {', '.join(map(repr, unknown))}; there are {', '.join(map(repr, CASES))}")
    size, rng, too_much = 16_384, random.Random(0), False
    words = [f"w{i}" for i in range(50_000)]
    texts = pl.Series("response", [" ".join(rng.choices(words, k=330)) for _ in range(20_000)])
    starts = range(0, responses // 8, size)

    def answers() -> Iterator[pl.DataFrame]:
        for first in starts:
            _, rows = candidates(size, first=first)
            long = texts.sample(rows.height, with_replacement=True, seed=first)
            yield rows.with_columns(response=long + "\n" + rows["response"])

    with project({"strategy": "fake", "answers": {"": VERDICT}}) as root:
        put(root, "prompts", {"prompts": (candidates(size, first=first)[0] for first in starts)})
        put(root, "generate", {"responses": answers()})
        put(root, "critique", {"critiques": [], "refinements": []})
        rows = store.find(root, "r1", "responses")[1].rows or 0
        print(f"{rows:,} responses, {rows * 2.0 / 1e6:.1f} GB of text")
        for name in case:
            stage, values = name.split()[0], CASES[name]
            choose(root, values)
            clock = time.perf_counter()
            process = subprocess.run([sys.executable, "-c", PEAK, stage], cwd=root, stdout=subprocess.PIPE, check=True)
            peak = int(process.stdout.split()[-1]) / 2**20
            cost = f"{time.perf_counter() - clock:.1f} s, {peak:.2f} GiB"
            add(f"{name}: {rows:,} responses of 2 kB", cost, f"{most} GiB", peak / most, 1)
            too_much |= peak > most
    if too_much:
        raise typer.Exit(1)


def instructions(count: int) -> list[str]:
    """Texts of 8 to 40 words, common ones often (Zipf); half of them are copies of an earlier one, more or less changed."""
    rng = random.Random(0)
    vocabulary = [f"w{i}" for i in range(20_000)]
    weights = [1 / (i + 10) for i in range(len(vocabulary))]
    texts: list[str] = []
    for _ in range(count):
        if texts and rng.random() < 0.5:
            change = rng.choice((0.1, 0.3, 0.5, 0.7))
            fresh = iter(rng.choices(vocabulary, weights, k=40))
            texts.append(" ".join(next(fresh) if rng.random() < change else w for w in rng.choice(texts).split()))
        else:
            texts.append(" ".join(rng.choices(vocabulary, weights, k=rng.randint(8, 40))))
    return texts


def distinct(texts: list[str]) -> list[bool]:
    """Which texts stay: those with no ROUGE-L F above 0.7 with one that stayed before."""
    index, stay = Texts(Fraction(7, 10)), []
    for text in texts:
        stay.append(index.near(text) is None)
        if stay[-1]:
            index.add(text, text)
    return stay


def distinct_by_loop(texts: list[str]) -> list[bool]:
    """The same, as self-instruct does it: every text against every one that stayed, in one process."""
    from rouge_score.rouge_scorer import RougeScorer  # 140 MB, of which the other measurements should not be accused

    scorer, kept, stay = RougeScorer(["rougeL"], use_stemmer=False), [], []
    for text in texts:
        stay.append(all(scorer.score(text, old)["rougeL"].fmeasure <= 0.7 for old in kept))
        if stay[-1]:
            kept.append(text)
    return stay


@app.command()
def duplicates(texts: int = 800, repeats: int = 3) -> None:
    """Near-duplicates by ROUGE-L above 0.7, the first one stays; then this project alone on many texts."""
    few = instructions(texts)
    ours, theirs = distinct(few), distinct_by_loop(few)
    different = sum(a != b for a, b in zip(ours, theirs, strict=True))
    print(f"{texts:,} texts, {sum(ours):,} stay; {different} decisions differ (ties at 0.7, which floats decide)")
    sides = {"ours": lambda: distinct(few), "self-instruct's loop": lambda: distinct_by_loop(few)}
    compare(f"near-duplicates in {texts:,} texts", sides, repeats)
    for count, goal in MANY.items():
        many = instructions(count)
        times = []
        for _ in range(max(repeats, 1)):
            clock = time.perf_counter()
            distinct(many)
            times.append(time.perf_counter() - clock)
        seconds = median(times)
        add(f"near-duplicates in {count:,} texts", f"{seconds:.2f} s", f"{goal} s", seconds / goal, 1)


if __name__ == "__main__":
    app()
