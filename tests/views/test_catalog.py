import csv
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from tasks.core import models, remembered, store
from tasks.core.errors import FlywheelError, ParamsError, StoreError, UnknownName
from tasks.core.plan import Plan
from tasks.core.tables import TABLES
from tasks.project.plan import table_digest
from tasks.views import _printing, _summaries, catalog, verify
from tasks.views.trace import show, trace

HERE = Path(__file__).parents[2]
PARAMS = """
defaults: {recipe: toy}
bases:
  r0: {seed: 1, domain: {strategy: arithmetic}, engine: {strategy: fake}, base: {strategy: local}}
rounds:
  r1: {parent: r0, base: r0, seed: 2}
  r2: {parent: r1, base: r0, seed: 3, recipe: cream, anchor: r0}
"""
CHAT = [{"role": "user", "content": "What's 1 + 1?"}]
PROMPT = {"id": "p1", "problem": "What's 1 + 1?", "prompt": CHAT, "source": "model", "parents": ["p0"]}
SEED = {"id": "p0", "problem": "1?", "prompt": CHAT, "source": "seed", "parents": []}


def rows_of(table: str, *rows: dict[str, Any]) -> pl.DataFrame:
    return pl.from_arrow(pa.Table.from_pylist(list(rows), TABLES[table].schema))


def write(
    root: Path, round: str, stage: str, tables: dict[str, list[dict[str, Any]]], model: bytes = b"", **more: Any
) -> None:
    with store.writing(root, round, stage) as draft:
        for name, rows in tables.items():
            draft.table(TABLES[name], rows_of(name, *rows))
        if model:
            place = draft.folder("model")
            (place / "config.json").write_text("{}")
            (place / "model.safetensors").write_bytes(model)
            (place / "log.txt").write_text("not part of the digest")
            draft.describe_folder("model")
        plan = Plan(round=round, stage=stage, seed=7, members=more.pop("members", {}))
        facts = {"metrics": {}, "tokens": {"prompt_tokens": 3, "completion_tokens": 4}} | more
        draft.commit(
            store.Manifest(
                round=round,
                stage=stage,
                plan=plan,
                outputs=draft.outputs,
                inputs={},
                versions={},
                seconds={"start": 1.0, "run": 2.0, "write": 0.5},
                started="2026-01-01T00:00:00+00:00",
                finished="2026-01-01T00:00:03+00:00",
                **facts,
            )
        )


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy of the project, in a folder whose name needs quoting and looks like a partition."""
    return Path(shutil.copytree(made, tmp_path / "it's=here"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and a round, of which some stages have run; r2 is only in params.yaml, x9 only on disk."""
    root = tmp_path_factory.mktemp("project")
    (root / "params.yaml").write_text(PARAMS)
    write(root, "r0", "base", {"prompts": [SEED]}, b"weights", members={"local": {"strategy": "local"}})
    digest = models.digest(root / "data" / "round=r0" / "model")
    response = {"prompt_id": "p1", "response": "2", "answer": "2", "model": digest}
    write(root, "r1", "prompts", {"prompts": [PROMPT]}, members={"pool": {"strategy": "pool", "count": 1}})
    write(
        root,
        "r1",
        "generate",
        {"responses": [{"id": "a1", "sample": 0, **response}, {"id": "a2", "sample": 1, **response}]},
        metrics={"responses": 2.0, "pass_at_1/level_2": 0.5},
    )
    verdict = {"response_id": "a1", "prompt_id": "p1", "member": "verifier", "reward": True, "score": 1.0}
    judges = {"verifier": {"strategy": "verifier"}, "strict": {"strategy": "self_judge"}}
    write(root, "r1", "judge", {"judgments": [{"id": "j1", **verdict}]}, members=judges)
    write(root, "r1", "filter", {"filtered": [{"id": "a1", "prompt_id": "p1", "kept": True, "rank": 1, "score": 1.0}]})
    training = {
        "id": "t1",
        "prompt_id": "p1",
        "response_id": "a1",
        "model": digest,
        "source": "responses",
        "weight": 1.0,
    }
    done = {"prompt": CHAT, "completion": [{"role": "assistant", "content": "2"}]}
    write(root, "r1", "collect", {"training": [training | done]})
    write(root, "r1", "train", {}, b"other weights")
    write(root, "x9", "gate", {}, metrics={"promoted": 1.0})
    return root


def ask(root: Path, sql: str) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in catalog.query(root, sql).to_pylist()]


def test_every_table_is_a_view_with_its_columns_and_the_round_in_front(root: Path) -> None:
    con = catalog.connect(root)
    for name, table in TABLES.items():
        schema = con.sql(f"from {name}").to_arrow_table().schema
        assert schema.names == ["round", *table.schema.names]
        assert schema.field("round").type == pa.string()
        assert [schema.field(n).type for n in table.schema.names] == table.schema.types
    assert ask(root, "select round, id from prompts order by all") == [("r0", "p0"), ("r1", "p1")]
    assert ask(root, "select count(*) from evals") == [(0,)]


def test_a_project_without_anything_has_the_views_too(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("bases: {}")
    for name in [*TABLES, "rounds", "stages", "costs", "warnings", "metrics"]:
        assert ask(tmp_path, f"select count(*) from {name}") == [(0,)]


def test_files_that_no_manifest_names_are_in_no_view(root: Path) -> None:
    part = root / "data" / "round=r1" / "prompts" / "part-00000.parquet"
    part.with_name("part-00001.parquet").write_bytes(part.read_bytes())
    (root / "data" / "round=r1" / "evals").mkdir()
    (root / "data" / "round=r1" / "evals" / "part-00000.parquet").write_bytes(b"torn")
    assert ask(root, "select count(*) from prompts where round = 'r1'") == [(1,)]
    assert ask(root, "select count(*) from evals") == [(0,)]


def test_an_older_round_may_lack_a_column_or_have_one_more(root: Path) -> None:
    place = root / "data" / "round=r1"
    part = place / "filtered" / "part-00000.parquet"
    old = pq.read_table(part).drop_columns("margin").append_column("gone", pa.array(["x"]))
    pq.write_table(old, part)
    manifest = json.loads((place / "manifests" / "filter.json").read_text())
    manifest["outputs"]["filtered"]["parts"][0] |= {"bytes": part.stat().st_size, "sha256": store.sha256(part)}
    del manifest["digest"]
    (place / "manifests" / "filter.json").write_text(json.dumps(manifest))
    assert ask(root, "from filtered") == [("r1", "a1", "p1", True, 1, None, None, 1.0)]


@pytest.mark.parametrize("harm", ["gone", "cut"])
def test_a_part_that_is_gone_or_cut_short_is_named(root: Path, harm: str) -> None:
    part = root / "data" / "round=r1" / "judgments" / "part-00000.parquet"
    content = part.read_bytes()
    part.unlink()
    if harm == "cut":
        part.write_bytes(content[:100])
    with pytest.raises(StoreError, match=r"round=r1/judgments/part-00000\.parquet (is missing|has 100 bytes)"):
        catalog.connect(root)


def test_a_flipped_bit_in_a_table_is_seen_by_the_query_that_reads_it(root: Path) -> None:
    part = root / "data" / "round=r1" / "judgments" / "part-00000.parquet"
    content = bytearray(part.read_bytes())
    content[len(content) // 8] ^= 1  # among the rows: the footer is the larger part of so small a file
    part.write_bytes(content)
    with pytest.raises(StoreError, match=r"round=r1/judgments/part-00000\.parquet is not what was written"):
        catalog.query(root, 'with j as (from main."Judgments") select count(*) from j')
    for sql in (
        "select 1; from JUDGMENTS",
        "from (pivot judgments on member using count(*))",
        "from query_table('judgments')",
    ):
        with pytest.raises(StoreError, match="is not what was written"):
            catalog.query(root, sql)
    assert catalog.query(root, "select 1; select count(*) from responses").num_rows == 1


def test_a_damaged_footer_is_told_with_its_file_by_what_reads_it(root: Path, tmp_path: Path) -> None:
    part = root / "data" / "round=r1" / "judgments" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-4] + b"????")
    message = r"round=r1/judgments/part-00000\.parquet is not what was written .*dvc checkout --force"
    for act in (
        lambda: catalog.query(root, "from judgments"),
        lambda: catalog.connect(root),
        lambda: catalog.write_views(root, tmp_path / "views.duckdb"),
    ):
        with pytest.raises(StoreError, match=message):
            act()
    assert ask(root, "select count(*) from judgments where round = 'r0'") == [(0,)], (
        "another round's file is not opened"
    )


def test_rounds_tell_parents_strategies_and_models(root: Path) -> None:
    rounds = {r["round"]: r for r in catalog.query(root, "from rounds").to_pylist()}
    assert list(rounds) == ["r0", "r1", "r2", "x9"]
    columns = ("kind", "parent", "base", "recipe", "anchor", "seed", "stages")
    assert [tuple(r[c] for c in columns) for r in rounds.values()] == [
        ("base", None, "r0", None, None, 1, 1),
        ("round", "r0", "r0", "toy", None, 2, 6),
        ("round", "r1", "r0", "cream", "r0", 3, 0),
        (None, None, None, None, None, 7, 1),
    ]
    assert rounds["r1"]["strategies"] == [("judge", "verifier + strict (self_judge)"), ("prompts", "pool")]
    assert (rounds["r1"]["domain"], rounds["r1"]["engine"]) == ("arithmetic", "fake")
    assert [r["promoted"] for r in rounds.values()] == [None, None, None, True]
    assert rounds["r1"]["model"] == models.digest(root / "data" / "round=r1" / "model")
    assert ask(root, "select a.round from rounds a join responses b using (model)") == [("r0",), ("r0",)]


def test_a_model_that_is_a_pointer_has_the_digest_that_it_tells(root: Path) -> None:
    place = root / "data" / "round=r0" / "model"
    (place / "pointer.json").write_text('{"digest": "abc"}')
    assert ask(root, "select model from rounds where round = 'r0'") == [("abc",)]


def test_stages_and_metrics(root: Path) -> None:
    assert ask(root, "select name, value from metrics where stage = 'generate' order by name") == [
        ("pass_at_1/level_2", 0.5),
        ("responses", 2.0),
    ]
    columns = "rows, prompt_tokens, completion_tokens, requests, seconds, start_seconds, finished"
    assert ask(root, f"select {columns} from stages where stage = 'generate'") == [
        (2, 3, 4, 0, 3.5, 1.0, "2026-01-01T00:00:03+00:00")
    ]
    assert ask(root, "select round, stage, warning from warnings") == []


def change(root: Path, stage: str, **values: object) -> None:
    """Rewrites the manifest of a stage of r1."""
    path = root / "data" / "round=r1" / "manifests" / f"{stage}.json"
    path.write_text(store.Manifest.model_validate(json.loads(path.read_text()) | values).text)


def test_what_rounds_and_stages_cost_is_there_by_engine_and_in_money_where_there_are_prices(root: Path) -> None:
    counts = {"requests": 1, "prompt_tokens": 1_000_000, "completion_tokens": 2_000_000}
    plan = json.loads((root / "data" / "round=r1" / "manifests" / "judge.json").read_text())["plan"]
    roster = {"models": {"large": {"engine": {"strategy": "openai"}}}, "engine": {"strategy": "fake"}}
    change(root, "judge", usage={"parent": counts, "large": counts}, plan=plan | roster, gpu_seconds=1800.0)
    change(root, "judge", gpus=["H100"], warnings=["look [here]"])
    asked = ask(
        root, "select engine, prompt_tokens, completion_tokens, requests from costs where stage = 'judge' order by all"
    )
    assert asked == [("fake", 1_000_000, 2_000_000, 1), ("large", 1_000_000, 2_000_000, 1)]
    assert ask(root, "select round, stage, warning from warnings") == [("r1", "judge", "look [here]")]
    assert ask(root, "select gpus, gpu_hours, money from stages where stage = 'judge'") == [(["H100"], 0.5, None)]
    assert ask(root, "select hours > 0, gpu_hours, money from rounds where round = 'r1'") == [(True, 0.5, None)]
    prices = "prices: {gpu_hour: 4, tokens: {openai: {prompt: 1, completion: 10}}}\n"
    (root / "params.yaml").write_text(prices + (root / "params.yaml").read_text())
    assert ask(root, "select engine, money from costs where stage = 'judge' order by all") == [
        ("fake", 0),
        ("large", 21),
    ]
    assert ask(root, "select money from stages where stage = 'judge'") == [(23,)]
    assert ask(root, "select money from rounds where round in ('r1', 'r2') order by round") == [(23,), (0,)]


def test_prices_that_are_wrong_are_named(root: Path) -> None:
    (root / "params.yaml").write_text("prices: {gpu_hours: 4}\n" + (root / "params.yaml").read_text())
    with pytest.raises(ParamsError, match="'gpu_hour'"):
        catalog.query(root, "from rounds")


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("from promts", "there is no table 'promts'; did you mean 'prompts'"),
        ("from metric", "did you mean 'metrics'"),
        ("select promt from prompts", "sql, prompts: there is no column 'promt'; did you mean 'prompt'"),
        ("select p.sorce from prompts p", "there is no column 'sorce'; did you mean 'source'"),
        (
            "select score from responses",
            "responses: there is no column 'score' here; judgments, filtered, evals, audits have",
        ),
        ("selec 1", "syntax error"),
        ("select 'x'::int", "Could not convert"),
        ("insert into prompts (id) values ('x')", "INSERT is not a query"),
    ],
)
def test_an_error_is_one_message(root: Path, sql: str, says: str) -> None:
    with pytest.raises(FlywheelError) as caught:
        catalog.query(root, sql)
    assert says in str(caught.value)


def test_a_params_file_that_is_not_yaml_is_told(root: Path) -> None:
    (root / "params.yaml").write_text("rounds: [")
    with pytest.raises(ParamsError, match="not valid YAML"):
        catalog.connect(root)


# What a query may do


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "secret.csv"
    file.write_text("word\nswordfish\n")
    return file


@pytest.mark.parametrize(
    "sql",
    [
        "copy (select 1) to 'data/round=r1/prompts/part-00000.parquet'",
        "COPY prompts TO 'mine.csv'",
        "/* from */ copy (select 1) to 'mine.csv'",
        "select 1; copy (select 1) to 'mine.csv'",
        "copy (pivot judgments on member using count(*)) to 'mine.csv'",
        "explain analyze copy (select 1) to 'mine.csv'",
        "explain (analyze, format json) copy (select 1) to 'mine.csv'",
        "explain analyze copy (pivot judgments on member) to 'mine.csv'",
        "create table t as pivot judgments on member using count(*)",
        "export database 'mine'",
        "attach 'mine.duckdb'",
        "set threads = 1",
        "reset threads",
        "pragma enable_profiling",
        "install httpfs",
        "load httpfs",
        "call enable_logging(storage = 'file', storage_path = 'mine')",
        "from enable_logging(storage = 'file', storage_path = 'mine')",
        "from enable_profiling(save_location = 'mine.json')",
        "create persistent secret s (type http, bearer_token 'x')",
        "create table mine as from prompts",
        "delete from prompts",
        "prepare p as copy (select 1) to 'mine.csv'",
        "checkpoint",
    ],
)
@pytest.mark.parametrize("allow_files", [False, True])
def test_nothing_but_queries_runs_and_nothing_is_written(
    root: Path, sql: str, allow_files: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    with pytest.raises(FlywheelError, match="^sql: "):
        catalog.query(root, sql, allow_files)
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    "source",
    [
        "read_csv('{}')", "read_text('{}')", "read_blob('{}')", "glob('{}')", "sniff_csv('{}')", "'{}'",
        "read_csv('/etc/passwd')", "glob('/etc/*')", "read_json('http://127.0.0.1:1/x')", "read_csv('../secret.csv')",
    ],
)  # fmt: skip
def test_files_outside_the_project_are_not_read(
    root: Path, secret: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    with pytest.raises(FlywheelError, match="(Permission Error|does not exist|there is no table)"):
        catalog.query(root, f"from {source.format(secret)}")


def test_files_outside_the_project_are_read_when_asked_for(root: Path, secret: Path) -> None:
    sql = f"select word from read_csv('{secret}')"
    assert catalog.query(root, sql, allow_files=True).to_pylist() == [{"word": "swordfish"}]


def test_files_of_the_project_are_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    (root / "notes.csv").write_text("id,note\np1,odd\n")
    sql = "select note from read_csv('notes.csv') join prompts using (id)"
    assert catalog.query(Path(), sql).to_pylist() == [{"note": "odd"}]


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("from prompts", 2),
        ("with p as (select id from prompts) select * from p", 2),
        ("(select id from prompts)", 2),
        ("-- all\n select id from prompts", 2),
        ("select 'déjà'; table prompts", 2),
        ("show tables", len(TABLES) + 6),
        ("describe prompts", len(TABLES["prompts"].schema) + 1),
        ("summarize judgments", len(TABLES["judgments"].schema) + 1),
        ("pivot judgments on member using count(*) group by round", 1),
        ("explain select * from prompts", 1),
        ("explain analyze from prompts", 1),
        ("explain (format json) from prompts", 1),
        ("values (1), (2)", 2),
        ("from range(100_000) order by random()", 100_000),
        ("from duckdb_columns() where table_name = 'metrics'", 5),
    ],
)
def test_queries_of_every_kind_work(root: Path, sql: str, rows: int) -> None:
    assert catalog.query(root, sql).num_rows == rows


def test_a_table_that_dvc_links_from_its_cache_is_read(root: Path, tmp_path: Path) -> None:
    part = root / "data" / "round=r1" / "prompts" / "part-00000.parquet"
    (tmp_path / "cache").mkdir()
    part.rename(tmp_path / "cache" / "b1946ac9")
    part.symlink_to(tmp_path / "cache" / "b1946ac9")
    assert ask(root, "select id from prompts where round = 'r1'") == [("p1",)]


def test_a_variable_of_the_program_is_no_table(root: Path) -> None:
    with pytest.raises(UnknownName, match="'manifests'"):
        catalog.query(root, "from manifests")


# What is printed and written


def test_nothing_is_cut_where_no_person_reads(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sql = "select id, prompt, 1 / 3 as third, null as none, repeat('x', 100) as long from prompts order by id"
    catalog.show(root, sql)
    shown = capsys.readouterr().out
    assert "0.333333" in shown
    assert "x" * 100 in shown and "2 rows" in shown
    assert len({len(line) for line in shown.splitlines()[:-1]}) == 1, "a row is a line"
    catalog.show(root, sql, "csv")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [r["id"] for r in rows] == ["p0", "p1"]
    assert json.loads(rows[0]["prompt"]) == CHAT
    assert (rows[0]["none"], rows[0]["long"]) == ("", "x" * 100)
    catalog.show(root, sql, "json")
    assert json.loads(capsys.readouterr().out)[1]["prompt"] == CHAT
    catalog.show(root, "select strategies from rounds where round = 'r1'", "json")
    assert json.loads(capsys.readouterr().out)[0]["strategies"]["prompts"] == "pool"


@pytest.mark.parametrize("format", ["table", "line", "csv", "json"])
def test_a_statement_without_rows_prints_none(
    root: Path, format: catalog.Format, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog.show(root, "", format)
    catalog.show(root, "from evals", format)
    assert "round" in capsys.readouterr().out or format in ("line", "json")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal of 80 by 24, and what is printed on it."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system=None, width=80, height=24)
    monkeypatch.setattr(_printing, "_console", lambda: console)
    monkeypatch.setattr(click, "echo_via_pager", lambda text: out.write(f"paged\n{text}"))
    return out


def test_many_rows_are_counted_and_not_all_shown_on_a_terminal(root: Path, terminal: io.StringIO) -> None:
    catalog.show(root, "from range(1205)")
    shown = terminal.getvalue()
    assert shown.startswith("paged\n")
    assert "1205 rows, the last 205 not shown" in shown
    assert " 999 " in shown and " 1000 " not in shown


def test_all_rows_are_printed_into_a_pipe(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    catalog.show(root, "from range(1205)")
    shown = capsys.readouterr().out
    assert " 1204 " in shown and shown.endswith("1205 rows\n")


def test_rows_that_are_too_wide_for_the_terminal_are_a_line_a_column(root: Path, terminal: io.StringIO) -> None:
    catalog.show(root, "select id, repeat('x', 200) as long, prompt from prompts order by id limit 1")
    shown = terminal.getvalue().splitlines()
    assert shown[:2] == ["row 1", "id      p0"]
    assert "".join(line[8:] for line in shown[2:5]) == "x" * 200
    assert shown[5:] == ["prompt  user: What's 1 + 1?", "1 row"]
    assert max(map(len, shown)) <= 80


def test_a_table_wraps_its_texts_before_it_gives_up(root: Path, terminal: io.StringIO) -> None:
    catalog.show(root, "describe responses")
    shown = terminal.getvalue()
    assert "┃ holds" in shown and max(map(len, shown.splitlines())) <= 80


def test_a_line_a_column_can_be_asked_for(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    catalog.show(root, "select round, id from prompts order by all", "line")
    assert capsys.readouterr().out == "row 1\nround  r0\nid     p0\nrow 2\nround  r1\nid     p1\n2 rows\n"


def test_every_table_and_column_says_what_it_holds(root: Path) -> None:
    assert {row["name"]: row["holds"] for row in catalog.query(root, "show tables;").to_pylist()} == {
        name: doc for name, (doc, _) in _summaries.DOCS.items()
    }
    for name in _summaries.DOCS:
        rows = catalog.query(root, f"DESCRIBE {name}").to_pylist()
        assert [row["column_name"] for row in rows] == list(_summaries.DOCS[name][1])
        assert all(row["holds"] for row in rows), name


def test_what_a_column_holds_is_no_part_of_the_plan() -> None:
    table = TABLES["prompts"]
    assert table_digest(replace(table, docs={})) == table_digest(table)


def test_rows_are_printed_as_parquet(root: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    catalog.show(root, "select id, prompt from prompts order by id", "parquet")
    sys.stdout.flush()
    rows = pq.read_table(pa.BufferReader(capfdbinary.readouterr().out)).to_pylist()
    assert rows[1] == {"id": "p1", "prompt": CHAT}


def test_a_folder_that_is_no_project_has_no_views(tmp_path: Path) -> None:
    for act in (catalog.query, catalog.show):
        with pytest.raises(ParamsError, match=rf"there is no params\.yaml in {tmp_path}"):
            act(tmp_path, "show tables")
    with pytest.raises(ParamsError, match="there is no params"):
        catalog.write_views(tmp_path, tmp_path / "views.duckdb")
    assert list(tmp_path.iterdir()) == []


def test_markup_in_a_cell_is_text(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    catalog.show(root, "select '[red]x[/]' as \"[bold]\"")
    shown = capsys.readouterr().out
    assert "[red]x[/]" in shown
    assert "[bold]" in shown


def test_rows_are_written_to_parquet(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.parquet"
    catalog.show(root, "select id, prompt from prompts order by id", out=out)
    assert pq.read_table(out).to_pylist()[1] == {"id": "p1", "prompt": CHAT}
    assert "2 rows" in capsys.readouterr().out
    with pytest.raises(FlywheelError, match="cannot be written"):
        catalog.show(root, "select 1", out=tmp_path / "absent" / "out.parquet")
    with pytest.raises(FlywheelError, match="--format csv > FILE"):
        catalog.show(root, "select 1", "csv", out=out)


def test_another_client_reads_the_views_from_anywhere(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "views.duckdb"
    monkeypatch.chdir(root)
    catalog.write_views(Path(), file)
    catalog.write_views(Path(), file)
    monkeypatch.chdir(tmp_path)
    with duckdb.connect(file, read_only=True) as con:
        assert con.execute("select round, id from prompts order by all").fetchall() == [("r0", "p0"), ("r1", "p1")]
        assert con.execute("select count(*) from rounds").fetchall() == [(4,)]
        kinds = dict(con.execute("select table_name, table_type from information_schema.tables").fetchall())
    assert {kinds[n] for n in TABLES} == {"VIEW"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["it's=here", "views.duckdb"]
    assert file.read_bytes()[12] == 64, "the version of the format that DuckDB 1.0 writes"


def test_views_that_cannot_be_written_leave_the_old_file(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "views.duckdb"
    catalog.write_views(root, file)
    old = file.read_bytes()
    (root / "data" / "round=r1" / "prompts" / "part-00000.parquet").unlink()
    with pytest.raises(StoreError):
        catalog.write_views(root, file)
    assert file.read_bytes() == old
    assert sorted(p.name for p in tmp_path.iterdir()) == ["it's=here", "views.duckdb"]
    with pytest.raises(FlywheelError, match="cannot be written"):
        (root / "data").rename(root / "gone")
        catalog.write_views(root, tmp_path / "absent" / "views.duckdb")


def test_no_file_of_another_kind_is_replaced(root: Path, tmp_path: Path) -> None:
    mine = tmp_path / "params.yaml"
    beside = tmp_path / "views.duckdb.new"
    for file in (mine, beside):
        file.write_text("mine")
    for act in (
        lambda file: catalog.write_views(root, file),
        lambda file: catalog.show(root, "select 1", out=file),
    ):
        with pytest.raises(FlywheelError, match=r"params\.yaml is another kind of file and stays as it is"):
            act(mine)
        with pytest.raises(FlywheelError, match="is a folder"):
            act(Path())
    catalog.write_views(root, tmp_path / "views.duckdb")
    assert [f.read_text() for f in (mine, beside)] == ["mine", "mine"]


@pytest.mark.parametrize("place", ["data/round=r1/prompts", "data/round=r1", "data/plan", ".dvc/cache/files", ".git"])
def test_no_file_of_the_project_is_replaced(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (root / place).mkdir(parents=True, exist_ok=True)
    (tmp_path / "link").symlink_to(root / place)
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    monkeypatch.chdir(root / place)
    for name in ("part-00000.parquet", "new.parquet"):
        for file in (root / place / name, tmp_path / "link" / name, Path(name), root / "data" / ".." / place / name):
            with pytest.raises(FlywheelError, match="own files"):
                catalog.show(root, "select 1", out=file)
            with pytest.raises(FlywheelError, match="own files"):
                catalog.write_views(root, file)
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before
    catalog.show(root, "select 1", out=root / "data" / "mine.parquet")


def test_columns_of_equal_name_are_all_there(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sql = "select p.id, r.id, 5 as id_1 from prompts p join responses r on p.id = r.prompt_id order by all limit 1"
    catalog.show(root, sql, "json")
    assert json.loads(capsys.readouterr().out) == [{"id": "p1", "id_1": "a1", "id_1_1": 5}]
    catalog.show(root, sql, "csv")
    assert capsys.readouterr().out == "id,id_1,id_1_1\np1,a1,5\n"
    catalog.show(root, sql)
    assert "a1" in capsys.readouterr().out
    catalog.show(root, sql, out=tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").num_columns == 3


# Tracing


def test_a_training_row_is_walked_back_to_the_first_prompt(root: Path) -> None:
    steps = trace(catalog.connect(root), "t1")
    assert [(t, r.get("id") or r["round"]) for t, r in steps] == [
        ("training", "t1"),
        ("responses", "a1"),
        ("judgments", "j1"),
        ("filtered", "a1"),
        ("prompts", "p1"),
        ("prompts", "p0"),
        ("rounds", "r0"),
    ]


def steps(root: Path, id: str, round: str | None = None) -> list[tuple[str, str, str]]:
    return [(r["round"], t, r["id"]) for t, r in trace(catalog.connect(root), id, round) if t != "rounds"]


def test_a_preference_is_walked_back_to_both_its_answers(root: Path) -> None:
    row = {"prompt_id": "p1", "chosen_id": "a1", "rejected_id": "a2", "source": "responses", "prompt": CHAT}
    row |= {"chosen": CHAT, "rejected": [], "weight": 1.0, "smoothing": 0.0}
    write(root, "r1", "collect", {"preferences": [{"id": "q1", **row}]})
    assert [step[1:] for step in steps(root, "q1")] == [
        ("preferences", "q1"),
        ("responses", "a1"),
        ("responses", "a2"),
        ("judgments", "j1"),
        ("filtered", "a1"),
        ("prompts", "p1"),
        ("prompts", "p0"),
    ]


def test_a_trace_stays_in_the_row_s_own_rounds(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Equal texts have equal ids: r2 asked the prompt of r1 again, and replays a row of r1's."""
    write(root, "r2", "prompts", {"prompts": [PROMPT | {"source": "seed", "parents": []}]})
    write(root, "r2", "generate", {"responses": [{"id": "a3", "sample": 0, "prompt_id": "p1", "response": "2"}]})
    rows = [{"id": "t2", "prompt_id": "p1", "response_id": "a3", "source": "responses"}]
    rows += [{"id": "t1", "prompt_id": "p1", "response_id": "a1", "source": "replay"}]
    chats = {"prompt": CHAT, "completion": CHAT, "weight": 1.0}
    write(root, "r2", "collect", {"training": [r | chats for r in rows]})

    assert steps(root, "t2") == [("r2", "training", "t2"), ("r2", "responses", "a3"), ("r2", "prompts", "p1")]
    replayed = [("r2", "training", "t1"), ("r1", "training", "t1"), ("r1", "responses", "a1")]
    assert steps(root, "t1", "r2")[:3] == replayed
    assert ("r2", "prompts", "p1") not in steps(root, "t1", "r2")
    with pytest.raises(FlywheelError, match=r"r1 and r2 .*--round"):
        steps(root, "p1")
    with pytest.raises(FlywheelError, match="r2 has one"):
        steps(root, "a3", "r1")
    with pytest.raises(UnknownName, match="'r7'"):
        steps(root, "t2", "r7")
    show(root, "t2")
    assert capsys.readouterr().out.startswith("training r2 t2  source responses")


def test_a_row_replayed_from_an_anchor_is_found_there(root: Path) -> None:
    """r3's parent is r0; the row that it replays is of its anchor, r1."""
    text = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(text + "  r3: {parent: r0, base: r0, anchor: r1}\n")
    row = {"id": "t1", "prompt_id": "p1", "source": "replay", "prompt": CHAT, "completion": CHAT, "weight": 1.0}
    write(root, "r3", "collect", {"training": [row]})
    assert steps(root, "t1", "r3")[:2] == [("r3", "training", "t1"), ("r1", "training", "t1")]


def test_an_id_that_nothing_has_is_told(root: Path) -> None:
    with pytest.raises(FlywheelError, match="no table has a row with the id 'nope'"):
        trace(catalog.connect(root), "nope")


def test_unknown_tables_are_unknown_names(root: Path) -> None:
    with pytest.raises(UnknownName):
        catalog.query(root, "from zzzz")


# What is read, and what is found


def test_what_another_round_holds_does_not_matter_to_a_query_that_names_one(root: Path) -> None:
    for path in (root / "data" / "round=r0" / "prompts").iterdir():
        path.write_bytes(b"torn")
    (root / "data" / "round=r0" / "manifests" / "base.json").write_text("{")
    for sql in (
        "select id from prompts where round = 'r1'",
        "with p as (from prompts) select id from p where round in ('r1', 'r7')",
        "select p.id from prompts p join responses a on a.prompt_id = p.id and a.round = p.round where a.round = 'r1' limit 1",
        "select id from query_table('prompts') where round = 'r' || '1'",
    ):
        assert ask(root, sql) == [("p1",)], sql
    for sql in ("from prompts", "from prompts where round <> 'r1' or error is null", "from (pivot prompts on source)"):
        with pytest.raises(StoreError, match="round=r0"):
            ask(root, sql)


@pytest.mark.parametrize(
    "where",
    ["true", "round = 'r1'", "round > 'r0'", "round like 'r%'", "score is null", "round in (select round from rounds)", "round is not null and id <> ''"],
)  # fmt: skip
def test_a_query_has_the_rows_that_it_has_over_all_files(root: Path, where: str) -> None:
    for table in ("prompts", "judgments", "filtered", "training"):
        condition = where.replace("score", "id") if "score" not in TABLES[table].schema.names else where
        sql = f"select round, id from {table} where {condition} order by all"
        assert ask(root, sql) == catalog.connect(root).sql(sql).fetchall()


def test_a_part_is_read_for_its_digest_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    time.sleep(0.15)  # a file that was written a moment ago is not remembered
    read: list[Path] = []
    sha256 = store.sha256
    monkeypatch.setattr(store, "sha256", lambda path: read.append(path) or sha256(path))
    part = root / "data" / "round=r1" / "judgments" / "part-00000.parquet"
    for _ in range(3):
        ask(root, "from judgments")
    assert read == [part]
    content = bytearray(part.read_bytes())
    content[len(content) // 8] ^= 1
    with part.open("r+b") as file:  # the same inode and size
        file.write(content)
    with pytest.raises(StoreError, match="is not what was written"):
        ask(root, "from judgments")
    (root / remembered.FILE).write_bytes(b"no database")
    with pytest.raises(StoreError, match="is not what was written"):
        ask(root, "from judgments")
    (root / remembered.FILE).unlink(missing_ok=True)
    assert ask(root, "select count(*) from prompts") == [(2,)]


def test_a_lost_manifest_is_named(root: Path) -> None:
    place = root / "data" / "round=r1"
    (place / "metrics").mkdir()
    for path in (place / "manifests").iterdir():
        (place / "metrics" / path.name).write_text("{}")
    (place / "manifests" / "judge.json").unlink()
    for sql in ("from judgments", "from metrics"):
        with pytest.raises(StoreError, match=r"manifests/judge\.json is missing.*dvc pull"):
            ask(root, sql)
    assert len(ask(root, "from responses where round = 'r1'")) == 2


def mutate(root: Path, rng: random.Random) -> Path:
    """Does some harm to a part or manifest."""
    files = sorted(p for kind in ("manifests/*.json", "*/*.parquet") for p in root.glob(f"data/round=*/{kind}"))
    path, data = rng.choice(files), b""
    data, kind = path.read_bytes(), rng.choice(("bit", "cut", "longer", "empty", "deleted", "swapped", "text"))
    at = rng.randrange(len(data))
    other = rng.choice([p for p in files if p.suffix == path.suffix and p.read_bytes() != data])
    edited = data.replace(b'"r1"', b'"r9"').replace(b'"seed": 7', b'"seed": 8')
    new = {
        "bit": data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :],
        "cut": data[:at],
        "longer": data + b"0",
        "empty": b"",
        "swapped": other.read_bytes(),
        "text": edited if edited != data else b"x" + data[1:],
    }
    path.unlink()
    if kind != "deleted":
        path.write_bytes(new[kind])
    return path


@pytest.mark.torture(
    "a part or manifest with a flipped bit, cut, swapped, edited or deleted",
    "`sql`, `trace` and `verify` name the file and the fix",
)
def test_a_mutation_of_a_stored_file_is_found(made: Path, tmp_path: Path, tries) -> None:
    for attempt in tries(706):
        root = Path(shutil.copytree(made, tmp_path / f"p{attempt}"))
        for path in list(root.glob("data/round=*/manifests/*.json")):
            (path.parents[1] / "metrics").mkdir(exist_ok=True)
            (path.parents[1] / "metrics" / path.name).write_text("{}")
        path = mutate(root, random.Random(attempt))
        message = re.escape(path.name) + ".*dvc (checkout|pull)"
        with pytest.raises(StoreError, match=message):
            catalog.connect(root)
        with pytest.raises(StoreError, match=message):
            catalog.query(root, "from stages" if path.suffix == ".json" else f"from {path.parent.name}")
        shown = io.StringIO()
        assert verify.show(root, console=Console(file=shown, width=400)) == 1
        assert path.relative_to(root).as_posix() in shown.getvalue()
        assert re.search(r"`dvc (checkout --force|pull)`", shown.getvalue())
        shutil.rmtree(root)


FULL = """
import resource, sys
from pathlib import Path
from tasks.views import catalog
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
catalog.write_views(Path(), Path(sys.argv[1]))
"""


@pytest.mark.torture("a full disk while `sql --write-views` writes", "one message; the old file stays")
def test_a_full_disk_leaves_the_old_views(root: Path, tmp_path: Path, tries) -> None:
    file = tmp_path / "views.duckdb"
    catalog.write_views(root, file)
    old = file.read_bytes()
    for attempt in tries(20):
        limit = str(attempt * len(old) // 20)
        command = [sys.executable, "-c", FULL, str(file), limit]
        result = subprocess.run(
            command, cwd=root, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(HERE)}
        )
        last = result.stderr.strip().splitlines()[-1] if result.stderr else ""
        if result.returncode:
            assert "FlywheelError" in last and "views.duckdb cannot be written, and what was there stays" in last, last
            assert file.read_bytes() == old
    assert sorted(p.name for p in tmp_path.iterdir()) == ["it's=here", "views.duckdb"]


HOSTILE = (
    "select * from read_csv('/etc/passwd')", "from '/etc/passwd'", "from read_text('/proc/self/environ')", "from read_blob('/etc/shadow')",
    "from glob('/**')", "from read_parquet('/etc/*')", "from parquet_metadata('/etc/passwd')", "from read_json_auto('file:///etc/passwd')",
    "from read_csv('data/../../secret.csv')", "from read_csv('link.csv')", "from read_text('.git/config')", "from read_text('.env')",
    "from read_text('data/../.git/config')", "from read_blob('.dvc/config.local')", "from read_text('.flywheel/recorded.json')",
    "from glob('*')", "from glob('.git/*')", "from read_csv('linked/secret.csv')", "from 'https://127.0.0.1:1/x.parquet'", "from read_csv('s3://b/x')",
    "from read_text('http://127.0.0.1:1/')", "from sqlite_scan('/x.db', 't')", "from postgres_scan('host=127.0.0.1', 'public', 't')",
    "select * from query('from read_csv(''/etc/passwd'')')", "select * from query_table('/etc/passwd')", "from read_text(['params.yaml', '/etc/passwd'])",
    "select (select content from read_text('/etc/passwd'))", "with x as materialized (from read_text('/etc/passwd')) select 1 from x",
    "explain analyze from read_text('/etc/passwd')", "summarize '/etc/passwd'", "describe '/etc/passwd'", "pivot read_csv('/etc/passwd') on 1",
    "install httpfs", "load httpfs", "force install spatial", "update extensions", "attach '/tmp/x.db' as x", "detach memory", "use memory",
    "copy prompts to '/tmp/x.csv'", "copy (select 1) to '/dev/stdout'", "export database '/tmp/x'", "import database '/tmp/x'",
    "create table x as select 1", "create macro f() as 1", "create or replace view prompts as select 1", "create function f(x) as x", "drop view prompts",
    "create temp table x as from prompts", "alter table rounds add x int", "truncate rounds", "update rounds set round = 'x'", "delete from rounds",
    "insert into rounds (round) values ('x')", "merge into rounds using rounds r on true when matched then delete", "vacuum", "checkpoint", "analyze",
    "set enable_external_access = true", "set lock_configuration = false", "set global allowed_directories = ['/']", "reset all", "set variable x = 1",
    "pragma database_list", "pragma enable_profiling", "call pragma_version()", "begin", "begin; select 1; commit", "prepare p as select 1", "execute p",
    "select 1; set threads = 1", "select 1; copy (select 1) to 'x'", "select 1; attach ':memory:' as y", "select getenv('HOME')",
    "from duckdb_secrets() where error(secret_string) is null and 1/0", "create secret (type s3)", "create type t as enum ('a')", "comment on view prompts is 'x'",
    "from enable_logging()", "call disable_logging()", "from force_checkpoint()", "create sequence s", "explain analyze insert into rounds (round) values ('x')",
)  # fmt: skip
"""Statements that would read, write, fetch or change something; `link.csv` leads out of the project."""


@pytest.mark.torture(
    "SQL that reads other files, the network, or changes something", "refused in one message; nothing read or written"
)
def test_hostile_sql_is_refused(
    root: Path, secret: Path, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    monkeypatch.chdir(root)
    (root / "link.csv").symlink_to(secret)
    (root / "linked").symlink_to(secret.parent)
    for name in (".git/config", ".env", ".dvc/config.local", ".flywheel/recorded.json"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("swordfish")
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file() and ".flywheel" not in p.parts}
    for sql in HOSTILE:
        with pytest.raises(FlywheelError) as caught:
            catalog.query(root, sql)
        assert "swordfish" not in str(caught.value) and "root:" not in str(caught.value), sql
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file() and ".flywheel" not in p.parts} == before
    record_property("tries", len(HOSTILE))


def test_a_query_that_needs_more_memory_than_it_may_have_goes_to_disk(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "MEMORY", "100MB")
    left = root / catalog.SPILL / "sql-999999999-killed"
    left.mkdir(parents=True)
    sql = "select count(*), max(n) from (select md5(range::varchar) as id, max(range) as n from range(1_000_000) group by id order by id)"
    assert ask(root, sql) == [(1_000_000, 999_999)]
    assert not list((root / catalog.SPILL).iterdir()), "nothing is left, of a killed process neither"
    settings = "select current_setting('memory_limit'), current_setting('temp_directory')"
    [(limit, place)] = ask(root, settings)
    assert limit == "95.3 MiB" and str(catalog.SPILL) in place


MEMORY_OF_DIGESTS = """
import sys
from pathlib import Path
from tasks.core import remembered, store
root = Path(sys.argv[1])
parts = [(store.round_folder(root, "r1") / o, output) for m in store.manifests(root, "r1").values() for o, output in m.outputs.items()]
for _ in range(40):
    print(len(list(remembered.damages(root, parts))))
    if sys.argv[2] == "deletes":
        (root / remembered.FILE).unlink(missing_ok=True)
"""


@pytest.mark.torture(
    "several processes check the same files, and the memory of digests is deleted meanwhile", "each finds what is there"
)
def test_processes_share_the_memory_of_digests(root: Path, tries) -> None:
    time.sleep(0.15)
    part = root / "data" / "round=r1" / "judgments" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    for _ in tries(20):
        kinds = ["reads", "reads", "deletes", "reads"]
        command = [sys.executable, "-c", MEMORY_OF_DIGESTS, str(root)]
        env = os.environ | {"PYTHONPATH": str(HERE)}
        processes = [subprocess.Popen([*command, kind], stdout=subprocess.PIPE, text=True, env=env) for kind in kinds]
        assert [process.communicate()[0].split() for process in processes] == [["1"] * 40] * len(kinds)
        assert [process.returncode for process in processes] == [0] * len(kinds)
