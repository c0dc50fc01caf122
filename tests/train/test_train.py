"""Which rows a round is trained on, with a strategy that only records what it is given."""

from typing import Any

import polars as pl
import pytest
from pydantic import PrivateAttr

from tasks import tables
from tasks import train as stage
from tasks.domains import Domain
from tasks.train import CURVE, Training

QUESTION = [{"role": "user", "content": "2+2?"}]


def table(name, rows=()):
    schema = tables.frame(tables.TABLES[name]).collect_schema()
    return pl.DataFrame(list(rows), schema=schema).lazy()


class Recorder(Training):
    _seen: list[Any] = PrivateAttr(default_factory=list)

    def __call__(self, rows, pairs, *, parent_model, model, work, seed, domain):
        self._seen.append((rows, pairs))
        (model / "weights").write_text("trained")
        steps = {"step": [1, 2, 1], "phase": ["sft", "sft", "dpo"], "name": ["loss"] * 3, "value": [2.0, 1.0, 0.5]}
        return pl.DataFrame(steps, schema=CURVE)


class PairRecorder(Recorder):
    learns_from_pairs = True


RESPONSES = [
    {"id": f"r{n}", "prompt_id": "p1", "response": f"Answer: {n}", "answer": str(n), "model": "m1"} for n in range(4)
]
FILTERED = [
    {"id": f"r{n}", "prompt_id": "p1", "kept": n < 2, "reason": None if n < 2 else "score", "score": 1.0}
    for n in (3, 1, 2, 0)
]
CRITIQUES = [
    {"id": f"c{n}", "response_id": f"r{n + 2}", "prompt_id": "p1", "critique": f"look at {n}", "kept": n == 0,
     "prompt": [{"role": "user", "content": "criticise"}], "model": "m1"}
    for n in range(2)
]  # fmt: skip
REFINEMENTS = [
    {"id": f"f{n}", "critique_id": critique, "response_id": "r2", "prompt_id": "p1", "sample": n, "response": text,
     "success": success, "hinted": True, "model": "m1"}
    for n, (critique, text, success) in enumerate(
        [("c0", "no", False), ("c0", "yes", True), ("c0", "yes too", True), ("c1", "mute", None), ("c1", "yes", True)]
    )
]  # fmt: skip
OLD = [
    {"id": f"old{n}", "prompt_id": "q", "response_id": f"o{n}", "model": "m0", "source": "responses",
     "prompt": QUESTION, "completion": [{"role": "assistant", "content": str(n)}]}
    for n in range(20)
]  # fmt: skip
PAIRS = [
    {"id": "d1", "prompt_id": "p1", "prompt": QUESTION, "chosen_id": "r0", "rejected_id": "r1", "chosen_score": 1.0,
     "rejected_score": 0.0}
]  # fmt: skip


@pytest.fixture
def run(tmp_path):
    def call(params, seed=1, **given):
        parent, model = tmp_path / "parent", tmp_path / "model"
        parent.mkdir(exist_ok=True)
        (parent / "weights").write_text("the parent's")
        model.mkdir(exist_ok=True)
        names = ("prompts", "responses", "filtered", "critiques", "refinements", "pairs")
        frames = {name: table(name, given.get(name, ())) for name in names}
        old = table("training", given.get("old", ()))
        places = {"parent_model": parent, "model": model, "work": tmp_path}
        return stage.train(params, **frames, parent_training=old, **places, seed=seed, domain=Domain())

    return call


PROMPTS = [{"id": "p1", "problem": "2+2?", "prompt": QUESTION}, {"id": "p2", "problem": "3", "prompt": QUESTION}]
ALL = {"prompts": PROMPTS, "responses": RESPONSES, "filtered": FILTERED, "critiques": CRITIQUES,
       "refinements": REFINEMENTS, "old": OLD}  # fmt: skip


def trained(result):
    rows = result.frames["training"].iter_rows(named=True)
    return sorted((r["source"], r["response_id"], r["completion"][0]["content"]) for r in rows)


def test_every_source(run):
    params = Recorder(replay=0.0)
    result = run(params, **ALL)
    assert trained(result) == [
        ("critiques", "r2", "look at 0"),
        ("refinements", "f1", "yes"),  # one a critique, and each text once
        ("responses", "r0", "Answer: 0"),
        ("responses", "r1", "Answer: 1"),
    ]
    rows = {r["source"]: r for r in result.frames["training"].iter_rows(named=True)}
    assert rows["refinements"]["prompt"] == rows["responses"]["prompt"] == QUESTION
    assert rows["critiques"]["prompt"] == CRITIQUES[0]["prompt"]
    assert rows["responses"]["completion"][0]["role"] == "assistant"
    assert params._seen[0][0].equals(result.frames["training"])
    assert result.metrics == {"trained": 1.0, "sft_loss": 1.0, "dpo_loss": 0.5}
    assert result.plots["train"].rows() == [("sft", 1, 2.0), ("sft", 2, 1.0), ("dpo", 1, 0.5)]


def test_sources_can_be_left_out(run):
    assert {s for s, *_ in trained(run(Recorder(refinements=False, critiques=False), **ALL))} == {"responses"}


def test_replay_is_a_share_of_the_new_rows_drawn_by_seed(run):
    params = Recorder(replay=1.5, critiques=False, refinements=False)  # 2 new rows: 3 old ones
    one, again, other = (trained(run(params, seed, **ALL)) for seed in (1, 1, 2))
    assert [s for s, *_ in one].count("replay") == 3
    assert one == again != other
    everything = run(Recorder(replay=100.0), **ALL)
    assert everything.frames["training"].filter(source="replay").height == len(OLD)
    kept = everything.frames["training"].filter(source="replay").row(0, named=True)
    assert kept["model"] == "m0"
    assert kept["id"].startswith("old")


def test_a_row_of_the_parent_that_is_new_again_is_not_doubled(run):
    first = run(Recorder(critiques=False, refinements=False), **ALL).frames["training"]
    old = first.to_dicts() + OLD[:2]
    result = run(Recorder(replay=1.0, critiques=False, refinements=False), **ALL | {"old": old})
    # two new rows, and of the four old ones the two that are not among them
    assert sorted(result.frames["training"]["source"]) == ["replay", "replay", "responses", "responses"]


@pytest.mark.parametrize("given", [{}, {"prompts": PROMPTS, "old": OLD, "pairs": PAIRS}])
def test_an_empty_round_takes_the_parents_weights(run, tmp_path, given):
    params = Recorder(replay=1.0)
    result = run(params, **given)
    assert result.metrics == {"trained": 0.0}
    assert result.frames["training"].is_empty()
    assert (tmp_path / "model/weights").read_text() == "the parent's"
    assert params._seen == []
    assert result.plots["train"].columns == ["phase", "step", "loss"]


def test_pairs_alone_are_enough_for_who_learns_from_them(run, tmp_path):
    params = PairRecorder()
    assert run(params, pairs=PAIRS).metrics["trained"] == 1.0
    assert params._seen[0][1]["id"].to_list() == ["d1"]


def test_rows_do_not_depend_on_the_order_of_the_input(run):
    turned = {name: rows[::-1] for name, rows in ALL.items()}
    one, two = (run(Recorder(replay=1.0), **given).frames["training"] for given in (ALL, turned))
    assert one.equals(two)
    assert one["id"].is_unique().all()
    assert one["id"].is_sorted()


def test_the_stage_says_what_it_reads():
    assert {i.argument for i in stage.train.inputs} == {
        "prompts", "responses", "filtered", "critiques", "refinements", "pairs", "parent_training", "parent_model",
    }  # fmt: skip
    assert stage.train.folders == ("model",)
