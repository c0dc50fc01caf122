"""The lineage of rows of a real project, both ways."""

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tasks.core import store
from tasks.core.errors import FlywheelError, UnknownName
from tasks.views import catalog
from tasks.views._lineage import IDENTIFIED, MIN_PREFIX, Lineage, Step, walk
from tasks.views.trace import Trace, learnt_tables, show


@pytest.fixture(scope="module")
def con(mixed: Path) -> duckdb.DuckDBPyConnection:
    return catalog.connect(mixed)


def one(con: duckdb.DuckDBPyConnection, sql: str) -> str:
    return con.sql(sql).fetchall()[0][0]


def tables(steps: Iterable[Step]) -> list[str]:
    """Table and round of each row, each pair once."""
    return list(dict.fromkeys(f"{s.key.table} {s.key.round}" for s in steps))


def beyond(step: Step, table: str) -> list[Step]:
    return [s for s in step.beyond or [] if s.key.table == table]


def printed(root: Path, id: str, width: int | None, **how: Any) -> str:
    """What a terminal of that width shows; None is a pipe."""
    console = Console(width=width or 1_000_000, force_terminal=width is not None, color_system=None, record=True)
    with console.capture() as capture:
        show(root, id, console=console, **how)
    return capture.get()


def test_a_critique_s_training_row_shows_the_critique_the_answer_and_the_refinements(
    con: duckdb.DuckDBPyConnection,
) -> None:
    id, critique, response = con.sql("""
        select t.id, c.id, c.response_id from training t join critiques c on c.id = t.response_id
        where t.round = 'r1' and t.source = 'critiques' and c.refinements > 0 order by t.id""").fetchall()[0]
    [row] = Trace(con, id, "r1").made_from
    [written] = row.beyond or []
    assert (written.key.table, written.key.id, written.row["critique"]) == (
        "critiques",
        critique,
        row.row["completion"][0]["content"],
    )
    assert len(beyond(written, "refinements")) == written.row["refinements"]
    assert {s.row["critique_id"] for s in beyond(written, "refinements")} == {critique}
    [criticised] = beyond(written, "responses")
    assert criticised.key.id == response
    assert [s.row["member"] for s in beyond(criticised, "judgments")] == ["self_consistency", "verifier"]
    assert [s.row["kept"] for s in beyond(criticised, "filtered")] == [False]
    assert [s.key.id for s in beyond(criticised, "prompts")] == [row.row["prompt_id"]]


def test_a_refinement_s_training_row_leads_to_the_answer_that_was_criticised(con: duckdb.DuckDBPyConnection) -> None:
    id = one(con, "select id from training where round = 'r1' and source = 'refinements' order by id")
    steps = list(walk(Trace(con, id, "r1").made_from))
    assert tables(steps)[:4] == ["training r1", "refinements r1", "critiques r1", "responses r1"]
    refinement, critique = steps[1], steps[2]
    assert refinement.row["critique_id"] == critique.key.id
    assert refinement.row["response_id"] == critique.row["response_id"]


def test_a_preference_leads_to_its_pair_and_both_answers(con: duckdb.DuckDBPyConnection) -> None:
    id = one(con, "select id from preferences where round = 'r2' and source = 'responses' order by id")
    [row] = Trace(con, id).made_from
    [pair] = beyond(row, "pairs")
    answers = {s.link: s.key.id for s in beyond(pair, "responses")}
    assert answers == {"chosen_id": row.row["chosen_id"], "rejected_id": row.row["rejected_id"]}


def test_a_row_that_is_replayed_twice_is_found_in_all_three_rounds(con: duckdb.DuckDBPyConnection, mixed: Path) -> None:
    id = one(con, "select id from training group by id having count(*) = 3 order by id")
    down = list(walk(Trace(con, id).went_into))
    assert [(s.key.table, s.key.round, s.row["source"] == "replay") for s in down] == [
        ("training", "r1", False),
        ("training", "r2", True),
        ("training", "r3", True),
    ]
    up = list(walk(Trace(con, id, "r3").made_from))
    assert [s.key.round for s in up if s.key.table == "training"] == ["r3", "r2", "r1"]
    assert up[3].key.table in ("responses", "refinements", "critiques")


def test_the_models_that_a_row_went_into_and_those_that_descend_from_them(
    con: duckdb.DuckDBPyConnection, mixed: Path
) -> None:
    id = one(con, "select id from training group by id having count(*) = 3 order by id")
    models = dict(con.sql("select round, model from rounds").fetchall())
    trained = Trace(con, id).trained(mixed)
    assert [(t.round, t.strategy, t.learnt, t.descendants) for t in trained] == [
        ("r1", "sft_dpo", True, ["r2"]),
        ("r2", "sft_dpo", True, []),
        ("r3", None, False, []),
    ]
    assert [t.model for t in trained] == [models["r1"], models["r2"], None]
    assert learnt_tables("sft") == {"training"}
    assert learnt_tables("dpo") == {"preferences"}


def test_a_dropped_answer_went_into_nothing(con: duckdb.DuckDBPyConnection, mixed: Path) -> None:
    id = one(
        con,
        """select id from filtered where round = 'r1' and reason = 'rank' and id not in (select rejected_id from pairs)
           and id not in (select response_id from critiques) order by id""",
    )
    found = Trace(con, id)
    assert found.went_into[0].beyond == []
    assert found.trained(mixed) == []
    assert "went into\n    └── nothing that is stored" in printed(mixed, id, None)


def test_what_was_written_after_a_prompt_is_not_followed(con: duckdb.DuckDBPyConnection) -> None:
    """Else the lineage of one example would be most of the later rounds."""
    id = one(con, "select unnest(parents) from prompts where round = 'r3' intersect select id from prompts order by 1")
    later = [s for s in walk(Trace(con, id).went_into) if s.link == "parents"]
    assert later
    assert not [s for s in later if s.beyond]
    assert all(id in s.row["parents"] for s in later)


def test_every_row_of_every_table_is_traced_to_the_weights_that_wrote_it(con: duckdb.DuckDBPyConnection) -> None:
    for table in ("prompts", "responses", "critiques", "refinements", "pairs", "training", "preferences"):
        for round, id in con.sql(f"select round, id from {table} order by all limit 3").fetchall():
            found = Trace(con, id, round)
            assert found.subject[:2] == (table, round)
            assert found.writers(), (table, round, id)


# Ids


@cache
def ids(root: Path) -> list[str]:
    con = catalog.connect(root)
    return sorted({id for t in IDENTIFIED for (id,) in con.sql(f"select id from {t}").fetchall()})


@given(st.data())
def test_a_unique_prefix_finds_what_the_id_finds(
    mixed: Path, con: duckdb.DuckDBPyConnection, data: st.DataObject
) -> None:
    id = data.draw(st.sampled_from(ids(mixed)))
    prefix = id[: data.draw(st.integers(1, len(id)))]
    lineage = Lineage(con)
    matches = [other for other in ids(mixed) if other.startswith(prefix)]
    if len(prefix) >= MIN_PREFIX and len(matches) == 1:
        assert lineage.whole_id(prefix) == id
    else:
        with pytest.raises(FlywheelError, match="too short" if len(prefix) < MIN_PREFIX else "give more digits"):
            lineage.whole_id(prefix)


def test_what_an_ambiguous_prefix_may_mean_is_listed(copied: Path) -> None:
    rows = store.read(copied, "r1", "critiques")
    ids = ["abcd000000000001", "abcd000000000002"]
    con = catalog.connect(copied)
    view = con.sql("select * from critiques where round = 'r1' limit 2").to_arrow_table()
    con.execute("drop view critiques")
    con.register("twins", view.set_column(1, "id", [ids]))
    con.execute("create view critiques as from twins")
    assert len(rows) > 1
    listed = r"2 ids begin with 'abcd': abcd000000000001 \(critiques of r1\), abcd000000000002 \(critiques of r1\)"
    with pytest.raises(FlywheelError, match=listed):
        Lineage(con).find("abcd")


def test_a_mistyped_id_is_answered_with_the_nearest(con: duckdb.DuckDBPyConnection) -> None:
    id = one(con, "select id from training where round = 'r1' and source = 'responses' order by id")
    wrong = id[:-1] + ("0" if id[-1] != "0" else "1")
    with pytest.raises(FlywheelError, match=f"no table has a row with the id '{wrong}'; near it: {id}"):
        Trace(con, wrong)
    with pytest.raises(UnknownName, match="no round or base 'r7'"):
        Trace(con, id, "r7")
    with pytest.raises(
        FlywheelError, match=f"r3 has no row with the id {one(con, 'select id from prompts where round = $$r1$$')}"
    ):
        Trace(con, one(con, "select id from prompts where round = 'r1'"), "r3")


def test_an_empty_project_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("bases: {}\nrounds: {}\n")
    with pytest.raises(FlywheelError, match=r"no stage has stored a row yet; `flywheel run r1`"):
        show(tmp_path, "abcd")


# What is printed


def test_nothing_is_cut_in_a_pipe_and_texts_are_on_a_terminal(con: duckdb.DuckDBPyConnection, mixed: Path) -> None:
    id = one(con, "select id from training where round = 'r2' and source = 'critiques' order by id")
    whole, narrow, full = printed(mixed, id, None), printed(mixed, id, 80), printed(mixed, id, 80, full=True)
    critique = store.read(mixed, "r2", "training").filter(id=id)["completion"][0][0]["content"]
    for line in critique.splitlines():
        assert line in whole
    assert "…" not in whole
    assert "--full" not in whole
    assert "…" in narrow
    assert "Cut to the screen: --full shows all rows and texts, --json every column." in narrow
    assert max(map(len, narrow.splitlines())) <= 80
    assert "…" not in full
    assert len(full.splitlines()) > len(narrow.splitlines())


def test_json_has_every_column_of_every_row(
    con: duckdb.DuckDBPyConnection, mixed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    id = one(con, "select id from training group by id having count(*) = 3 order by id")
    show(mixed, id[:8], as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert (document["table"], document["round"], document["id"]) == ("training", "r1", id)
    assert set(document["row"]) == {"round", *store.TABLES["training"].schema.names}
    assert [(r["link"], r["of"], r["round"], r["id"]) for r in document["went_into"]] == [
        ("id", id, "r2", id),
        ("id", id, "r3", id),
    ]
    assert [t["round"] for t in document["trained"]] == ["r1", "r2", "r3"]
    assert [w["round"] for w in document["written_by"]] == ["r0"]
    made = {(r["table"], r["id"]) for r in document["made_from"]}
    assert ("prompts", document["row"]["prompt_id"]) in made
