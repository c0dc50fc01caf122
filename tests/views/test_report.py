"""The table of the rounds, as a person sees it."""

import io
import json
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import synthetic
from rich.console import Console

from tasks.core import store
from tasks.core.errors import StoreError
from tasks.project import champion, freshness
from tasks.project.costs import Prices
from tasks.views import boards, report

NAMES = ("r0", "r1", "r2", "r3")
PLAN = synthetic.pipeline(*NAMES[1:])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    for name in NAMES:
        synthetic.make(root, PLAN, name, only=None if name != "r3" else {"prompts", "generate"}, promoted=name != "r2")
    return root


@pytest.fixture(autouse=True)
def plan(monkeypatch):
    for module in (report, boards):
        monkeypatch.setattr(module, "load_params", lambda root: PLAN)
    for module in (champion, freshness, report):
        monkeypatch.setattr(module, "plans", synthetic.plans)


def printed(root, width, show=report.show):
    console = Console(file=io.StringIO(), width=width)
    show(root, console)
    return console.file.getvalue()


def cells(text, label):
    """The values of the line of that name, in the first table that has it."""
    line = next(part for part in text.split("\n") if part.strip().startswith(label))
    return re.split(r"\s{2,}", line.strip())[1:]


def test_looks_at_answers_that_are_gone_are_named(tmp_path):
    for name in ("r0", "r1"):
        synthetic.make(tmp_path, PLAN, name)
    entry = champion.Entry(base="r0", round="r9", answers="x", against="r0", against_answers="y", when="")
    assert "are spent" not in printed(tmp_path, 120)
    (tmp_path / champion.LOOKS).parent.mkdir()
    (tmp_path / champion.LOOKS).write_text(entry.model_dump_json())
    assert "champion of r0: r1 (1 look at other answers is spent, too)" in printed(tmp_path, 120)


def test_everything_that_was_measured_is_in_the_table(made):
    text = printed(made, 120)
    assert cells(text, "level 2") == ["50.0 48.0–52.0", "67.0 65.0–69.0", "71.0 69.0–73.0"]
    assert cells(text, "pass@8") == ["70.0 68.0–72.0", "87.0 85.0–89.0", "91.0 89.0–93.0"]
    assert cells(text, "majority@8")[0] == "52.0 50.0–54.0"
    assert cells(text, "judge: balanced acc.")[1] == "77.0 67.0–87.0"
    assert cells(text, "kept") == ["6", "6"]
    assert cells(text, "dropped: score") == ["4", "4"]
    assert cells(text, "critiques kept") == ["2 of 5", "2 of 5"]
    assert cells(text, "pairs") == ["0", "0"]
    assert cells(text, "generated") == ["40,000", "200,000", "200,000", "40,000"]
    assert cells(text, "trained on") == ["0", "0"]
    assert cells(text, "process start-up") == ["4.0", "20.0", "20.0", "4.0"]
    assert cells(text, "total") == ["25.2", "126.0", "126.0", "25.2"]
    assert cells(text, "gate  ") == ["10.6", "10.6"]
    assert "promoted" in text
    assert "r2 was held back by improves (refused by improves)" in text
    assert text.index("sampled (pass@1)") < text.index("greedy, %") < text.index("k samples") < text.index("seconds")


@pytest.mark.parametrize("width", [120, 100, 80, 60, 45])
def test_no_number_is_wrapped_or_cut(made, width):
    text = printed(made, width)
    assert all(len(line.rstrip()) <= width for line in text.split("\n"))
    assert "…" not in text
    whole = [c for c in re.findall(r"\d[\d,.]*\d", printed(made, 120)) if "," in c]
    assert all(number in text for number in whole)


def test_intervals_shrink_before_the_table_is_cut(made):
    assert "50.0 48.0–52.0" in printed(made, 100)
    assert "50.0 ±2.0" in printed(made, 80)
    assert printed(made, 80).count("level 2") == 2
    narrow = printed(made, 60)
    assert "±" not in narrow
    assert narrow.count("level 2") == 4, "two tables of two rounds each"


def test_markdown_has_the_same_rows(made):
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in boards.overview(made).split("\n")]
    assert ["level 2", "50.0 ±2.0", "67.0 ±2.0", "71.0 ±2.0"] in lines


def test_the_tree_shows_what_was_made_of_each_round(made):
    text = printed(made, 120, report.show_tree)
    assert [line.lstrip(" └─")[:2] for line in text.strip().split("\n")[:4]] == list(NAMES)
    assert "10 of 10 stages · pass@1 61.0 59.0–63.0 · held back" in text
    assert "2 of 10 stages" in text


def test_a_damaged_table_is_not_shown_as_absent(tmp_path):
    synthetic.make(tmp_path, PLAN, "r0", only={"base"})
    assert "r0" in printed(tmp_path, 80), "not evaluated yet"
    synthetic.make(tmp_path, PLAN, "r0")
    place, output = store.find(tmp_path, "r0", "measures")
    (place / output.parts[0].file).write_bytes(b"torn")
    for show in (report.show, report.show_tree):
        with pytest.raises(StoreError, match="measures/part-00000.parquet has 4 bytes"):
            printed(tmp_path, 80, show)


def test_without_rounds_it_says_what_to_do(tmp_path):
    assert "flywheel campaign" in printed(tmp_path, 80)
    assert boards.overview(tmp_path) == ""
    assert "0 of 2 stages" in printed(tmp_path, 80, report.show_tree)


def test_a_domain_without_levels_has_one_line_an_accuracy(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "LEVELS", ())
    synthetic.make(tmp_path, PLAN, "r0")
    text = printed(tmp_path, 80)
    assert cells(text, "all") == ["40.0 38.0–42.0"]
    assert "level" not in text


def lines(text, start):
    return [line.strip() for line in text.split("\n") if line.strip().startswith(start)]


def test_the_champion_is_shown_and_why_each_round_is_it_or_not(made):
    text = printed(made, 200)
    assert lines(text, "champion of") == ["champion of r0: r1"]
    [first] = lines(text, "r1 champion: +17.0 points against r0, p ")
    assert "within this look's level, 0.0083" in first
    assert lines(text, "r2 not champion: not promoted by its gates; +23.0 points against r1")
    assert not lines(text, "r3 not champion") and not lines(text, "r3 champion"), "its gates have not run"
    tree = printed(made, 200, report.show_tree)
    assert [" · champion · " in line for line in tree.split("\n")[:4]] == [False, True, False, False]
    assert lines(tree, "r1 champion: +17.0 points")


def test_a_person_s_choice_is_shown(tmp_path):
    synthetic.make(tmp_path, PLAN, "r0")
    path = tmp_path / champion.DECISION
    path.parent.mkdir(parents=True)
    path.write_text("{round: r0, digest: abc, when: '2026-01-01', by: tom}")
    assert lines(printed(tmp_path, 200), "tom promoted r0 by hand (2026-01-01)")


def test_without_prices_and_gpus_nothing_is_said_of_either(made):
    text = printed(made, 120)
    assert "money" not in text and "GPU hours" not in text and "costs" not in text


def test_money_and_gpu_hours_of_each_round_are_shown(tmp_path, monkeypatch):
    for name in ("r0", "r1"):
        synthetic.make(tmp_path, PLAN, name)
    path = tmp_path / "data/round=r1/manifests/train.json"
    held = {"gpus": ["H100"], "gpu_seconds": 5400.0}
    path.write_text(store.read_manifest(path).model_copy(update=held).text)
    prices = Prices(gpu_hour=2, currency="EUR", tokens={"fake": {"completion": 10}})
    for module in (report, boards):
        monkeypatch.setattr(module, "load_params", lambda root: replace(PLAN, prices=prices))
    text = printed(tmp_path, 120)
    assert cells(text, "GPU hours") == ["0.00", "1.50"]
    asking = [s for s in store.manifests(tmp_path, "r1").values() if s.plan.engine]
    assert cells(text, "money, EUR")[1] == f"{3 + len(asking) * 0.2:.2f}", "20,000 tokens of each stage with an engine"
    assert "| money, EUR |" in boards.overview(tmp_path)


def test_tokens_are_told_apart_by_engine_where_there_are_several(tmp_path):
    synthetic.make(tmp_path, PLAN, "r1")
    path = tmp_path / "data/round=r1/manifests/judge.json"
    manifest = json.loads(path.read_text())
    manifest["plan"]["models"] = {"large": {"engine": {"strategy": "openai"}}}
    counts = {"requests": 5, "prompt_tokens": 1000, "completion_tokens": 234}
    usage = {"usage": {"large": counts, "parent": counts}}
    path.write_text(store.Manifest.model_validate(manifest | usage).text)
    text = printed(tmp_path, 120)
    assert cells(text, "of large") == ["1,234"]
    assert cells(text, "of fake")


def test_warnings_are_shown(tmp_path):
    synthetic.make(tmp_path, PLAN, "r0", warnings={"evaluate": ["3 answers\x1b[2J were\ncut", "no [levels]"]})
    text = printed(tmp_path, 200)
    assert lines(text, "evaluate@r0:") == ["evaluate@r0: 3 answers�[2J were⏎cut", "evaluate@r0: no [levels]"]


# What is stale, and what is missing


def edit_r2(monkeypatch):
    """Plans after an edit of r2's judge."""

    def edited(root, pipeline):
        plans = synthetic.plans(root, pipeline)
        judge = plans["r2", "judge"]
        return plans | {("r2", "judge"): judge.model_copy(update={"members": {"other": {"strategy": "other"}}})}

    for module in (freshness, report):
        monkeypatch.setattr(module, "plans", edited)


def test_what_an_edit_made_stale_is_shown(made, monkeypatch):
    assert "stale" not in printed(made, 120) + printed(made, 120, report.show_tree)
    edit_r2(monkeypatch)
    text, tree = printed(made, 200), printed(made, 200, report.show_tree)
    assert cells(text, "stages  ") == ["current", "current", "8 stale", "2 stale"]
    assert lines(text, "r2 is stale") == ["r2 is stale: judge (members edited) and what comes after; `flywheel run r2`"]
    assert [" stale · " in line for line in tree.split("\n")[:4]] == [False, False, True, False]
    assert lines(tree, "r3 is stale: prompts")


def test_what_is_missing_is_shown(tmp_path):
    for name in ("r0", "r1"):
        synthetic.make(tmp_path, PLAN, name)
    place, output = store.find(tmp_path, "r1", "responses")
    (place / output.parts[0].file).unlink()
    for show in (report.show, report.show_tree):
        text = printed(tmp_path, 200, show)
        assert lines(text, "r1 lacks") and "part-00000.parquet" in lines(text, "r1 lacks")[0]
        assert "1 missing" in text


def test_the_champion_and_the_round_that_a_person_promoted_are_in_the_table(made, tmp_path):
    assert cells(printed(made, 120), "champion  ") == ["champion"]
    for name in ("r0", "r1"):
        synthetic.make(tmp_path, PLAN, name)
    path = tmp_path / champion.DECISION
    path.parent.mkdir(parents=True)
    path.write_text("{round: r0, digest: abc, when: '2026-01-01', by: tom}")
    assert cells(printed(tmp_path, 120), "champion  ") == ["by tom", "champion"]
    assert " · promoted by tom · " in printed(tmp_path, 120, report.show_tree)


def test_the_verdict_on_a_round_is_one_line(made, monkeypatch):
    first, second = (report.verdict_line(made, name) for name in ("r1", "r2"))
    assert first.startswith("r1: promoted; pass@1 57.0 % (r0: 40.0 %); kept 6 of ")
    assert first.endswith("; champion of r0: r1")
    assert second.startswith("r2: held back by improves (refused by improves); pass@1 61.0 %")
    assert "kept" not in report.verdict_line(made, "r0")
    assert "10 of 10" not in first and "money" not in first
    assert "r3: 2 of 10 stages; champion" in report.verdict_line(made, "r3"), "it was stopped"
    monkeypatch.setattr(report, "load_params", lambda root: replace(PLAN, prices=Prices(tokens={"fake": 10})))
    assert "; money: " in report.verdict_line(made, "r1")


def test_accuracies_below_the_parent_s_interval_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(synthetic.ACCURACY, "r2", 0.5)
    for name in ("r0", "r1", "r2"):
        synthetic.make(tmp_path, PLAN, name)
    [worse] = [p for p in report.outcome(tmp_path, PLAN, PLAN.block("r2")) if p.startswith("below r1's interval: ")]
    assert "pass_at_1/level_4" in worse and "greedy" in worse


def test_prompts_are_counted_with_those_that_were_rejected(made):
    facts = report.Facts(PLAN.block("r1"), {})
    metrics = {"prompts": 700.0, "prompts_rejected/malformed": 618.0}
    object.__setattr__(
        facts, "stages", {"prompts": store.manifests(made, "r1")["prompts"].model_copy(update={"metrics": metrics})}
    )
    text = {line.label.strip(): line.cells[0] for group in report.groups([facts]) for line in group.lines}
    assert [text[k].text for k in ("prompts written", "rejected: malformed", "used")] == ["1,318", "618", "700"]


# Many rounds

MANY = 19


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A base and 19 rounds in a row, each with its exam and gates."""
    root, pipeline = tmp_path_factory.mktemp("many"), synthetic.pipeline(*(f"r{n}" for n in range(1, MANY + 1)))
    for name in pipeline.blocks:
        synthetic.make(root, pipeline, name, only={"base", "evaluate", "gate"}, promoted=name == "r2")
    return root, pipeline


@pytest.fixture
def of_many(many, monkeypatch):
    monkeypatch.setattr(report, "load_params", lambda root: many[1])
    return many[0]


def test_of_many_rounds_the_newest_and_those_in_force_are_shown(of_many):
    text = printed(of_many, 120)
    names = {word for line in text.split("\n") if line.startswith("  ") and " r" in line for word in line.split()}
    assert {"r0", "r2", f"r{MANY}", f"r{MANY + 1 - report.NEWEST}"} <= names, (
        "the base, the champion, and the last ones"
    )
    assert not {"r1", "r3", f"r{MANY - report.NEWEST}"} & names
    assert f"{MANY - report.NEWEST - 1} earlier rounds are not shown; `flywheel report --all`" in text
    whole = printed(of_many, 120, lambda root, console: report.show(root, console, whole=True))
    assert "not shown" not in whole
    assert lines(whole, "r3 not champion") and not lines(text, "r3 not champion")


def test_deep_rounds_stand_below_each_other_and_name_their_parents(of_many):
    shown = [line for line in printed(of_many, 120, report.show_tree).split("\n") if "stages" in line]
    assert [line.lstrip(" │├└─").split()[0] for line in shown] == [
        "r0", *(f"r{n}" for n in range(1, MANY + 1))
    ]  # fmt: skip
    indent = [len(line) - len(line.lstrip(" │├└─")) for line in shown]
    assert indent[:4] == [0, 4, 8, 12] and indent[-1] == 4 * report.DEPTH
    assert "r19 from r18  " in shown[-1] and "r3  " in shown[3]


def test_plans_are_made_once_and_only_tables_that_are_shown_are_read(of_many, monkeypatch):
    made, read = [], []
    monkeypatch.setattr(report, "plans", lambda *a: made.append(a) or synthetic.plans(*a))
    for module in (champion, freshness):
        monkeypatch.setattr(module, "plans", None)
    printed(of_many, 120)
    scan = pl.scan_parquet
    monkeypatch.setattr(pl, "scan_parquet", lambda files, **kw: read.extend(files) or scan(files, **kw))
    printed(of_many, 120)
    assert len(made) == 2
    assert {store.round_of(Path(path)) for path in read} == {"r0", "r2", *(f"r{n}" for n in range(4, 20))}


def test_a_table_of_a_round_that_is_not_shown_is_checked_too(many, tmp_path, monkeypatch):
    root = Path(shutil.copytree(many[0], tmp_path / "copy"))
    monkeypatch.setattr(report, "load_params", lambda root: many[1])
    path = root / "data/round=r3/measures/part-00000.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert lines(printed(root, 200), "r3 is damaged")


@pytest.mark.torture(
    "a part or manifest with a flipped bit, cut, swapped or deleted",
    "`report` and `round list` name the file and the fix",
)
def test_a_report_finds_a_mutation_of_a_stored_file(tmp_path, tries):
    for name in ("r0", "r1"):
        synthetic.make(tmp_path / "made", PLAN, name)
    for manifest in tmp_path.glob("made/data/round=*/manifests/*.json"):  # as stages write them
        (manifest.parents[1] / "metrics").mkdir(exist_ok=True)
        (manifest.parents[1] / "metrics" / manifest.name).write_text("{}")
    for attempt in tries(200):
        rng, root = random.Random(attempt), Path(shutil.copytree(tmp_path / "made", tmp_path / "copy"))
        files = sorted(p for kind in ("manifests/*.json", "*/*.parquet") for p in root.glob(f"data/round=*/{kind}"))
        path, data = (chosen := rng.choice(files)), chosen.read_bytes()
        other = rng.choice([p for p in files if p.suffix == path.suffix and p.read_bytes() != data])
        at = rng.randrange(len(data))
        path.unlink()
        if new := rng.choice((data[:at], data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], other.read_bytes(), None)):
            path.write_bytes(new)
        for show in (report.show, report.show_tree):
            try:
                text = printed(root, 1000, show)
            except StoreError as error:
                text = str(error)
            assert "/".join(path.parts[-2:]) in text, (attempt, path, new)
            assert re.search("`dvc (checkout --force|pull)`", text)
        shutil.rmtree(root)
