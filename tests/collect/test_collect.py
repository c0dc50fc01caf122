"""Which rows a round is trained on, from where, and which are too long."""

import shutil
import subprocess
import sys

import polars as pl
import pytest

from tasks import collect as stage
from tasks.collect import CollectOptions
from tasks.collect._tokens import counts, load_tokenizer
from tasks.collect.answers import Answers
from tasks.collect.critiques import Critiques
from tasks.collect.pairs import Pairs
from tasks.collect.refinements import Refinements
from tasks.collect.replay import Replay
from tasks.core import store, tables
from tasks.core.errors import ModelRefused, ParamsError
from tasks.core.frames import frame
from tasks.core.ids import content_id, member_seed, seed_of

QUESTION = [{"role": "user", "content": "2+2?"}]
PROMPTS = [{"id": "p1", "problem": "2+2?", "prompt": QUESTION}, {"id": "p2", "problem": "3", "prompt": QUESTION}]
RESPONSES = [
    {"id": f"r{n}", "prompt_id": "p1", "response": f"Answer: {n}", "answer": str(n), "model": "m1"} for n in range(4)
]
JUDGMENTS = [
    {"id": f"{member}{n}", "response_id": f"r{n}", "prompt_id": "p1", "member": member, "reward": member == "votes",
     "score": n / 4 + (member != "votes")}
    for n in range(1, 4) for member in ("votes", "other")
]  # fmt: skip
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
PAIRS = [
    {"id": "d1", "member": "best_worst", "prompt_id": "p1", "prompt": QUESTION, "chosen_id": "r0", "rejected_id": "r1",
     "chosen": [{"role": "assistant", "content": "4"}], "rejected": [{"role": "assistant", "content": "5" * 40}],
     "chosen_score": 1.0, "rejected_score": 0.0, "weight": 0.5, "smoothing": 0.1, "source": "responses"}
]  # fmt: skip
OLD = [
    {"id": f"old{n}", "member": "answers", "prompt_id": "q", "response_id": f"o{n}", "model": "m0", "source": "responses",
     "prompt": QUESTION, "completion": [{"role": "assistant", "content": str(n)}], "weight": 3.0, "reward": 0.5,
     "label": True, "tokens": 999}
    for n in range(20)
]  # fmt: skip
ROUND = {"prompts": PROMPTS, "responses": RESPONSES, "judgments": JUDGMENTS, "filtered": FILTERED, "critiques": CRITIQUES,
         "refinements": REFINEMENTS, "pairs": PAIRS, "parent_training": OLD}  # fmt: skip
ALL = {"answers": Answers(), "refinements": Refinements(), "critiques": Critiques(), "pairs": Pairs()}


@pytest.fixture
def run(tiny_model):
    def call(members, rows, seed=1, model=tiny_model, **options):
        names = ("prompts", "responses", "judgments", "filtered", "critiques", "refinements", "pairs")
        inputs = {n: frame(tables.TABLES[n], rows.get(n, ())) for n in names}
        for ancestor in ("parent", "anchor", "grandparent"):
            name = f"{ancestor}_training"
            absent = name not in rows and ancestor != "parent"
            inputs[name] = None if absent else frame(tables.training, rows.get(name, ()))
        return stage.collect(members, CollectOptions(**options), **inputs, parent_model=model, seed=seed)

    return call


def contents(result):
    rows = result.frames["training"].iter_rows(named=True)
    return sorted((r["source"], r["response_id"], r["completion"][0]["content"]) for r in rows)


def test_every_source(run):
    result = run(ALL, ROUND)
    assert contents(result) == [
        ("critiques", "c0", "look at 0"),
        ("refinements", "f1", "yes"),  # one a critique, and each text once
        ("responses", "r0", "Answer: 0"),
        ("responses", "r1", "Answer: 1"),
    ]
    rows = {r["response_id"]: r for r in result.frames["training"].iter_rows(named=True)}
    assert rows["f1"]["prompt"] == rows["r1"]["prompt"] == QUESTION
    assert rows["c0"]["prompt"] == CRITIQUES[0]["prompt"]
    assert rows["r1"]["completion"][0]["role"] == "assistant"
    assert rows["r1"]["id"] == content_id("training", "responses", "p1", "r1", "Answer: 1")
    assert [rows[n]["reward"] for n in ("r0", "r1", "f1", "c0")] == [None, 0.25, None, None]
    assert [rows[n]["label"] for n in ("r0", "r1", "f1", "c0")] == [True, True, True, None]
    assert [rows[n]["group"] for n in ("r0", "f1", "c0")] == ["p1", "p1", "r2"]
    assert [rows[n]["member"] for n in ("r0", "f1", "c0")] == ["answers", "refinements", "critiques"]
    for row in rows.values():
        assert (row["weight"], row["tag"], row["mask"], row["error"]) == (1.0, None, None, None)
    [pair] = result.frames["preferences"].iter_rows(named=True)
    assert {k: pair[k] for k in ("id", "member", "chosen_id", "source")} == {
        "id": content_id("preferences", "p1", "r0", "r1"), "member": "pairs", "chosen_id": "r0", "source": "responses",
    }  # fmt: skip
    assert (pair["weight"], pair["smoothing"], pair["error"]) == (0.5, 0.1, None)
    assert not result.warnings


def test_a_pair_that_two_members_made_is_learned_from_once(run):
    """`anchored` comes before `best_worst`, whatever their ids; a pair the other way round is another one."""
    again = {**PAIRS[0], "id": "z9", "member": "anchored", "source": "refinements"}
    turned = {**again, "id": "z8", "chosen_id": "r1", "rejected_id": "r0"}
    rows = run({"pairs": Pairs()}, ROUND | {"pairs": [*PAIRS, again, turned]}).frames["preferences"]
    assert set(rows.select("chosen_id", "rejected_id", "source").rows()) == {
        ("r0", "r1", "refinements"), ("r1", "r0", "refinements"),
    }  # fmt: skip
    assert len(rows) == rows["id"].n_unique() == 2


def test_a_source_is_a_member_with_a_weight_of_its_own(run):
    rows = run({"kept": Answers(weight=0.5), "critics": Critiques(weight=2.0)}, ROUND).frames["training"]
    assert set(rows.select("source", "member", "weight").rows()) == {
        ("responses", "kept", 0.5), ("critiques", "critics", 2.0),
    }  # fmt: skip


def test_what_it_gives_passes_the_checks_of_its_tables(run, tmp_path):
    result = run(ALL | {"replay": Replay()}, ROUND)
    with store.writing(tmp_path, "r1", "collect") as draft:
        metrics = {}
        for table in (tables.training, tables.preferences):
            metrics |= draft.table(table, result.frames[table.name])
    assert metrics["training_rows"] == 5
    assert metrics["training_rows/replay"] == metrics["preferences"] == 1


def test_tokens_are_those_that_the_trainer_sees(run, tiny_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    result = run(ALL, ROUND)

    def tokens(row, completion):
        return len(tokenizer.apply_chat_template(row["prompt"] + row[completion])["input_ids"])

    rows = result.frames["training"].to_dicts()
    assert [r["tokens"] for r in rows] == [tokens(r, "completion") for r in rows]
    [pair] = result.frames["preferences"].to_dicts()
    assert pair["tokens"] == tokens(pair, "rejected") > tokens(pair, "chosen")


def test_a_longer_row_is_named_and_told(run):
    rows = run(ALL, ROUND).frames["training"]
    longest = rows["tokens"].max()
    result = run(ALL, ROUND, max_length=longest - 1)
    long = result.frames["training"].filter(pl.col("error").is_not_null())
    assert long["error"].to_list() == [f"long: {longest} tokens, max_length is {longest - 1}"] * len(long)
    assert long["id"].to_list() == rows.filter(pl.col("tokens") == longest)["id"].to_list()
    assert result.frames["preferences"]["error"][0].startswith("long: ")
    assert len(result.warnings) == 2
    assert all("max_length" in w for w in result.warnings)
    assert not run(ALL, ROUND, max_length=500).warnings


def test_a_row_that_the_template_refuses_is_named_and_told(run, tiny_model, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "strict")
    template = "{% for m in messages %}{% if m.content == 'criticise' %}{{ raise_exception('no critics') }}{% endif %}{{ m.content }}{% endfor %}"
    (model / "chat_template.jinja").write_text(template)
    result = run(ALL, ROUND, model=model)
    refused = result.frames["training"].filter(pl.col("error").is_not_null())
    assert refused.select("source", "error", "tokens").rows() == [("critiques", "template: no critics", None)]
    assert "no critics" in result.warnings[0]
    (model / "chat_template.jinja").write_text("{{ raise_exception('nobody') }}")
    nothing = run(ALL, ROUND, model=shutil.copytree(model, tmp_path / "stricter"))
    assert nothing.frames["training"]["error"].to_list() == ["template: nobody"] * 4
    assert len(nothing.warnings) == 3


def test_a_model_without_a_chat_template_is_refused(run, tiny_model, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "plain")
    (model / "chat_template.jinja").unlink()
    with pytest.raises(ModelRefused, match="chat_template.jinja"):
        run(ALL, ROUND, model=model)


def test_without_rows_no_model_is_looked_at_and_it_is_told(run, tmp_path):
    result = run(ALL | {"replay": Replay()}, {"prompts": PROMPTS, "parent_training": OLD}, model=tmp_path / "none")
    assert all(rows.is_empty() for rows in result.frames.values())
    assert len(result.warnings) == 1


LOADING = """
import sys
from pathlib import Path
from tasks.collect._tokens import load_tokenizer
load_tokenizer(Path(sys.argv[1]))
print("torch" in sys.modules)
"""


@pytest.mark.parametrize(("kind", "imported"), [("TokenizersBackend", "False"), ("LlamaTokenizer", "True")])
def test_the_tokenizer_is_the_one_of_the_engines_and_torch_is_not_imported_for_a_plain_one(
    tiny_model, tmp_path, kind, imported
):
    from transformers import AutoTokenizer

    model = shutil.copytree(tiny_model, tmp_path / "model")
    config = model / "tokenizer_config.json"
    config.write_text(config.read_text().replace("TokenizersBackend", kind))
    command = [sys.executable, "-c", LOADING, str(model)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() == imported
    ours, theirs = load_tokenizer(model), AutoTokenizer.from_pretrained(model)
    assert type(ours) is type(theirs)
    texts = ["Tom has 12 pens.\nDay 1: 5 found", "<|user|>é <eos>  x"]
    assert ours(texts)["input_ids"] == theirs(texts)["input_ids"]


def test_special_tokens_are_counted_once(tiny_model):
    # <|user|> a <|assistant|> b <eos>
    chats = [pl.Series([[{"role": role, "content": text}]]) for role, text in (("user", "a"), ("assistant", "b"))]
    assert counts(tiny_model, *chats) == ([5], [None])


def test_replay_is_a_share_of_the_new_rows_drawn_by_seed(run):
    members = {"answers": Answers(), "replay": Replay(share=1.5, weight=0.5)}  # 2 new rows: 3 old ones
    results = [run(members, ROUND, seed) for seed in (1, 1, 2)]
    one, again, other = map(contents, results)
    assert one == again != other
    replayed = results[0].frames["training"].filter(source="replay")
    order = sorted(OLD, key=lambda row: seed_of("replay", 1, row["id"]))
    assert set(replayed["id"]) == {row["id"] for row in order[:3]}
    columns = ("model", "member", "weight", "reward", "label")
    assert set(replayed.select(columns).rows()) == {("m0", "replay", 1.5, 0.5, True)}  # 3.0 there, times 0.5
    assert replayed["tokens"].max() < 20  # counted again
    everything = run({"answers": Answers(), "replay": Replay(share=100.0)}, ROUND).frames["training"]
    assert everything.filter(source="replay").height == len(OLD)


@pytest.mark.parametrize(("old", "warnings"), [([], ["0 of 3"]), (OLD[:2], ["2 of 3"]), (OLD[:3], []), (OLD, [])])
def test_a_replay_with_too_few_rows_warns(run, old, warnings):
    result = run({"answers": Answers(), "more": Replay(share=1.5)}, ROUND | {"parent_training": old})
    assert [w.partition(" rows")[0] for w in result.warnings] == [f"more: {w}" for w in warnings]
    assert not run({"more": Replay(share=0.0)}, ROUND | {"parent_training": []}).frames["training"].height


def test_a_second_replay_draws_by_its_own_name(run):
    members = {"answers": Answers(), "replay": Replay(share=2.0), "more": Replay(share=2.0)}
    rows = run(members, ROUND).frames["training"]
    order = sorted(OLD, key=lambda row: seed_of("replay", member_seed(1, "more", "replay"), row["id"]))
    assert set(rows.filter(member="more")["id"]) == {row["id"] for row in order[:4]}
    assert rows["id"].is_unique().all()


def test_a_row_of_the_parent_that_is_new_again_is_not_doubled(run):
    first = run({"answers": Answers()}, ROUND).frames["training"]
    rows = ROUND | {"parent_training": first.to_dicts() + OLD[:2]}
    result = run({"answers": Answers(), "replay": Replay(share=1.0)}, rows)
    # two new rows, and of the four old ones the two that are not among them
    assert sorted(result.frames["training"]["source"]) == ["replay", "replay", "responses", "responses"]


def test_rows_that_were_not_trained_on_are_neither_replayed_nor_counted(run):
    bad = [row | {"error": "long: 600 tokens, max_length is 512"} for row in OLD[:15]]
    rows = ROUND | {"parent_training": bad + OLD[15:]}
    replayed = (
        run({"answers": Answers(), "replay": Replay(share=100.0)}, rows).frames["training"].filter(source="replay")
    )
    assert set(replayed["id"]) == {row["id"] for row in OLD[15:]}
    assert (
        run({"answers": Answers(), "replay": Replay(share=100.0)}, ROUND, max_length=1).frames["training"].height == 2
    )


@pytest.mark.parametrize("of", ["anchor", "grandparent"])
def test_replay_of_another_ancestor(run, of):
    member = Replay(of=of, share=1.0)
    assert (member.read_tables(), Replay().read_tables()) == ({f"{of}_training"}, set())
    rows = ROUND | {f"{of}_training": [row | {"id": f"of {of} {n}"} for n, row in enumerate(OLD)]}
    replayed = run({"answers": Answers(), "replay": member}, rows).frames["training"].filter(source="replay")
    assert replayed["id"].str.starts_with(f"of {of}").all()
    assert len(replayed) == 2
    with pytest.raises(ParamsError, match=of):
        run({"answers": Answers(), "replay": member}, ROUND)


def test_rows_do_not_depend_on_the_order_of_rows_or_members(run):
    members = ALL | {"replay": Replay(share=1.0)}
    one = run(members, ROUND)
    two = run(dict(reversed(members.items())), {name: rows[::-1] for name, rows in ROUND.items()})
    for name, rows in one.frames.items():
        assert rows.equals(two.frames[name])
        assert rows["id"].is_unique().all()
        assert rows["id"].is_sorted()


def test_the_stage_says_what_it_reads():
    assert {i.argument for i in stage.collect.inputs} == {
        "prompts", "responses", "judgments", "filtered", "critiques", "refinements", "pairs", "parent_training",
        "anchor_training", "grandparent_training", "parent_model",
    }  # fmt: skip
    assert {i.argument for i in stage.collect.inputs if i.optional} == {"anchor_training", "grandparent_training"}
    assert stage.collect.outputs == ("training", "preferences")


def test_controls_take_rows_by_lot_and_no_more_than_they_may(run):
    rows = ROUND | {"critiques": [row | {"error": None} for row in CRITIQUES]}
    kept, by_lot = (run({"critiques": Critiques(kept=k)}, rows).frames["training"] for k in (True, False))
    assert set(kept["response_id"]) == {"c0"} and set(by_lot["response_id"]) == {"c0", "c1"}
    refined = run({"refinements": Refinements(successful=False)}, ROUND).frames["training"]
    assert set(refined["response_id"]) == {"f0", "f3"}, "the first of each critique, whatever it reached"
    every = run(ALL, ROUND).frames["training"]
    fewer = run(ALL | {"answers": Answers(max_rows=1)}, ROUND).frames["training"]
    assert len(every.filter(pl.col("source") == "responses")) == 2
    assert len(fewer.filter(pl.col("source") == "responses")) == 1 and len(fewer) == len(every) - 1
    assert fewer.equals(run(ALL | {"answers": Answers(max_rows=1)}, ROUND).frames["training"])
