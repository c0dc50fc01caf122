"""Why rows of a real project were dropped, and whether what would have kept them does."""

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import projects
import pytest
from rich.console import Console
from ruamel.yaml import YAML
from test_verify import rewrite

from tasks.core import store
from tasks.core.errors import FlywheelError, UnknownName
from tasks.core.tables import TABLES
from tasks.project import plan
from tasks.project.execute import run_stage
from tasks.views._counterfactual import Filter
from tasks.views._reasons import Answer
from tasks.views.why_not import explain, show


def ask(root: Path, id: str, round: str = "r1") -> list[Answer]:
    return explain(root, id, None, round)


def refiltered(root: Path, **filter: dict[str, Any]) -> pl.DataFrame:
    """Gives the recipe another filter, runs r1's, and returns what it dropped."""
    recipe = YAML(typ="safe").load(root / "recipes/mixed.yaml")
    recipe["stages"]["filter"] = filter
    projects.write_recipe(root, "mixed", recipe["stages"])
    plan.write(root)
    run_stage(root, "r1", "filter")
    return store.read(root, "r1", "filtered").filter(~pl.col("kept")).sort("id")


def first(rows: pl.DataFrame, reason: str) -> dict[str, Any]:
    return rows.filter(reason=reason).row(0, named=True)


# Responses


def test_a_reward_below_the_threshold(mixed: Path) -> None:
    rows = store.read(mixed, "r1", "filtered").sort("id")
    row = first(rows, "score")
    answer = ask(mixed, row["id"])[0]
    assert (answer.kept, answer.stage, answer.rule) == (False, "filter", "score")
    assert answer.facts["value"] == f"{row['score']:g} (reward)"
    assert answer.facts["threshold"] == "0.5 (filter.threshold.min_reward)"
    assert answer.facts["margin"] == f"{0.5 - row['score']:g}"
    assert answer.changes[0] == f"filter.threshold.min_reward: {row['score']:g} or less"
    assert answer.note == "tried: it is kept then"


def test_what_is_proposed_keeps_the_row_when_the_stage_runs_again(copied: Path) -> None:
    row = first(store.read(copied, "r1", "filtered").sort("id"), "score")
    filter = Filter(copied, "r1", row["prompt_id"])
    trial = filter.trial(row)
    assert trial.kept
    values = {change.parameter.rpartition(".")[2]: change.value for change in trial.changes}
    assert row["id"] not in set(refiltered(copied, threshold={"min_reward": 0.5} | values)["id"])
    tighter = values | {"min_reward": values["min_reward"] + 0.01}
    assert row["id"] in set(refiltered(copied, threshold=tighter)["id"])


def test_a_better_one_was_kept(mixed: Path) -> None:
    row = first(store.read(mixed, "r1", "filtered").sort("id"), "rank")
    kept = store.read(mixed, "r1", "filtered").filter(prompt_id=row["prompt_id"], kept=True)["id"].to_list()
    answer = ask(mixed, row["id"])[0]
    assert answer.facts["threshold"] == "1 (filter.threshold.per_prompt)"
    assert answer.facts["kept instead"] == ", ".join(kept)
    assert answer.changes == [f"filter.threshold.per_prompt: {1 + int(row['margin'])} or more"]


def test_a_duplicate_is_kept_by_no_parameter(mixed: Path) -> None:
    row = first(store.read(mixed, "r1", "filtered").sort("id"), "duplicate")
    answer = ask(mixed, row["id"])[0]
    assert answer.changes == []
    assert answer.note == "no parameter would have kept it: rule duplicate"


def place_in_level(root: Path, row: dict[str, Any]) -> int:
    """The place of a response among its level's that were kept or dropped for their level's limit."""
    levels = dict(store.read(root, "r1", "prompts").select("id", "level").iter_rows())
    likely = dict(store.read(root, "r1", "responses").select("id", "mean_logprob").iter_rows())
    rows = store.read(root, "r1", "filtered").filter(pl.col("kept") | (pl.col("reason") == "level")).to_dicts()
    own = [r for r in rows if levels[r["prompt_id"]] == levels[row["prompt_id"]]]
    own.sort(key=lambda r: (-r["score"], -likely[r["id"]], r["id"]))
    return [r["id"] for r in own].index(row["id"]) + 1 if row["reason"] == "level" else 0


@pytest.mark.parametrize(
    ("values", "reason", "expected"),
    [
        ({"min_tokens": 20}, "short", "filter.threshold.min_tokens: {tokens} or less"),
        ({"max_tokens": 20}, "long", "filter.threshold.max_tokens: {tokens} or more"),
        ({"require": {"verifier": 1.0}}, "judge/verifier", "filter.threshold.require: {{'verifier': 0.0}} or less"),
        ({"per_level": 1}, "level", "filter.threshold.per_level: {place} or more"),
    ],
)
def test_the_other_rules_of_a_threshold(copied: Path, values: dict[str, Any], reason: str, expected: str) -> None:
    row = first(refiltered(copied, threshold={"min_reward": 0.0, "per_prompt": 4} | values), reason)
    tokens = store.read(copied, "r1", "responses").row(by_predicate=pl.col("id") == row["id"], named=True)["tokens"]
    answer = ask(copied, row["id"])[0]
    assert answer.rule == reason
    assert answer.changes[0] == expected.format(tokens=tokens, place=place_in_level(copied, row))
    if answer.note.startswith("no parameter"):
        assert answer.note.endswith("duplicate")
    else:
        assert answer.note == "tried: it is kept then"


def test_the_place_in_a_fraction_is_worked_out(copied: Path) -> None:
    dropped = refiltered(copied, top_fraction={"fraction": 0.3})
    kept = store.read(copied, "r1", "filtered").filter("kept")
    row = first(dropped, "score")
    [change] = (trial := Filter(copied, "r1", row["prompt_id"]).trial(row)).changes
    assert (trial.kept, change.parameter, change.bound) == (True, "filter.top_fraction.fraction", "or more")
    assert row["id"] in set(Filter(copied, "r1", row["prompt_id"]).decide(
        Filter(copied, "r1", row["prompt_id"]).strategy.model_copy(update={"fraction": change.value})
    ).filter("kept")["id"])  # fmt: skip
    assert row["id"] in set(refiltered(copied, top_fraction={"fraction": change.value - 0.01})["id"])
    assert len(kept) == int(0.3 * (len(kept) + len(dropped.filter(reason="score"))))


def test_every_dropped_response_has_an_answer(copied: Path) -> None:
    for filter in ({"threshold": {}}, {"process_outcome": {"process": "verifier", "per_prompt": 2}}):
        for row in refiltered(copied, **filter).iter_rows(named=True):
            answer = ask(copied, row["id"])[0]
            assert answer.rule == row["reason"]
            assert answer.note in ("tried: it is kept then",) or answer.note.partition(": ")[0].endswith(
                "no parameter would have kept it"
            )


def test_a_kept_response_says_where_it_went(mixed: Path) -> None:
    training = store.read(mixed, "r1", "training").filter(source="responses").sort("id").row(0, named=True)
    answer = ask(mixed, training["response_id"])[0]
    assert (answer.kept, answer.rule) == (True, "kept by filter.threshold")
    assert f"training r1 {training['id']}" in answer.facts["went into"]
    assert answer.facts["model of r1"] == "was trained on it (sft_dpo); r2 descends from it"


def test_a_failed_generation_says_its_error(copied: Path) -> None:
    responses = store.read(copied, "r1", "responses").sort("id")
    id = responses["id"][0]
    hit = pl.col("id") == id
    none = {c: pl.when(~hit).then(pl.col(c)) for c in ("answer", "response")}
    failed = responses.with_columns(**none, error=pl.when(hit).then(pl.lit("context: 600 tokens")))
    rewrite(copied, "r1", "generate", "responses", failed)
    run_stage(copied, "r1", "filter")
    answer = ask(copied, id)[0]
    assert (answer.rule, answer.facts["error"]) == ("error", "context: 600 tokens")
    assert answer.changes == []


# Filters that compare hidden states


def kept_by(trial: Any, root: Path, member: str, row: dict[str, Any], **values: Any) -> bool:
    """Whether r1 keeps the response when its filter runs with what a trial found, or with these values."""
    found = {change.parameter.rpartition(".")[2]: change.value for change in trial.changes}
    return row["id"] not in set(refiltered(root, **{member: found | values})["id"])


@pytest.mark.parametrize(
    ("filter", "reason", "parameter"),
    [
        ({"novelty": {"min_score": 0.75}}, "novelty", "min_score"),
        ({"representation": {"fraction": 0.2}}, "near", "fraction"),
        ({"representation": {"count": 3}}, "near", "count"),
    ],
)
def test_a_filter_that_asks_a_model_is_tried_and_no_looser_than_it_must_be(
    copied: Path, filter: dict[str, Any], reason: str, parameter: str
) -> None:
    [(member, values)] = filter.items()
    row = first(refiltered(copied, **filter), reason)
    answer = ask(copied, row["id"])[0]
    assert (answer.rule, answer.note) == (reason, "tried: it is kept then")
    assert answer.facts["threshold"] == f"{values[parameter]} (filter.{member}.{parameter})"
    change = answer.parameters[0]
    assert change.parameter == f"filter.{member}.{parameter}"
    step = {"min_score": 1e-4, "fraction": -1e-4, "count": -1}[parameter]
    assert kept_by(Filter(copied, "r1", row["prompt_id"]).trial(row), copied, member, row)
    refiltered(copied, **filter)
    trial = Filter(copied, "r1", row["prompt_id"]).trial(row)
    assert not kept_by(trial, copied, member, row, **{parameter: change.value + step})


def test_without_the_model_nothing_is_tried(copied: Path) -> None:
    row = first(refiltered(copied, representation={"fraction": 0.2}), "near")
    shutil.rmtree(copied / "data/round=r0/model")
    answer = ask(copied, row["id"])[0]
    assert (answer.rule, answer.changes) == ("near", [])
    assert answer.note.startswith("not tried: ")


# Pairs


def test_a_gap_that_was_too_small(copied: Path) -> None:
    recipe = YAML(typ="safe").load(copied / "recipes/mixed.yaml")
    recipe["stages"]["pair"] = {"best_worst": {"min_margin": 0.6}}
    projects.write_recipe(copied, "mixed", recipe["stages"])
    plan.write(copied)
    before = store.read(copied, "r1", "pairs").filter(member="best_worst")
    small = before.filter(pl.col("chosen_score") - pl.col("rejected_score") < 0.6).sort("id").row(0, named=True)
    run_stage(copied, "r1", "pair")
    gap = small["chosen_score"] - small["rejected_score"]
    for id in (small["prompt_id"], small["chosen_id"], small["rejected_id"]):
        [answer] = [a for a in ask(copied, id) if a.stage == "pair"]
        assert answer.rule == "min_margin"
        assert answer.facts["value"] == f"{gap:g} (gap of the rewards)"
        assert answer.facts["threshold"] == "0.6 (pair.best_worst.min_margin)"
        assert answer.changes == [f"pair.best_worst.min_margin: {gap:g} or less"]
        assert answer.note == "tried: the pair is made then"


def test_a_pair_that_was_not_collected(copied: Path) -> None:
    recipe = YAML(typ="safe").load(copied / "recipes/mixed.yaml")
    del recipe["stages"]["collect"]["pairs"]
    projects.write_recipe(copied, "mixed", recipe["stages"])
    plan.write(copied)
    run_stage(copied, "r1", "collect")
    [answer] = ask(copied, store.read(copied, "r1", "pairs")["id"][0])
    assert (answer.kept, answer.stage, answer.changes) == (False, "collect", ["collect.pairs: {}"])


# Training rows, critiques, refinements


def test_a_training_row_that_was_too_long(copied: Path) -> None:
    recipe = YAML(typ="safe").load(copied / "recipes/mixed.yaml")
    recipe["stages"]["collect"]["max_length"] = 60
    projects.write_recipe(copied, "mixed", recipe["stages"])
    plan.write(copied)
    run_stage(copied, "r1", "collect")
    rows = store.read(copied, "r1", "training").filter(pl.col("error").is_not_null())
    row = rows.sort("id").row(0, named=True)
    [answer] = ask(copied, row["id"])
    assert (answer.kept, answer.stage, answer.rule) == (False, "collect", "long")
    assert answer.facts["threshold"] == "60 (collect.max_length)"
    assert answer.facts["margin"] == str(row["tokens"] - 60)
    assert answer.changes == [f"collect.max_length: {row['tokens']} or more"]


def test_a_critique_whose_refinements_failed_too_often(copied: Path) -> None:
    critiques = store.read(copied, "r1", "critiques")
    refined = pl.col("refinements") == 4
    poor = {
        "successes": pl.when(refined).then(1).otherwise("successes").cast(pl.Int32),
        "kept": pl.col("kept") & ~refined,
    }
    rewrite(copied, "r1", "critique", "critiques", critiques.with_columns(**poor))
    id = critiques.filter(refined).sort("id")["id"][0]
    [answer] = ask(copied, id)
    assert (answer.rule, answer.facts["value"]) == ("min_success", "0.25 (share of successes)")
    assert answer.facts["threshold"] == "0.3 (critique.auto_math.min_success)"
    assert answer.changes == ["critique.auto_math.min_success: 0.25 or less"]


def test_a_refinement_that_missed_its_target(mixed: Path) -> None:
    row = store.read(mixed, "r1", "refinements").filter(~pl.col("success")).sort("id").row(0, named=True)
    target = store.read(mixed, "r1", "critiques").filter(id=row["critique_id"])["target"][0]
    [answer] = ask(mixed, row["id"])
    assert answer.facts == {"value": row["answer"], "threshold": f"{target} (the target)"}


# Prompts


def test_a_rejected_prompt(mixed: Path) -> None:
    row = store.read(mixed, "r2", "prompts").filter(pl.col("error").str.starts_with("malformed")).row(0, named=True)
    [answer] = ask(mixed, row["id"], "r2")
    assert (answer.kept, answer.rule, answer.changes) == (False, "malformed", [])
    assert answer.note == "no parameter would have kept it"


@pytest.mark.parametrize("by_text", [False, True])
def test_a_prompt_that_is_near_another_one(copied: Path, by_text: bool) -> None:
    """In a domain of free text the likeness is worked out, and the limit that it would need."""
    exam, seeds = Path("data/seeds/exam.jsonl"), Path("data/seeds/birds.jsonl")
    exam.write_text("".join(f'{{"prompt": "Explain the number {n} to a friend"}}\n' for n in range(200)))
    domain = {"strategy": "chat", "path": str(exam)}
    projects.rewrite(copied, lambda content: content["bases"]["r0"].update(domain=domain))
    texts = ["Name seven blue birds of the north", "Name eight blue birds of the north", "Bake a cake"]
    seeds.write_text("".join(f'{{"problem": "{text}"}}\n' for text in texts))
    recipe = YAML(typ="safe").load(copied / "recipes/mixed.yaml")
    recipe["stages"]["prompts"] = {"seeds": {"path": str(seeds), "evaluation": projects.SCREEN}}
    recipe["stages"]["judge"].pop("verifier")
    projects.write_recipe(copied, "mixed", recipe["stages"])
    plan.write(copied)
    run_stage(copied, "r1", "prompts")
    rows = store.read(copied, "r1", "prompts")
    row = rows.filter(pl.col("error").str.starts_with("duplicate")).row(0, named=True)
    [answer] = explain(copied, None, "eight  blue birds", "r1") if by_text else ask(copied, row["id"])
    assert answer.rule == "duplicate"
    assert answer.facts["twin"] == texts[0]
    assert answer.facts["value"] == "0.8571 (ROUGE-L F)"
    assert answer.facts["threshold"] == "0.7 (prompts.seeds.max_similarity)"
    assert answer.changes == ["prompts.seeds.max_similarity: 0.857143 or more"]


def test_an_accepted_prompt_says_what_became_of_its_answers(mixed: Path) -> None:
    row = store.read(mixed, "r1", "filtered").filter("kept").sort("id").row(0, named=True)
    answer = ask(mixed, row["prompt_id"])[0]
    assert (answer.kept, answer.rule, answer.facts["answers"]) == (True, "accepted", "4, 1 kept")


def test_a_prompt_is_found_by_its_text(mixed: Path) -> None:
    prompts = store.read(mixed, "r2", "prompts").filter(pl.col("error").is_null()).sort("id")
    id, text = prompts["id"][0], prompts["problem"][0]
    assert explain(mixed, None, text, "r2")[0].key.id == id
    assert explain(mixed, None, text.replace("\n", "   "), "r2")[0].key.id == id
    with pytest.raises(FlywheelError, match=rf"no prompt of r2 has the text .*; near it: {id}"):
        explain(mixed, None, text.replace("Day 1", "Day one"), "r2")
    with pytest.raises(FlywheelError, match="prompts of r2 contain 'Day 1'"):
        explain(mixed, None, "Day 1", "r2")
    with pytest.raises(FlywheelError, match="and none is near it"):
        explain(mixed, None, "zzz", "r2")
    with pytest.raises(FlywheelError, match="--round"):
        explain(mixed, None, text, None)
    with pytest.raises(UnknownName, match="'r9'"):
        explain(mixed, None, text, "r9")
    with pytest.raises(FlywheelError, match="name a row by its id"):
        explain(mixed, None, None, None)


# All tables


def test_every_table_has_answers(mixed: Path) -> None:
    for round in ("r1", "r3"):
        for table in (t for t in TABLES.values() if "id" in t.schema.names):
            if not store.has(mixed, round, table.name):
                continue
            for id in store.read(mixed, round, table.name)["id"].sort()[:2]:
                assert ask(mixed, id, round), (table.name, id)


def test_json_holds_all_that_is_printed(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = first(store.read(mixed, "r1", "filtered").sort("id"), "score")
    show(mixed, row["id"], as_json=True)
    told, *more = json.loads(capsys.readouterr().out)
    assert [told[k] for k in ("table", "round", "id", "kept", "stage", "rule")] == [
        "responses", "r1", row["id"], False, "filter", "score",
    ]  # fmt: skip
    assert told["changes"][0]["parameter"] == "filter.threshold.min_reward"
    assert told["changes"][0]["value"] == pytest.approx(row["score"])
    assert (told["changes"][0]["now"], told["changes"][0]["bound"]) == (0.5, "or less")
    assert told["note"] == "tried: it is kept then"
    assert all(answer["id"] for answer in more)


@pytest.mark.parametrize("width", [80, 160])
def test_what_is_printed_fits_the_terminal(mixed: Path, width: int) -> None:
    row = first(store.read(mixed, "r1", "filtered").sort("id"), "rank")
    console = Console(width=width, force_terminal=True, color_system=None)
    with console.capture() as capture:
        show(mixed, row["id"][:8], console=console)
    lines = capture.get().splitlines()
    assert lines[0].rstrip() == f"responses r1 {row['id']}  dropped by filter: rank"
    assert max(map(len, lines)) <= width
    assert "  kept with     filter.threshold.per_prompt: 2 or more" in [line.rstrip() for line in lines]


def test_a_response_without_its_prompt_has_no_level(copied: Path) -> None:
    prompts = store.read(copied, "r1", "prompts").sort("id")
    manifest = store.manifests(copied, "r1")["prompts"]
    with store.writing(copied, "r1", "prompts") as draft:
        draft.table(TABLES["prompts"], prompts[::2])
        draft.commit(manifest.model_copy(update={"outputs": draft.outputs}))
    dropped = refiltered(copied, threshold={"per_level": 1, "min_reward": 0.0})
    orphan = first(dropped.filter(~pl.col("prompt_id").is_in(prompts[::2]["id"].implode())), "level")
    [change] = ask(copied, orphan["id"])[0].changes[:1]
    assert change.startswith("filter.threshold.per_level: ")


def test_a_decision_of_another_code_is_not_tried(copied: Path) -> None:
    dropped = refiltered(copied, threshold={"per_level": 1, "min_reward": 0.0})
    row = first(dropped, "rank") | {"reason": "level"}
    filter = Filter(copied, "r1", row["prompt_id"])
    assert filter.trial(row).reason.startswith("not tried")
    assert filter.known_change(row) is None
