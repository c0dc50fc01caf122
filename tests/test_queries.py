"""The ten questions of docs/queries.md: they run as they stand, answer what they ask, and make the notebook."""

import re
import shutil
import subprocess
import sys
from collections import Counter
from math import isnan

import polars as pl
import projects
import pytest

from tasks.core import meanings, store
from tasks.views import catalog

pytestmark = pytest.mark.xdist_group("campaign")
PAGE = (projects.HERE / "docs/queries.md").read_text()
SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
QUESTIONS = {
    text.partition("\n")[0]: re.findall(r"^```sql\n(.*?)^```", text, re.MULTILINE | re.DOTALL) for text in SECTIONS
}
QUERIES = {question: sql[0] for question, sql in QUESTIONS.items() if sql}


def ask(root, part: str) -> pl.DataFrame:
    """The rows of the question with these words."""
    [sql] = [sql for question, sql in QUERIES.items() if part in question]
    return pl.DataFrame(catalog.query(root, sql))


def test_there_are_ten_questions_and_each_has_one_query():
    assert len(QUERIES) == 10
    assert all(question.endswith("?") for question in QUERIES)
    assert {len(sql) for question, sql in QUESTIONS.items() if question.endswith("?")} == {1}


@pytest.mark.parametrize("sql", QUERIES.values(), ids=QUERIES)
def test_a_query_runs_as_it_stands_and_fits_a_terminal(campaign, sql, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    catalog.show(campaign, sql)
    lines = capsys.readouterr().out.splitlines()
    assert "┏" in lines[0], "a table, and not a line a column"
    assert max(map(len, lines)) <= 100


def test_accuracy_is_that_of_the_measures(campaign):
    rows = ask(campaign, "How accurate")
    assert rows.columns == ["level", "r0", "r1", "r2"]
    [overall] = rows.filter(pl.col("level").is_null()).rows()
    manifests = [store.manifests(campaign, name)["evaluate"] for name in ("r0", "r1", "r2")]
    assert overall == (None, *(round(m.metrics["pass_at_1"], 3) for m in manifests))


def test_problems_that_no_round_solves_have_no_right_sample(campaign):
    rows = ask(campaign, "ever solve")
    evals = pl.concat(store.read(campaign, name, "evals") for name in ("r0", "r1", "r2"))
    sampled = evals.filter(split="heldout", mode="sampled")
    solved = sampled.group_by("item").agg(pl.col("correct").any())
    assert len(rows) == min(20, solved.filter(~pl.col("correct")).height) > 0
    assert set(rows["samples"]) == {len(sampled) / solved.height}


def test_every_response_is_kept_or_has_a_reason(campaign):
    rows = ask(campaign, "dropped").filter(round="r2")
    filtered = store.read(campaign, "r2", "filtered")
    assert dict(rows.select("reason", "rows").rows()) == Counter(filtered["reason"].fill_null("(kept)"))
    assert rows["percent"].sum() == pytest.approx(100, abs=0.5)


def test_judges_are_compared_in_pairs(campaign):
    rows = ask(campaign, "agree").filter(round="r1")
    judgments = store.read(campaign, "r1", "judgments").drop_nulls("score")
    judges = judgments["member"].n_unique()
    assert len(rows) == judges * (judges - 1) / 2
    both = judgments.filter(member="self_consistency").join(judgments.filter(member="verifier"), on="response_id")
    [row] = rows.filter(judge="self_consistency", other="verifier").to_dicts()
    assert row["answers"] == len(both)
    disputed = (both["verdict"] != both["verdict_right"]).mean()
    assert row["percent_disputed"] == pytest.approx(100 * disputed, abs=0.05)
    apart = both.select(pl.corr("score", "score_right", method="spearman")).item()
    assert row["rank_correlation"] == (None if isnan(apart) else pytest.approx(apart, abs=0.0006))


def test_chosen_and_rejected_are_measured_by_their_texts(campaign):
    [row] = ask(campaign, "just longer").filter(round="r1").to_dicts()
    pairs = store.read(campaign, "r1", "pairs")
    chosen, rejected = (
        pairs[side].list.last().struct.field("content").str.len_chars() for side in ("chosen", "rejected")
    )
    assert row["pairs"] == len(pairs) > 0
    assert row["chosen_characters"] == pytest.approx(chosen.mean(), abs=0.06)
    assert row["percent_longer"] == pytest.approx(100 * (chosen > rejected).mean(), abs=0.06)


def test_a_problem_that_comes_again_is_counted(campaign):
    rows = ask(campaign, "seen before")
    first, second = (
        store.read(campaign, name, "prompts").filter(pl.col("error").is_null())["problem"].to_list()
        for name in ("r1", "r2")
    )
    assert rows["problems"].to_list() == [len(first), len(second)]
    assert rows["in_earlier_round"].to_list() == [0, len(set(first) & set(second))]
    assert rows["twice_in_round"].to_list() == rows["in_exam"].to_list() == [0, 0]


def test_a_problem_of_the_exam_is_found_in_other_case_and_with_other_blanks(campaign):
    exam = store.read(campaign, "r0", "evals")["problem"][0].upper().replace("'", "''").replace("\n", " \n ")
    [sql] = [sql for question, sql in QUERIES.items() if "in the exam" in question]
    leaked = f"""from (select * replace (if(round = 'r2' and id = (select min(id) from prompts where round = 'r2' and error is null),
        ' {exam}', problem) as problem) from prompts) p"""
    changed = pl.DataFrame(catalog.query(campaign, sql.replace("from prompts p", leaked)))
    assert changed["in_exam"].to_list() == [0, 1]


def test_a_flip_is_another_majority_answer(campaign):
    rows = ask(campaign, "flipped")
    assert rows.select("parent", "round").rows() == [("r0", "r1"), ("r1", "r2")]
    assert (rows["won"] + rows["lost"] <= rows["problems"]).all()
    assert rows["flipped"].sum() == 0, "nothing was trained in this campaign: all three models are one"


def test_a_row_costs_the_tokens_of_the_stages_before_training(campaign):
    [row] = ask(campaign, "cost").filter(round="r2").to_dicts()
    manifests = store.manifests(campaign, "r2")
    stages = ("prompts", "generate", "judge", "filter", "critique", "pair", "collect")
    assert row["generated_tokens"] == sum(manifests[s].tokens.get("completion_tokens", 0) for s in stages) > 0
    assert row["rows"] is None, "nothing was collected"


def test_diversity_is_of_the_samples_of_a_prompt(campaign):
    [row] = ask(campaign, "diversity").filter(round="r1").to_dicts()
    responses = store.read(campaign, "r1", "responses").filter(pl.col("error").is_null())
    by_prompt = responses.group_by("prompt_id").agg(pl.col("answer").drop_nulls().n_unique())
    assert row["prompts"] == len(by_prompt)
    assert row["different_answers"] == pytest.approx(by_prompt["answer"].mean(), abs=0.006)
    assert row["one_answer"] == pytest.approx((by_prompt["answer"] <= 1).mean(), abs=0.0006)


def test_training_rows_are_counted_by_source_member_and_author(campaign):
    assert ask(campaign, "come from").columns == [
        "round", "source", "member", "written_by", "rows", "tokens", "mean_reward", "judge",
    ]  # fmt: skip


def test_the_page_says_what_the_code_says_of_metrics():
    assert PAGE.endswith(meanings.markdown()), "write tasks.core.meanings.markdown() at its end"


# The notebook


@pytest.fixture
def notebook(made) -> str:
    """The notebook of a project; marimo keeps files beside it."""
    (made / "docs").mkdir()
    for name in ("queries.md", "queries.py"):
        shutil.copy(projects.HERE / "docs" / name, made / "docs" / name)
    return "docs/queries.py"


def python(root, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=root, env=projects.own_code(root), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_notebook_asks_the_project_in_which_it_is_started(made, notebook):
    printed = python(made, notebook)
    assert re.findall(r"^\S.*\?$", printed, re.MULTILINE) == list(QUERIES)
    assert re.search(r"│ r2 +│ \(kept\) ", printed)
    assert "Traceback" not in printed


def test_the_notebook_can_be_exported(made, notebook):
    page = made / "answers.html"
    python(made, "-m", "marimo", "export", "html", notebook, "--output", str(page), "--no-include-code")
    text = page.read_text()
    assert all(question in text for question in QUERIES)
    assert "callout" not in text, "which says why a query cannot run"


def test_the_notebook_is_one_that_marimo_can_edit(made, notebook):
    python(made, "-m", "marimo", "check", "--strict", notebook)
