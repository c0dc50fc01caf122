"""What differs between two rounds: differences are planted in small projects, and counted."""

import io
import json
import math
import re
import shutil
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import projects
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from tasks.core import store
from tasks.core.errors import FlywheelError, StoreError, UnknownName
from tasks.core.frames import frame
from tasks.core.plan import Plan
from tasks.core.tables import TABLES
from tasks.project import plan
from tasks.project.champion import model_digest
from tasks.project.execute import run_stage
from tasks.project.params import load_params, stages_of
from tasks.views import diff
from tasks.views._diff_settings import SettingsDiff
from tasks.views._diff_sides import Side, open_sides
from tasks.views._diff_tables import RULES, Reason, open_database

SCRIPT = "<script>alert(1)</script>"
STAGES = {
    "prompts": "prompts", "responses": "generate", "judgments": "judge", "filtered": "filter", "pairs": "pair",
    "training": "collect", "evals": "evaluate", "measures": "evaluate",
}  # fmt: skip


def write(root, name, plans=None, **tables):
    """Writes tables of a round as its stages would, with the plans of its stages."""
    for stage in dict.fromkeys(STAGES[table] for table in tables):
        with store.writing(root, name, stage) as draft:
            for table in (t for t in tables if STAGES[t] == stage):
                draft.table(TABLES[table], frame(TABLES[table], tables[table]))
            own = (plans or {}).get((name, stage)) or Plan(round=name, stage=stage)
            blank = {key: {} for key in ("inputs", "versions", "metrics", "tokens", "seconds")}
            manifest = store.Manifest(
                round=name, stage=stage, plan=own, outputs=draft.outputs, started="", finished="", **blank
            )
            draft.commit(manifest)


def chat(role, text):
    return [{"role": role, "content": text}]


def prompts(model, names, **errors):
    return [
        {"id": n, "problem": f"{n} {SCRIPT}", "prompt": chat("user", n), "model": model, "error": errors.get(n)}
        for n in names
    ]


def responses(model, answers):
    """Answers by prompt, one a sample. An answer's text is `so ANSWER`."""
    return [
        {"id": f"{model}/{prompt}/{i}", "prompt_id": prompt, "member": "sample", "sample": i, "answer": answer,
         "response": f"so {answer}", "model": model, "seed": hash(model) % 100}
        for prompt, own in answers.items() for i, answer in enumerate(own)
    ]  # fmt: skip


def judgments(model, verdicts):
    """Verdicts by (judge, prompt, sample)."""
    return [
        {"id": f"{model}/{judge}/{prompt}/{i}", "response_id": f"{model}/{prompt}/{i}", "prompt_id": prompt, "member": judge,
         "reward": False, "score": float(verdict == "pass"), "verdict": verdict}
        for (judge, prompt, i), verdict in verdicts.items()
    ]  # fmt: skip


def filtered(model, reasons):
    """Reasons by (prompt, sample); None is kept."""
    return [
        {"id": f"{model}/{prompt}/{i}", "prompt_id": prompt, "kept": reason is None, "rank": None if reason else 1,
         "reason": reason, "score": 0.5}
        for (prompt, i), reason in reasons.items()
    ]  # fmt: skip


def pair(prompt, chosen, rejected, margin=1.0):
    return {
        "id": f"{prompt}{chosen}{rejected}", "member": "best_worst", "prompt_id": prompt, "prompt": chat("user", prompt),
        "chosen": chat("assistant", chosen), "rejected": chat("assistant", rejected), "chosen_score": margin,
        "rejected_score": 0.0, "weight": 1.0, "smoothing": 0.0, "source": "responses",
    }  # fmt: skip


def trained(text, source, weight=1.0):
    return {"id": f"{source}/{text}", "source": source, "prompt": chat("user", "p"), "completion": chat("assistant", text),
            "weight": weight}  # fmt: skip


def evals(model, solved):
    """Sampled held-out answers, by item how many of four are right; and a greedy one, right where all are."""
    sampled = [
        {"id": f"{model}/{item}/{i}", "member": "answers", "item": item, "split": "heldout", "mode": "sampled", "sample": i,
         "level": 2, "problem": f"{item}?", "response": f"{model} {i < right} {SCRIPT}", "correct": i < right}
        for item, right in solved.items() for i in range(4)
    ]  # fmt: skip
    greedy = [
        row | {"id": f"{row['id']}g", "mode": "greedy", "correct": solved[row["item"]] == 4}
        for row in sampled if row["sample"] == 0
    ]  # fmt: skip
    return sampled + greedy


OLD = {
    "prompts": prompts("m1", ["p1", "p2", "p3", "p4", "p5"], p5="duplicate: of p1"),
    "responses": responses("m1", {"p1": ["1", "1", "2"], "p2": ["3", "3", "4"], "p3": ["5", "6"], "p5": ["7"]}),
    "judgments": judgments(
        "m1",
        {
            ("rubric", "p1", 0): "pass",
            ("rubric", "p2", 0): "fail",
            ("rubric", "p2", 1): "pass",
            ("vote", "p1", 0): "pass",
        },
    ),
    "filtered": filtered("m1", {("p1", 0): None, ("p1", 1): "score", ("p2", 0): None, ("p5", 0): "format"}),
    "pairs": [pair("p1", "a", "b", 0.5), pair("p2", "c", "d"), pair("p3", "e", "f"), pair("p4", "g", "h", 0.9)],
    "training": [trained("a", "responses"), trained("b", "critiques"), trained("c", "responses", 0.5)],
    "evals": evals("m1", {"i1": 0, "i2": 4, "i3": 2, "i4": 1}),
}
NEW = {
    "prompts": prompts("m2", ["p1", "p2", "p3", "p4", "p6"], p4="malformed: no question"),
    "responses": responses("m2", {"p1": ["2", "2", "1"], "p2": ["3", "4", "3"], "p3": ["6", "6"], "p6": ["8"]}),
    "judgments": judgments(
        "m2", {("rubric", "p1", 0): "fail", ("rubric", "p2", 0): "pass", ("rubric", "p2", 1): "pass", ("vote", "p1", 0): "pass"}
    ),
    "filtered": filtered("m2", {("p1", 0): "score", ("p1", 1): "score", ("p2", 0): None, ("p6", 0): None}),
    "pairs": [pair("p1", "b", "a", 0.7), pair("p2", "c", "d"), pair("p3", "e", "x"), pair("p4", "h", "g", 0.2)],
    "training": [trained("a", "responses"), trained("c", "replay", 1.0), trained("d", "responses")],
    "evals": evals("m2", {"i1": 4, "i2": 3, "i3": 2, "i4": 3}),
}  # fmt: skip


@pytest.fixture
def planted(project):
    """A project whose rounds r1 and r2 differ by known rows, and r2 by three settings."""
    root = project(git=False)
    projects.set_values(
        root, "r2", ["generate.sample.temperature=0.7", "generate.sample.top_p=0.9", "judge.shortest={}"]
    )
    plans = plan.plans(root, load_params(root))
    for name, tables in (("r1", OLD), ("r2", NEW)):
        write(root, name, plans, **tables)
    return root


@pytest.fixture
def found(planted):
    return diff.compare(planted, "r1", "r2")


# Settings


def test_params_that_differ_with_where_they_come_from(found):
    params = {p.path: (p.old, p.old_from, p.new, p.new_from) for p in found.settings.params}
    assert params.pop("seed") == (1, "params.yaml", 2, "params.yaml")
    assert params == {
        "generate.sample.temperature": (1.0, "default", 0.7, "set"),
        "generate.sample.top_p": (1.0, "default", 0.9, "set"),
    }


def test_a_strategy_of_one_side_alone_is_named_without_its_params(found):
    assert [(d.name, d.old, d.new) for d in found.settings.strategies] == [("judge.shortest", None, "shortest")]
    assert [(d.name, d.old, d.new) for d in found.settings.lineage] == [("parent", "r0", "r1")]
    assert [d.name for d in found.settings.code] == ["tasks/judge/shortest.py"]


def test_an_edit_after_the_run_is_no_origin(planted):
    projects.set_values(planted, "r2", ["generate.sample.temperature=0.2"])
    found = diff.compare(planted, "r1", "r2")
    [temperature] = [p for p in found.settings.params if p.path == "generate.sample.temperature"]
    assert (temperature.new, temperature.new_from) == (0.7, "edited since")


# Rows


def counts(table):
    return table.old, table.new, table.gone, table.added, table.changed


def test_rows_added_gone_and_changed(found):
    assert {name: counts(t) for name, t in found.tables.items()} == {
        "prompts": (5, 5, 1, 1, 1),
        "responses": (9, 9, 1, 1, 6),
        "judgments": (4, 4, 0, 0, 2),
        "filtered": (4, 4, 1, 1, 1),
        "pairs": (4, 4, 1, 1, 2),
        "training": (3, 3, 1, 1, 1),
        "evals": (20, 20, 0, 0, 20),
    }
    assert found.tables["responses"].columns == {"response": 6, "answer": 6}
    assert found.tables["evals"].columns == {"response": 20, "correct": 9}
    assert found.only == {}


def test_rows_by_reason(found):
    assert set(found.tables["filtered"].reasons) == {
        Reason("kept", old=2, new=2, added=1, left=1),
        Reason("score", old=1, new=2, came=1),
        Reason("format", old=1, new=0, gone=1),
    }
    assert set(found.tables["prompts"].reasons) == {
        Reason("usable", old=4, new=4, added=1, left=1),
        Reason("duplicate", old=1, new=0, gone=1),
        Reason("malformed", old=0, new=1, came=1),
    }
    assert set(found.tables["training"].reasons) == {
        Reason("responses", old=2, new=2, added=1, left=1),
        Reason("critiques", old=1, new=0, gone=1),
        Reason("replay", old=0, new=1, came=1),
    }
    for table in found.tables.values():
        assert all(r.new == r.old - r.gone + r.added - r.left + r.came for r in table.reasons)


def test_the_same_bytes_are_not_read(planted):
    write(planted, "r2", **{"training": OLD["training"]})
    for part in (planted / "data").glob("round=*/training/*"):
        part.unlink()
    table = diff.compare(planted, "r1", "r2").tables["training"]
    assert counts(table) == (3, 3, 0, 0, 0)


# Outcomes


def test_majority_answers_that_flipped(found):
    assert (found.majorities.prompts, found.majorities.flipped) == (2, 1), "p3 was a tie"
    [flip] = found.majorities.examples
    assert (flip.prompt_id, flip.old, flip.new, flip.old_share) == ("p1", "1", "2", pytest.approx(2 / 3))


def test_verdicts_that_flipped_by_judge(found):
    rubric, vote = found.verdicts
    assert (rubric.judge, rubric.both, rubric.to_pass, rubric.to_fail) == ("rubric", 3, 1, 1)
    assert rubric.same_text == 1, "p2's first answer is the same, p1's is another"
    assert (vote.judge, vote.both, vote.to_pass, vote.to_fail) == ("vote", 1, 0, 0)
    assert {e.new["prompt_id"]: (e.old["response"], e.new["response"]) for e in rubric.examples} == {
        "p1": ("so 1", "so 2"), "p2": ("so 3", "so 3"),
    }  # fmt: skip


def test_pairs_whose_sides_are_swapped(found):
    assert (found.swaps.both, found.swaps.swapped) == (3, 2)
    assert [e.new["prompt_id"] for e in found.swaps.examples] == ["p4", "p1"], "the larger change of margin first"


def test_items_won_and_lost(found):
    sampled, greedy = found.exams
    assert (sampled.split, sampled.mode, sampled.items, sampled.won, sampled.lost) == ("heldout", "sampled", 4, 2, 1)
    assert (sampled.old, sampled.new, sampled.change) == pytest.approx((7 / 16, 12 / 16, 5 / 16))
    assert sampled.low < sampled.change < sampled.high
    assert (greedy.mode, greedy.won, greedy.lost, greedy.p, greedy.test) == ("greedy", 1, 1, 1.0, "McNemar")
    assert [(i.item, i.old, i.new) for i in sampled.examples] == [
        ("i2", 1.0, 0.75),
        ("i1", 0.0, 1.0),
        ("i4", 0.25, 0.75),
    ]
    assert "True" in sampled.examples[0].old_response
    assert "False" in sampled.examples[0].new_response


# What is printed


def printed(show, width):
    console = Console(file=io.StringIO(), width=width)
    show(console)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 100, 200])
def test_no_line_is_wider_than_the_terminal(planted, width):
    whole = printed(lambda c: diff.show(planted, "r1", "r2", console=c), width)
    one = printed(lambda c: diff.show(planted, "r1", "r2", "filtered", console=c), width)
    assert max(len(line) for line in (whole + one).splitlines()) <= width
    for words in (
        "generate.sample.temperature",
        "judge.shortest",
        "majority answers",
        "rubric",
        "2 of 3",
        "heldout sampled",
    ):
        assert words in whole
    assert "score → –" not in one
    assert "– → score" in one


def test_json_is_read_by_others(planted, capsys):
    diff.show(planted, "r1", "r2", as_json=True)
    values = json.loads(capsys.readouterr().out)
    assert values["tables"]["filtered"]["gone"] == 1
    assert values["swaps"]["swapped"] == 2
    diff.show(planted, "r1", "r2", "pairs", as_json=True)
    assert json.loads(capsys.readouterr().out)["changed"] == 2


def test_a_page_escapes_what_models_wrote(planted, tmp_path):
    diff.show(planted, "r1", "r2", html=tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "alert(1)" in text
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert not any(outside in text for outside in ("src=", "@import"))
    assert re.findall("href=.*?>", text) == ['href="data:,">']


def test_a_page_replaces_no_other_kind_of_file(planted, tmp_path):
    (tmp_path / "notes.md").write_text("mine")
    with pytest.raises(FlywheelError, match="another kind of file"):
        diff.show(planted, "r1", "r2", html=tmp_path / "notes.md")
    assert (tmp_path / "notes.md").read_text() == "mine"
    with pytest.raises(FlywheelError, match="project's own files"):
        diff.show(planted, "r1", "r2", html=planted / "data/round=r2/page.html")


def test_what_a_model_wrote_does_not_steer_the_terminal(planted):
    write(planted, "r2", evals=[row | {"response": "\x1b[2J[bold]x"} for row in NEW["evals"]])
    text = printed(lambda c: diff.show(planted, "r1", "r2", console=c), 100)
    assert "\x1b" not in text
    assert "[bold]x" in text


# SQL


def test_views_for_sql(planted, capsys):
    def rows(sql):
        diff.query(planted, "r1", "r2", sql, as_json=True)
        return json.loads(capsys.readouterr().out)

    where = "from diff_filtered where change = 'changed'"
    assert rows(f"select key, columns, reason_old, reason_new, id_old, id_new {where}") == [
        {"key": "p1/sample/0", "columns": ["kept", "rank", "reason"], "reason_old": None, "reason_new": "score",
         "id_old": "m1/p1/0", "id_new": "m2/p1/0"}
    ]  # fmt: skip
    assert rows("select change, count(*) as n from diff_responses group by all order by all") == [
        {"change": "added", "n": 1}, {"change": "changed", "n": 6}, {"change": "gone", "n": 1},
    ]  # fmt: skip
    assert rows("select id from old_prompts anti join new_prompts using (id)") == [{"id": "p5"}]
    listed = {row["name"] for row in rows("show tables")}
    assert {"diff_pairs", "old_pairs", "new_pairs"} <= listed
    assert not [name for name in listed if name.startswith(("match", "narrow"))]


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("from diff_pair", "did you mean 'diff_pairs'"),
        ("drop table x", "DROP is not a query"),
        ("from read_csv('/etc/hostname')", "Permission"),
        ("from diff_audits", "r1 has no audits yet"),
        ("select nothing from diff_pairs", "nothing"),
    ],
)
def test_other_queries_are_refused(planted, sql, words):
    with pytest.raises(FlywheelError, match=words):
        diff.query(planted, "r1", "r2", sql)


# Bad input


def test_unknown_names(planted):
    with pytest.raises(UnknownName, match="did you mean 'r2'"):
        diff.compare(planted, "r1", "r22")
    with pytest.raises(UnknownName, match="did you mean 'pairs'"):
        diff.compare_table(planted, "r1", "r2", "pair")


def test_both_sides_the_same(planted):
    with pytest.raises(FlywheelError, match="both sides are r1"):
        diff.compare(planted, "r1", "r1")


def test_a_round_without_data(planted):
    with pytest.raises(FlywheelError, match="r0 has no data yet; `flywheel run r0` makes it"):
        diff.compare(planted, "r0", "r1")


def test_a_table_of_one_side_alone(planted):
    write(planted, "r2", measures=[{"name": "pass_at_1", "value": 0.5}], evals=NEW["evals"])
    with pytest.raises(StoreError, match="r1 has no measures yet"):
        diff.compare_table(planted, "r1", "r2", "measures")
    assert diff.compare(planted, "r1", "r2").only == {"measures": "r2"}
    assert "only r2 has measures" in printed(lambda c: diff.show(planted, "r1", "r2", console=c), 100)


def test_a_changed_file_is_no_difference(planted):
    part = next((planted / "data/round=r2/pairs").glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreError, match="not what was written"):
        diff.compare(planted, "r1", "r2")


# Any two tables

CELLS = {
    "response": st.sampled_from([None, "", "a", "b"]),
    "answer": st.sampled_from([None, "1"]),
    "mean_logprob": st.sampled_from([None, 0.0, -0.0, -1.5, math.nan, -math.inf]),
    "tokens": st.sampled_from([None, 0, 7]),
    "error": st.none(),
}
ROW = st.fixed_dictionaries(
    {"prompt_id": st.sampled_from([None, "p", "q"]), "member": st.sampled_from(["s", "t"]), "sample": st.integers(0, 2)}
    | CELLS
)
ROWS = st.lists(st.tuples(st.integers(0, 10**6), ROW), max_size=12, unique_by=lambda row: row[0])


def reference(old, new):
    """What a loop over Python rows says: rows of one place are matched in the order of their ids."""

    def by_place(rows):
        places = defaultdict(list)
        for row in sorted(rows, key=lambda row: row["id"]):
            places[row["prompt_id"], row["member"], row["sample"]].append(row)
        return places

    def same(a, b):
        return all(x[c] == y[c] or (x[c] != x[c] and y[c] != y[c]) for c in CELLS for x, y in [(a, b)])

    count, before, after = Counter(), by_place(old), by_place(new)
    for place in {*before, *after}:
        a, b = before[place], after[place]
        count["gone"] += max(0, len(a) - len(b))
        count["added"] += max(0, len(b) - len(a))
        count["changed"] += sum(not same(x, y) for x, y in zip(a, b, strict=False))
    return [count[k] for k in ("gone", "added", "changed")]


@settings(max_examples=30)
@given(ROWS, ROWS)
def test_counts_are_those_of_a_loop(old, new):
    rows = [[row | {"id": f"{side}{n:07}"} for n, row in found] for side, found in (("o", old), ("n", new))]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name, own in zip(("r1", "r2"), rows, strict=True):
            write(root, name, responses=own)
        sides = [Side(name, name, root, store.manifests(root, name)) for name in ("r1", "r2")]
        with open_database(*sides) as db:
            table = db.table("responses", 20)
            shown = [] if db.is_equal("responses") else db.rows("select change, columns from diff_responses")
    assert [table.gone, table.added, table.changed] == reference(*rows)
    assert (table.old, table.new) == tuple(map(len, rows))
    assert Counter(e.change for e in table.examples) == Counter(row["change"] for row in shown)
    assert all(bool(row["columns"]) == (row["change"] == "changed") for row in shown)


# An older version of a round


@pytest.fixture
def again(made):
    """A project whose r2 was run again with four samples a prompt, where git has three."""
    projects.set_values(made, "r2", ["generate.sample.samples=4"])
    plan.write(made)
    for stage in stages_of(load_params(made).block("r2")):
        run_stage(made, "r2", stage.name)
    return made


def test_a_version_in_which_nothing_differs(made):
    found = diff.compare(made, "r2@HEAD", "r2")
    assert found.settings == SettingsDiff()
    assert all(counts(t)[2:] == (0, 0, 0) for t in found.tables.values())
    assert not (found.exams or found.verdicts or found.majorities or found.swaps)


def test_models_are_named_by_the_digest_of_their_weights(made):
    pointed_to = model_digest(made, "r2", store.manifests(made, "r2"))
    manifest = store.manifests(made, "r2")["train"]
    with store.writing(made, "r2", "train") as draft:
        projects.stub_model(draft.new / "model", scale=2.0)
        draft.describe_folder("model")
        draft.commit(manifest.model_copy(update={"outputs": draft.outputs}))
    trained = model_digest(made, "r2", store.manifests(made, "r2"))
    [found] = diff.compare(made, "r2@HEAD", "r2").settings.models
    assert (found.name, found.old, found.new) == ("model", pointed_to, trained)
    [found] = [d for d in diff.compare(made, "r1", "r2").settings.models if d.name == "model"]
    assert (found.old, found.new) == (pointed_to, trained)


def lose(root, table):
    """Removes a table's files from DVC's cache; returns their number."""
    lock = projects.YAML(typ="safe").load((root / "dvc.lock").read_text())
    [md5] = {o["md5"] for s in lock["stages"].values() for o in s["outs"] if o["path"] == f"data/round=r2/{table}"}
    cache = root / ".dvc/cache/files/md5"
    listing = cache / md5[:2] / md5[2:]
    for entry in json.loads(listing.read_text()):
        (cache / entry["md5"][:2] / entry["md5"][2:]).unlink()
    listing.unlink()


def test_every_table_is_matched_and_its_view_has_the_rows_that_were_counted(again):
    assert set(RULES) == set(TABLES)
    with open_sides(again, "r1", "r2") as sides, open_database(*sides) as db:
        for name in TABLES:
            table = db.table(name, 1)
            assert table.old - table.gone == table.new - table.added
            if not db.is_equal(name):
                [(rows, keys)] = db.con.execute(f"select count(*), count(key) from diff_{name}").fetchall()
                assert rows == keys == table.gone + table.added + table.changed, name


def test_a_round_and_its_older_version(again):
    found = diff.compare(again, "r2@HEAD", "r2")
    [samples] = found.settings.params
    assert (samples.path, samples.old, samples.new) == ("generate.sample.samples", 3, 4)
    assert (samples.old_from, samples.new_from) == ("recipe small", "set")
    usable = int(store.read(again, "r2", "prompts")["error"].is_null().sum())
    assert counts(found.tables["responses"]) == (3 * usable, 4 * usable, 0, usable, 0)
    assert counts(found.tables["prompts"])[2:] == (0, 0, 0)
    assert (again / "data/round=r2/manifests").is_dir()
    assert diff.compare(again, "r2", "r2@HEAD").tables["responses"].gone == usable


def test_a_version_that_the_cache_lacks_comes_from_the_remote(again, tmp_path):
    with projects.dvc(again) as repo, repo.config.edit("local") as config:
        config["remote"]["there"] = {"url": str(tmp_path / "remote")}
        config["core"]["remote"] = "there"
    with projects.dvc(again) as repo:
        repo.push(targets=["generate@r2"])
    shutil.copytree(again / ".dvc/cache", tmp_path / "cache")
    lose(again, "responses")
    assert diff.compare(again, "r2@HEAD", "r2").tables["responses"].added
    lose(again, "judgments")
    with pytest.raises(StoreError, match="r2@HEAD: data/round=r2/judgments of that revision"):
        diff.compare(again, "r2@HEAD", "r2")


def test_a_version_that_nobody_has(again):
    lose(again, "responses")
    with pytest.raises(StoreError, match="not in DVC's cache, and there is no remote.*dvc push"):
        diff.compare(again, "r2@HEAD", "r2")


@pytest.mark.parametrize(
    ("side", "words"),
    [
        ("r2@nowhere", "no revision 'nowhere'"),
        ("r2@" + "x" * 5000, "no revision"),
        ("r2@", "no revision ''"),
        ("r2@HEAD~1", "git has no dvc.lock"),
        ("r3@HEAD", "no round or base 'r3'"),
    ],
)
def test_revisions_that_do_not_exist(made, side, words):
    with pytest.raises(FlywheelError, match=words):
        diff.compare(made, side, "r1")


def test_a_project_without_git(planted):
    with pytest.raises(FlywheelError, match="needs git"):
        diff.compare(planted, "r1@HEAD", "r1")
