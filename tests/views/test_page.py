"""The page of all rounds: its figures are those of the tables, and every state of a project has one."""

import json
import re
from dataclasses import fields
from types import SimpleNamespace

import polars as pl
import projects
import pytest
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from tasks.commands import look
from tasks.core import store
from tasks.core.errors import FlywheelError, ParamsError
from tasks.core.frames import frame
from tasks.core.tables import TABLES
from tasks.evaluate.judging import calibration_error
from tasks.project import plan
from tasks.project.execute import run_stage
from tasks.project.params import load_params, stages_of
from tasks.views import _page_data, _page_judges, _page_rounds, _page_rows, _page_samples, page, report
from tasks.views._page_charts import apart

SECTIONS = [s.__name__ for s in page.SECTIONS]


@pytest.fixture(scope="module")
def data(campaign):
    with page.opened(campaign) as found:
        yield found


@pytest.fixture(scope="module")
def text(campaign):
    return page.html(campaign)


def cells(source, label):
    """The cells of a table's row, by the row's name."""
    rows = re.findall(r"<tr[^>]*><th scope=\"row\">(.*?)</th>(.*?)</tr>", str(source), re.DOTALL)
    found = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for name, row in rows if name == label]
    assert found, f"no row {label}"
    return found[0]


def test_a_page_has_every_section_and_loads_nothing(text):
    ids = re.findall(r'<h2 id="(\w+)"', text)
    assert ids == ["rounds", "accuracy", "passk", "exploration", "judges", "funnel", "gap", "lengths", "entropy", "samples", "diff",
                   "costs", "figures"]  # fmt: skip
    assert re.findall(r'href="#(\w+)">', text) == ids
    assert not re.search(r"<script|<link(?! rel=\"icon\" href=\"data:)|@import|src=|https?://(?!www\.w3\.org)", text)
    assert "default-src &#39;none&#39;" in text
    assert "#0000" not in text, "every colour is the stylesheet's"


def test_of_many_rounds_a_page_shows_those_of_the_table(campaign, monkeypatch):
    monkeypatch.setattr(report, "NEWEST", 1)
    with page.opened(campaign) as found:
        assert found.names == ["r0", "r2"] and found.left_out == 1
        assert {row["round"] for row in found.rows("select distinct round from metrics")} == {"r0", "r2"}
        assert {row["round"] for row in found.rows("select distinct round from prompts")} == {"r2"}
        assert "1 earlier round is not shown" in _page_rounds.summary(found)
    with page.opened(campaign, whole=True) as found:
        assert found.names == ["r0", "r1", "r2"] and not found.left_out


def test_ids_are_unique_and_found(text):
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    used = {i for found in re.findall(r'aria-labelledby="([^"]+)"', text) for i in found.split()}
    used |= set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))
    assert used <= set(ids)


def test_the_head_says_who_is_champion_and_by_how_much(campaign, data):
    head = str(_page_rounds.summary(data))
    champion = data.elections["r0"].champion
    assert f"<b>{champion}</b>" in head
    [found] = [c for c in _page_rounds.comparisons(data) if c.new == "r2"]
    rates = [
        store.read(campaign, name, "evals").filter(split="heldout", mode="greedy")["correct"].mean()
        for name in (found.old, "r2")
    ]
    greedy = next(e for e in found.exams if e.mode == "greedy")
    assert (greedy.old, greedy.new) == pytest.approx(rates)
    assert all(e.split == "heldout" for e in found.exams)


def test_the_tree_has_every_round_below_its_parent(data):
    body = str(_page_rounds.tree(data).body)
    assert [body.index(f"<b>{name}</b>") for name in ("r0", "r1", "r2")] == sorted(
        body.index(f"<b>{name}</b>") for name in ("r0", "r1", "r2")
    )
    assert body.count("<ul") == body.count("</ul>") == 1, "a line, of which nothing branches off"
    assert re.findall(r'badge (?:good|bad)">(promoted by its gates|held back)', body) == ["held back"] * 2


def test_pass_at_1_is_that_of_the_exam(campaign, data):
    curves = str(_page_rounds.at_k(data).body)
    measured = (
        store.read(campaign, "r1", "measures").filter(pl.col("level").is_null(), name="pass_at_1").row(0, named=True)
    )
    assert cells(curves, "r1")[0].startswith(f"{100 * measured['value']:.1f} %")
    assert f"({100 * measured['low']:.1f} % … {100 * measured['high']:.1f} %)" in cells(curves, "r1")[0]


def test_accuracy_by_level_is_that_of_the_exam(campaign, data):
    body = str(_page_rounds.accuracy(data).body)
    rows = store.read(campaign, "r2", "measures").drop_nulls("level").filter(name="greedy").sort("level")
    chart = body[body.index("By level: greedy") :]
    assert [c.split(" ")[0] for c in cells(chart, "r2")] == [f"{100 * v:.1f}" for v in rows["value"]]


def test_judges_are_measured_against_the_verifier(made):
    right = (pl.col("member") == "verifier") & (pl.col("response_id").hash() % 3 == 0)
    judgments = store.read(made, "r1", "judgments").with_columns(
        verdict=pl.when(right).then(pl.lit("pass")).otherwise("verdict")
    )
    replace(made, "r1", "judgments", judgments)
    with page.opened(made) as data:
        told = _page_judges._told(data)
    judged = judgments.drop_nulls("score")
    truth = judged.filter(member="verifier").select("response_id", truth=pl.col("verdict") == "pass")
    assert 0 < truth["truth"].sum() < len(truth)
    for judge in ("self_consistency", "logprob"):
        own = judged.filter(member=judge).join(truth, on="response_id")
        assert told[judge]["r1"]["auroc"] == pytest.approx(roc_auc_score(own["truth"], own["score"]))
        rows = own.select("score", "truth").to_dicts()
        expected = calibration_error("x", None, rows).value if judge == "self_consistency" else None
        assert told[judge]["r1"]["calibration_error"] == (expected and pytest.approx(expected))
    assert "verifier" not in told


def test_the_funnel_counts_what_the_manifests_say(campaign, data):
    metrics = {k: v for m in store.manifests(campaign, "r1").values() for k, v in m.metrics.items()}
    steps = {s.name: (s.total, s.left) for s in _page_rows._steps(next(f for f in data.facts if f.block.name == "r1"))}
    assert steps["answers sampled"] == (metrics["responses"], metrics["kept"])
    assert steps["prompts written"][1] == metrics["prompts"]
    reasons = {k for k in metrics if k.startswith("dropped/")}
    body = str(_page_rows.funnels(data).body)
    assert reasons
    for reason in reasons:
        label = f"dropped: {reason.removeprefix('dropped/').replace('_', ' ')}"
        assert f"{metrics[reason]:,.0f}" in cells(body, label)


def test_samples_show_every_judge_beside_each_answer(campaign, data):
    section = _page_samples.samples(data)
    body = str(section.body)
    judges = store.read(campaign, "r2", "judgments")["member"].unique().to_list()
    assert section.title == "Samples of r2"
    assert all(f"<th>{judge}</th>" in body for judge in judges)
    kept = store.read(campaign, "r2", "filtered").filter("kept")
    shown = re.findall(r'mono">(\w+)</span> has a kept answer', body)
    assert shown
    assert shown[0] in kept["prompt_id"].to_list()


def test_equal_answers_are_one_row(data):
    chosen = _page_samples._chosen(data, "r2")
    _page_samples._fill(data, "r2", chosen)
    for sample in chosen.values():
        texts = [a.row["text"] for a in sample.answers]
        assert len(texts) == len(set(texts))
        own = data.rows("select count(*) as n from responses where round = 'r2' and prompt_id = $id", id=sample.id)
        assert sum(a.count for a in sample.answers) == own[0]["n"] or sample.others


def test_the_last_round_is_compared_with_its_parent(data):
    section = _page_samples.difference(data)
    assert section.title == "What changed from r1 to r2"
    assert cells(section.body, "responses")[0] == f"{len(store.read(data.root, 'r1', 'responses')):,}"


# States of a project


def test_a_project_of_which_nothing_has_run(project):
    assert "Nothing has been made yet" in page.html(project())


def run(root, *addresses):
    plan.write(root)
    for address in addresses:
        stage, name = address.split("@")
        run_stage(root, name, stage)


def test_sections_without_data_say_what_fills_them(project):
    root = project()
    run(root, *(f"{s.name}@r0" for s in stages_of(load_params(root).block("r0"))))
    text = page.html(root)
    assert "No round has beaten the base <b>r0</b>" in text
    assert "Samples: the stage generate samples answers." in text
    assert "What changed: a round and its parent." in text
    run(root, "prompts@r1", "generate@r1")
    text = page.html(root)
    assert "Samples of r1" in text
    assert "not filtered" in text
    assert "2 of 10 stages" in text


def test_a_folder_without_params(tmp_path):
    with pytest.raises(ParamsError, match=r"params\.yaml"):
        page.html(tmp_path)


def test_stale_stages_and_warnings_are_told_first(made):
    projects.set_values(made, "r2", ["generate.sample.samples=4"])
    plan.write(made)
    text = page.html(made)
    assert text.index("r2 is stale") < text.index('id="rounds"')


def test_costs_are_money_where_there_are_prices(made):
    assert "money" not in str(sections(made)["costs"].body)
    prices = {"tokens": {"fake": {"prompt": 1000, "completion": 1000}}, "currency": "EUR"}
    projects.rewrite(made, lambda content: content.update(prices=prices))
    body = str(sections(made)["costs"].body)
    assert "money, EUR" in body
    tokens = sum(
        sum(m.tokens.get(f"{k}_tokens", 0) for k in ("prompt", "completion"))
        for m in store.manifests(made, "r1").values()
    )
    assert f"{tokens / 1000:.2f}" in cells(body[body.index("money, EUR") :], "r1")


def sections(root):
    with page.opened(root) as found:
        return {s.id: s for s in (make(found) for make in page.SECTIONS)}


def test_a_round_without_a_verifier_judge(made):
    judgments = store.read(made, "r2", "judgments").filter(pl.col("member") != "verifier")
    replace(made, "r2", "judgments", judgments)
    found = sections(made)
    assert "Exploits: share of all answers" in found["exploration"].body, "r1 has one"
    assert (
        "r2"
        not in str(found["exploration"].body).partition("Exploits: share of all answers")[2].partition("</figure>")[0]
    )


def replace(root, name, table, rows):
    """Another table in the place of a round's own."""
    stage, manifest = next((s, m) for s, m in store.manifests(root, name).items() if table in m.outputs)
    with store.writing(root, name, stage) as draft:
        for other in manifest.outputs:
            if other in TABLES:
                draft.table(TABLES[other], rows if other == table else store.read(root, name, other))
        outputs = manifest.outputs | draft.outputs
        draft.commit(manifest.model_copy(update={"outputs": outputs}))


def test_a_long_campaign_stays_at_the_margin_and_branches_are_set_in():
    facts = [SimpleNamespace(decisions={})] * 3
    third = _page_rounds.Node(facts[2], None, "", None, "", [], [])
    branch = _page_rounds.Node(facts[1], None, "", None, "branch", [], [])
    second = _page_rounds.Node(facts[1], None, "", None, "", [], [third])
    first = _page_rounds.Node(facts[0], None, "", None, "", [], [branch, second])
    assert first.line == [first, second, third]
    assert first.branches == [branch]
    assert second.branches == []


def test_judges_are_measured_by_people_too(made):
    from tasks.core import labels
    from tasks.views.browse._labels_page import by_labels

    rows = store.read(made, "r2", "responses").join(
        store.read(made, "r2", "prompts").select("problem", prompt_id="id"), on="prompt_id"
    )
    lines = [
        {"round": "r2", "source": "responses", "id": r["id"], "prompt_id": r["prompt_id"], "label": "right" if n % 2 else "wrong",
         "digest": labels.text_digest(r["problem"], r["response"]), "person": "ann", "time": f"2026-01-01T00:00:{n:02}+00:00", "note": ""}
        for n, r in enumerate(rows.to_dicts())
    ]  # fmt: skip
    (made / labels.FOLDER).mkdir(parents=True)
    known = [f.name for f in fields(labels.Label)]
    text = "".join(json.dumps({k: v for k, v in line.items() if k in known}) + "\n" for line in lines)
    (made / labels.FOLDER / "ann.jsonl").write_text(text)
    body = str(sections(made)["judges"].body)
    with page.opened(made) as data:
        found = next(j for j in by_labels(data.con, labels.read(made / labels.FOLDER)) if j.reward)
    row = cells(body[body.index("by people") :], f"{found.judge} (the reward)")
    assert row[0] == "r2"
    assert row[-1] == f"{found.right}, {found.wrong}"
    assert row[1].startswith(f"{100 * found.measures['agreement'].value:.1f}")


def test_a_domain_without_levels_or_a_verifier(made):
    rows = [
        {"name": "grade", "value": 0.4, "low": 0.3, "high": 0.5, "count": 7},
        {"name": "grade_sampled", "value": 0.2},
    ]
    for name in ("r0", "r1", "r2"):
        replace(made, name, "measures", frame(TABLES["measures"], rows))
        replace(made, name, "evals", store.read(made, name, "evals").with_columns(level=None, correct=None, score=0.5))
        replace(made, name, "audits", store.read(made, name, "audits").clear())
        judgments = store.read(made, name, "judgments")
        replace(made, name, "judgments", judgments.filter(~pl.col("member").is_in(["verifier"])))
    found = sections(made)
    body = str(found["accuracy"].body)
    assert "All levels: greedy, grade" in body
    assert "By level" not in body
    assert cells(body, "r1")[0] == "20.0 %"
    assert found["passk"].missing
    assert found["judges"].missing
    assert "sampled, grade 20.0 %" in page.html(made)


def test_tables_too_large_to_compare_are_told(made, monkeypatch):
    monkeypatch.setattr(_page_samples, "COMPARED", 10)
    assert "flywheel diff r1 r2 --html FILE" in sections(made)["diff"].missing


# Charts


def test_charts_draw_champions_bases_and_the_last_rounds():
    facts = [SimpleNamespace(block=SimpleNamespace(name=f"r{n}")) for n in range(20)]
    colours = _page_data.colours(facts, {"r0": SimpleNamespace(champion="r7")})
    assert list(colours) == ["r0", "r7", "r16", "r17", "r18", "r19"]
    assert sorted(colours.values()) == list(range(6))


@pytest.mark.parametrize(
    ("places", "moved"),
    [
        ([], []),
        ([1, 50], [1, 50]),
        ([10, 10], [5, 15]),
        ([0, 10, 10, 10, 40], [-7.5, 2.5, 12.5, 22.5, 40]),
        ([98, 99, 100], [80, 90, 100]),
    ],
)
def test_labels_are_moved_apart_as_little_as_it_takes(places, moved):
    assert apart(places, 10, 100) == pytest.approx(moved)


# The command


def test_the_command_writes_a_page_and_nothing_over_another_file(made, tmp_path):
    runner = CliRunner()
    result = runner.invoke(look.app, ["report", "--html", str(tmp_path / "page.html")], catch_exceptions=False)
    assert "page.html" in result.output
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    with pytest.raises(FlywheelError, match="another kind of file"):
        runner.invoke(look.app, ["report", "--html", "params.yaml"], catch_exceptions=False)
    assert "pass@1" in runner.invoke(look.app, ["report"], catch_exceptions=False).output
