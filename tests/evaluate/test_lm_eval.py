"""Tasks of lm-evaluation-harness, made from local files, on scripted engines and on a real small model."""

import json
import math
import sys
from pathlib import Path

import polars as pl
import projects
import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from tasks.core import roster, store
from tasks.core.errors import FlywheelError, UnknownName
from tasks.domains.arithmetic import Arithmetic
from tasks.engines.fake import Fake
from tasks.engines.transformers import Transformers
from tasks.evaluate import evaluate
from tasks.evaluate.lm_eval import LmEval, harness_measures
from tasks.project import pipeline
from tasks.project.execute import run_stage
from tasks.project.params import load_params
from tasks.project.plan import Plan
from tasks.project.plan import write as write_plans

SEEDS = Path("data/seeds")
SUMS = [{"problem": f"What is {n} + {n}?", "answer": str(2 * n), "wrong": str(2 * n + 1)} for n in range(6)]
DATA = {
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "data/seeds/sums.jsonl"}},
    "test_split": "test",
}
GENERATE = DATA | {
    "task": "sums", "output_type": "generate_until", "doc_to_text": "{{problem}}", "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 12},
    "filter_list": [{"name": "number", "filter": [
        {"function": "regex", "regex_pattern": "Answer: (-?\\d+)"}, {"function": "take_first"}]}],
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 1.5},
}  # fmt: skip
CHOOSE = DATA | {
    "task": "pick", "output_type": "multiple_choice", "doc_to_text": "{{problem}}", "doc_to_choice": "{{[answer, wrong]}}",
    "doc_to_target": 0, "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")],
    "metadata": {"version": 2},
}  # fmt: skip
RECALL = DATA | {
    "task": "recall", "output_type": "loglikelihood", "doc_to_text": "{{problem}}", "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": m, "aggregation": m if m == "perplexity" else "mean", "higher_is_better": m == "acc"} for m in ("acc", "perplexity")],
    "metadata": {"version": 0},
}  # fmt: skip


def write(*tasks, root=Path()):
    """The files of some tasks and their data."""
    folder = root / SEEDS
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SUMS))
    for task in tasks:
        YAML().dump(task, folder / f"{task['task']}.yaml")
    return [SEEDS / "sums.jsonl", *(SEEDS / f"{task['task']}.yaml" for task in tasks)]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    return tmp_path


def models(engine, cache=None, folder=Path("model")):
    return roster.Models({"model": roster.Source(engine, lambda: folder)}, cache)


def run(member, engine, **how):
    opened = models(engine, **how)
    result = evaluate({"lm_eval": member}, {}, opened, Arithmetic(), 1)
    opened.close()
    return result, opened


def values(result):
    return dict(result.frames["measures"].select("name", "value").iter_rows())


def right_about(*wrong):
    """An engine that solves the sums, but for some."""

    def answer(messages, seed):
        n = int(messages[-1][1].split()[2])
        return f"Answer: {2 * n + (n in wrong)}\nand more"

    return Fake.scripted(answer)


def test_a_generated_answer_is_extracted_and_marked_by_the_harness(here):
    result, _ = run(LmEval(tasks=["sums"], files=write(GENERATE)), right_about(1, 4))
    told = values(result)
    assert told["lm_eval/sums/exact_match"] == pytest.approx(4 / 6)
    assert told["lm_eval/sums/exact_match_stderr"] == pytest.approx(math.sqrt(4 / 6 * 2 / 6 / 5))
    assert told["lm_eval/sums/version"] == 1.5
    assert (told["lm_eval/sums/num_fewshot"], told["lm_eval/sums/errors"]) == (0, 0)
    assert result.metrics["lm_eval/sums/exact_match_stderr"] == told["lm_eval/sums/exact_match_stderr"]
    measure = result.frames["measures"].row(by_predicate=pl.col("name") == "lm_eval/sums/exact_match", named=True)
    assert measure["count"] == 6
    assert measure["high"] - measure["value"] == pytest.approx(1.96 * told["lm_eval/sums/exact_match_stderr"], rel=1e-3)
    rows = result.frames["evals"].sort("problem")
    assert rows["problem"].to_list() == [s["problem"] for s in SUMS]
    assert rows["correct"].to_list() == [True, False, True, True, False, True]
    assert rows.select("split", "mode", "response", "answer", "member").row(1) == (
        "sums", "greedy", "Answer: 3\nand more", "3", "lm_eval",
    )  # fmt: skip


def test_examples_are_earlier_turns_and_the_first_items_can_be_enough(here):
    chats = []

    def answer(messages, seed):
        chats.append(messages)
        return "Answer: 0"

    member = LmEval(tasks=["sums"], files=write(GENERATE), num_fewshot=2, limit=3)
    result, opened = run(member, Fake.scripted(answer))
    assert {tuple(role for role, _ in chat) for chat in chats} == {("user", "assistant") * 2 + ("user",)}
    assert all(chat[1][1] in {s["answer"] for s in SUMS} for chat in chats)
    assert (values(result)["lm_eval/sums/num_fewshot"], opened.total("requests")) == (2, 3)


def test_the_likeliest_choice_is_the_answer_and_a_recalled_text_is_the_greedy_one(here):
    member = LmEval(tasks=["pick", "recall"], files=write(CHOOSE, RECALL))
    engine = Fake.scripted(lambda messages, seed: str(2 * int(messages[-1][1].split()[2])))
    result, opened = run(member, engine)
    told = values(result)
    rows = result.frames["evals"].filter(split="pick").sort("problem")
    assert told["lm_eval/pick/acc"] == pytest.approx(rows["correct"].mean())
    assert 0 < told["lm_eval/pick/acc"] < 1  # else it would show nothing
    assert [a == s["answer"] for a, s in zip(rows["answer"], SUMS, strict=True)] == rows["correct"].to_list()
    assert told["lm_eval/recall/acc"] == 1
    assert told["lm_eval/recall/perplexity"] > 1
    assert told["lm_eval/recall/perplexity_stderr"] > 0
    assert opened.total("requests") == 12 + 6 + 6  # two choices an item; one text an item, and its greedy answer


def test_an_item_whose_request_failed_counts_in_nothing_but_errors(here):
    files = write(GENERATE, CHOOSE)
    for task in ("sums", "pick"):
        flaky, _ = run(LmEval(tasks=[task], files=files), Fake.scripted(lambda m, s: "Answer: 0", error_rate=0.4))
        rows, told = flaky.frames["evals"], values(flaky)
        failed = rows.filter(pl.col("error").is_not_null())
        assert 0 < len(failed) < len(rows) == 6
        assert told[f"lm_eval/{task}/errors"] == pytest.approx(len(failed) / 6)
        metric = "exact_match" if task == "sums" else "acc"
        good = rows.filter(pl.col("error").is_null())
        assert told[f"lm_eval/{task}/{metric}"] == pytest.approx(good["correct"].mean())
        assert failed["correct"].null_count() == failed["score"].null_count() == len(failed)


def test_nothing_is_measured_where_all_failed(here):
    result, opened = run(LmEval(tasks=["sums"], files=write(GENERATE)), Fake(error_rate=1.0))
    assert values(result) == {"lm_eval/sums/errors": 1.0}
    with pytest.raises(FlywheelError, match="max_error_share"):
        opened.check()


def test_draws_follow_the_seed_and_a_namesake_draws_and_is_called_otherwise(here):
    sampled = GENERATE | {"generation_kwargs": {"do_sample": True, "temperature": 0.7}}
    files = write(sampled)
    engine = Fake.scripted(lambda messages, seed: f"Answer: {seed % 1000}")

    def staged(seed):
        members = {"lm_eval": LmEval(tasks=["sums"], files=files), "again": LmEval(tasks=["sums"], files=files)}
        return evaluate(members, {}, models(engine), Arithmetic(), seed)

    once, twice, other = staged(1), staged(1), staged(2)
    assert once.frames["evals"].equals(twice.frames["evals"])
    answers = {
        m: once.frames["evals"].filter(member=m).sort("problem")["answer"].to_list() for m in ("lm_eval", "again")
    }
    assert answers["lm_eval"] != answers["again"]
    assert set(other.frames["evals"]["answer"]) != set(once.frames["evals"]["answer"])
    assert set(once.frames["evals"]["mode"]) == {"sampled"}
    assert {"lm_eval/sums/exact_match", "again_lm_eval/sums/exact_match"} <= values(once).keys()


def test_several_filters_are_told_apart():
    results = {
        "results": {"t": {"alias": "t", "sample_len": 4, "em,strict": 0.5, "em_stderr,strict": 0.25, "em,loose": 1.0, "em_stderr,loose": "N/A"}},
        "versions": {"t": "draft"}, "n-shot": {"t": 5},
    }  # fmt: skip
    told = {m.name: m.value for m in harness_measures(results)}
    assert told == {
        "lm_eval/t/em/strict": 0.5,
        "lm_eval/t/em_stderr/strict": 0.25,
        "lm_eval/t/em/loose": 1.0,
        "lm_eval/t/num_fewshot": 5.0,
    }


def test_a_real_model_gives_the_same_with_an_empty_cache_and_a_full_one(here, tiny_model):
    member = LmEval(tasks=["sums", "pick"], files=write(GENERATE, CHOOSE))
    runs = [run(member, Transformers(batch_size=4), cache=here / c, folder=tiny_model)[0] for c in ("a", "a", "b")]
    for again in runs[1:]:
        assert again.frames["evals"].equals(runs[0].frames["evals"])
        assert again.frames["measures"].equals(runs[0].frames["measures"])
    assert 0 <= values(runs[0])["lm_eval/pick/acc"] <= 1


@pytest.mark.parametrize(
    ("broken", "word"),
    [
        (GENERATE | {"dataset_kwargs": {"data_files": {"test": "data/seeds/none.jsonl"}}}, "none.jsonl"),
        (GENERATE | {"unsafe_code": True}, "code that models write"),
        (GENERATE | {"output_type": "loglikelihood_rolling"}, "perplexity"),
        (GENERATE | {"dataset_path": "someone/somewhere", "dataset_kwargs": {}}, "hub"),
        (GENERATE | {"output_type": "guess"}, "guess"),
    ],
)
def test_a_task_that_cannot_be_run_is_told_with_its_name(here, broken, word):
    with pytest.raises(FlywheelError, match=word) as raised:
        run(LmEval(tasks=["sums"], files=write(broken)), Fake())
    assert "sums" in str(raised.value)


def test_a_file_that_dvc_would_not_see_is_refused(here):
    data, task = write(GENERATE)
    with pytest.raises(FlywheelError, match=r"sums\.jsonl.*evaluate\.lm_eval\.files"):
        run(LmEval(tasks=["sums"], files=[task]), Fake())
    write(CHOOSE)
    with pytest.raises(FlywheelError, match=r"pick\.yaml.*evaluate\.lm_eval\.files"):
        run(LmEval(tasks=["pick"], files=[data, task]), Fake())


@pytest.mark.parametrize("unseen", ["base.yaml", "functions.py", "sums.yaml", "sums.jsonl"])
def test_whatever_decides_an_item_is_among_the_files(here, unseen):
    """What a group names, a YAML includes or calls, and what a pattern stands for."""
    write(GENERATE)
    YAML().dump({k: v for k, v in GENERATE.items() if k != "task"} | {
        "dataset_kwargs": {"data_files": {"test": "data/seeds/su*.jsonl"}}}, SEEDS / "base.yaml")  # fmt: skip
    (SEEDS / "functions.py").write_text("def text(doc):\n    return doc['problem']\n")
    (SEEDS / "sums.yaml").write_text("include: base.yaml\ntask: sums\ndoc_to_text: !function functions.text\n")
    YAML().dump({"group": "all", "task": ["sums"]}, SEEDS / "all.yaml")
    names = ("all.yaml", "sums.yaml", "base.yaml", "functions.py", "sums.jsonl")
    told = values(run(LmEval(tasks=["all"], files=[SEEDS / name for name in names]), right_about(1))[0])
    assert told["lm_eval/sums/exact_match"] == pytest.approx(5 / 6)
    with pytest.raises(FlywheelError, match=rf"{unseen}.*evaluate\.lm_eval\.files"):
        run(LmEval(tasks=["all"], files=[SEEDS / name for name in names if name != unseen]), right_about(1))


def test_a_longer_answer_is_not_the_recalled_text(here):
    member = LmEval(tasks=["recall"], files=write(RECALL))
    told = values(run(member, Fake.scripted(lambda messages, seed: f"{2 * int(messages[-1][1].split()[2])}7"))[0])
    assert told["lm_eval/recall/acc"] == 0


def test_an_unknown_task_is_answered_with_the_nearest(here):
    with pytest.raises(UnknownName, match="gsm8k"):
        run(LmEval(tasks=["gsm8kk"]), Fake())


def test_an_engine_that_cannot_score_is_told_what_can(here):
    class Mute(Fake):
        scores = False

    files = write(CHOOSE, GENERATE)
    with pytest.raises(FlywheelError, match="generate_until"):
        run(LmEval(tasks=["pick"], files=files), Mute())
    run(LmEval(tasks=["sums"], files=files), Mute())


def test_without_the_extra_the_way_to_it_is_told(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "tasks.evaluate._harness", raising=False)
    monkeypatch.delattr("tasks.evaluate._harness", raising=False)
    with pytest.raises(FlywheelError, match=r"pip install 'flywheel\[lm-eval\]'"):
        run(LmEval(tasks=["sums"], files=write(GENERATE)), Fake())


def test_a_list_without_tasks_is_refused():
    with pytest.raises(ValidationError, match="tasks"):
        LmEval(tasks=[])


def test_in_a_project_an_edit_of_a_task_makes_the_exam_stale_and_nothing_else(project):
    root = project(rounds=1)
    files = [str(f) for f in write(GENERATE, root=root)]

    def with_harness(params):
        params["bases"]["r0"]["evaluate"]["lm_eval"] = {"tasks": ["sums"], "files": files, "limit": 4}

    projects.rewrite(root, with_harness)
    pipeline.write(root, load_params(root))
    write_plans(root)
    run_stage(root, "r0", "base")
    manifest = run_stage(root, "r0", "evaluate")
    assert 0 <= manifest.metrics["lm_eval/sums/exact_match"] <= 1
    assert len(store.read(root, "r0", "evals").filter(pl.col("member") == "lm_eval")) == 4
    before = {
        s: Plan.read(root, "r0", s).digest
        for s in ("base", "evaluate", "gate")
        if (root / f"data/plan/r0/{s}.json").is_file()
    }
    with (root / SEEDS / "sums.jsonl").open("a") as lines:
        lines.write(json.dumps(SUMS[0]) + "\n")
    write_plans(root)
    after = {s: Plan.read(root, "r0", s).digest for s in before}
    assert {s for s in before if before[s] != after[s]} == {"evaluate"}
