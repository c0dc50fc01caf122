"""Which model is in force: by what the rounds hold now, the champion's test, and a person's choice above it."""

from pathlib import Path

import pytest
import synthetic

from tasks.core import store
from tasks.core.champion import level
from tasks.core.errors import FlywheelError
from tasks.gate import GateOptions
from tasks.project import champion
from tasks.project.champion import consistent_manifests, elections, in_force, next_parent
from tasks.project.params import Pipeline, Settings

PIPELINE = synthetic.pipeline("r1", "r2")


@pytest.fixture(autouse=True)
def plans(monkeypatch):
    monkeypatch.setattr(champion, "plans", synthetic.plans)


@pytest.fixture
def root(tmp_path):
    """A base that solves 40 % of the items, and rounds that solve 57 and 80 %; all promoted."""
    for name in PIPELINE.blocks:
        synthetic.make(tmp_path, PIPELINE, name)
    return tmp_path


def looks(root, pipeline=PIPELINE, base="r0"):
    election = champion.champion(root, pipeline, base)
    return election.champion, {look.name: (look.against, look.won) for look in election.looks}


def test_the_best_promoted_round_is_champion(root):
    assert looks(root) == ("r2", {"r1": ("r0", True), "r2": ("r1", True)})
    [first, _] = champion.champion(root, PIPELINE, "r0").looks
    assert first.items == synthetic.ITEMS and first.delta == pytest.approx(0.17)
    assert in_force(root, PIPELINE) == next_parent(root, PIPELINE) == "r2"


def test_a_branch_that_beats_its_parent_but_not_the_champion_comes_too_late(tmp_path, monkeypatch):
    """r3 starts from r0 and gains 10 points on it; r1 has 17."""
    monkeypatch.setitem(synthetic.SOLVED, "r3", 0.50)
    blocks = {n: PIPELINE.blocks[n] for n in ("r0", "r1")} | {"r3": synthetic.block("r3", "r0")}
    pipeline = Pipeline(PIPELINE.campaign, blocks)
    for name in blocks:
        synthetic.make(tmp_path, pipeline, name)
    assert looks(tmp_path, pipeline) == ("r1", {"r1": ("r0", True), "r3": ("r1", False)})
    assert next_parent(tmp_path, pipeline) == "r1", "not the round that was promoted last"


def test_a_round_that_its_gates_refused_is_no_champion_and_may_stop_a_campaign(root):
    synthetic.make(root, PIPELINE, "r2", promoted=False)
    assert looks(root)[0] == "r1"
    assert next_parent(root, PIPELINE) == "r1"
    assert next_parent(root, PIPELINE, stop=True) is None
    synthetic.make(root, PIPELINE, "r2")
    assert next_parent(root, PIPELINE, stop=True) == "r2"


def test_a_round_that_trained_nothing_is_never_champion(root):
    synthetic.make(root, PIPELINE, "r2", trained=0.0)
    assert looks(root) == ("r1", {"r1": ("r0", True), "r2": ("r1", False)})


def test_answers_that_failed_count_against_the_round(root, monkeypatch):
    """r2 answers 80 % of the items rightly, and half of its answers never came."""
    answers = synthetic.evals

    def failing(name):
        rows = answers(name)
        failed = {"response": None, "correct": None, "error": "down"}
        return [r | failed if name == "r2" and r["sample"] == 1 else r for r in rows]

    monkeypatch.setattr(synthetic, "evals", failing)
    synthetic.make(root, PIPELINE, "r2")
    assert looks(root)[0] == "r1"


def test_a_decision_is_about_what_is_there(root):
    edited = synthetic.pipeline("r1", "r2")
    edited.blocks["r2"].values["filter"]["some"]["strength"] = 2
    assert looks(root, edited) == ("r1", {"r1": ("r0", True)}), "r2 has not been made with these parameters"
    synthetic.make(root, PIPELINE, "r1", salt="x")
    assert looks(root) == ("r1", {"r1": ("r0", True)}), "r2 was made from another r1"
    synthetic.make(root, PIPELINE, "r2")
    assert looks(root)[0] == "r2"
    synthetic.make(root, PIPELINE, "r0", salt="x")
    assert looks(root) == ("r0", {}), "all that descends from the old base is gone"


def test_an_edit_of_code_does_not_unmake_a_decision(root, monkeypatch):
    def edited(root, pipeline):
        return {k: p.model_copy(update={"code": {"tasks.judge": "0" * 64}}) for k, p in old(root, pipeline).items()}

    old = synthetic.plans
    monkeypatch.setattr(champion, "plans", edited)
    assert looks(root)[0] == "r2"


def test_a_round_whose_gates_have_not_run_is_not_looked_at(root):
    (root / "data/round=r2/manifests/gate.json").unlink()
    assert looks(root) == ("r1", {"r1": ("r0", True)})


def test_the_first_base_with_a_champion_is_in_force(root):
    blocks = {"b0": synthetic.block("b0", None), **PIPELINE.blocks}
    pipeline = Pipeline(PIPELINE.campaign, blocks)
    assert elections(root, pipeline).keys() == {"r0"}, "b0 has not been made"
    synthetic.make(root, pipeline, "b0")
    assert in_force(root, pipeline) == "r2"
    synthetic.make(root, PIPELINE, "r1", promoted=False)
    synthetic.make(root, PIPELINE, "r2", promoted=False)
    assert in_force(root, pipeline) == "b0"


def test_a_campaign_goes_on_from_the_model_that_a_person_chose(root):
    digest = champion.model_digest(root, "r1", store.manifests(root, "r1"))
    path = root / champion.DECISION
    path.parent.mkdir(parents=True)
    path.write_text(f"{{round: r1, digest: {digest}, when: '2026-01-01', by: tom}}")
    assert next_parent(root, PIPELINE) == "r1"
    path.write_text("{round: r1, digest: another, when: '2026-01-01', by: tom}")
    assert next_parent(root, PIPELINE) == "r2"


def record_looks(root, pipeline=PIPELINE):
    return champion.record_looks(root, elections(root, pipeline))


def level_of(root, name, pipeline=PIPELINE):
    return next(look.alpha for look in champion.champion(root, pipeline, "r0").looks if look.name == name)


def test_a_round_that_is_run_again_or_removed_has_spent_its_look(root, monkeypatch):
    """Other seeds until one wins: each is a look at the same items, whichever round stays."""
    assert record_looks(root) == 2
    assert record_looks(root) == 0
    pipeline = synthetic.pipeline("r1")
    assert level_of(root, "r1", pipeline) == level(1), "what was tested keeps its level"
    for tries in (1, 2, 3):
        monkeypatch.setitem(synthetic.SOLVED, "r1", 0.4 + tries / 100)
        synthetic.make(root, PIPELINE, "r1", salt=str(tries))
        assert level_of(root, "r1", pipeline) == level(2 + tries)
        assert champion.champion(root, pipeline, "r0").earlier == 1 + tries
        assert record_looks(root, pipeline) == 1
        assert level_of(root, "r1", pipeline) == level(2 + tries), "the line is that of this test"
    entries = champion.ledger(root)
    assert [e.round for e in entries] == ["r1", "r2", "r1", "r1", "r1"]
    assert {(e.base, e.against) for e in entries[2:]} == {("r0", "r0")}
    assert entries[-1].answers.startswith(store.find(root, "r1", "evals")[1].digest)


def test_the_ledger_of_one_base_is_not_anothers(root):
    record_looks(root)
    entries = [e.model_copy(update={"base": "b0"}) for e in champion.ledger(root)]
    (root / champion.LOOKS).write_text("".join(e.model_dump_json() + "\n" for e in entries))
    assert champion.champion(root, PIPELINE, "r0").earlier == 0
    assert level_of(root, "r1") == level(1)


def test_a_kill_leaves_a_whole_ledger(root, monkeypatch):
    record_looks(root)
    before = (root / champion.LOOKS).read_text()
    synthetic.make(root, PIPELINE, "r1", promoted=False)
    monkeypatch.setitem(synthetic.SOLVED, "r2", 0.7)
    synthetic.make(root, PIPELINE, "r2")

    def killed(self, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", killed)
        record_looks(root)
    assert (root / champion.LOOKS).read_text() == before
    assert record_looks(root) == 1
    assert (root / champion.LOOKS).read_text().startswith(before)


def test_a_ledger_that_cannot_be_read_is_an_error_with_its_line(root):
    record_looks(root)
    with (root / champion.LOOKS).open("a") as file:
        file.write("<<<<<<< HEAD\n")
    with pytest.raises(FlywheelError, match=r"looks\.jsonl:3"):
        in_force(root, PIPELINE)


def test_the_champion_is_found_among_the_answers_that_gates_look_at(root, monkeypatch):
    """By the member `hot` r2 answers nothing rightly."""
    answers = synthetic.evals

    def both(name):
        rows = answers(name)
        return rows + [r | {"id": f"hot{r['id']}", "member": "hot", "correct": name != "r2"} for r in rows]

    monkeypatch.setattr(synthetic, "evals", both)
    for name in PIPELINE.blocks:
        synthetic.make(root, PIPELINE, name)
    assert looks(root)[0] == "r2"
    hot = synthetic.pipeline("r1", "r2")
    for block in hot.blocks.values():
        block.stages["gate"] = Settings({}, GateOptions(member="hot"))
    assert looks(root, hot)[0] == "r0"


def test_before_the_first_round_it_is_the_first_base(tmp_path):
    pipeline = synthetic.pipeline()
    assert next_parent(tmp_path, pipeline) == "r0"
    assert in_force(tmp_path, pipeline) is None
    assert looks(tmp_path, pipeline) == ("r0", {})


def test_a_round_s_engine_is_not_the_exam_s(root):
    """Stages that have another engine than those before them are behind; the exam has the base's engine."""
    block = PIPELINE.block("r2")
    use_engine(root, "evaluate", "openai")
    assert {"evaluate", "gate"} <= consistent_manifests(root, block).keys()
    use_engine(root, "judge", "openai")
    assert not {"judge", "filter"} & consistent_manifests(root, block).keys()


def use_engine(root, stage, name):
    path = root / f"data/round=r2/manifests/{stage}.json"
    manifest = store.read_manifest(path)
    plan = manifest.plan.model_copy(update={"engine": {"strategy": name}})
    path.write_text(manifest.model_copy(update={"plan": plan}).model_dump_json())


def test_a_test_is_made_once_and_again_for_other_answers_and_other_code(root, monkeypatch):
    made = []
    compare = champion.compare
    monkeypatch.setattr(champion, "compare", lambda a, b: made.append(b.name) or compare(a, b))
    first = elections(root, PIPELINE)
    assert (made, elections(root, PIPELINE)) == (["r1", "r2"], first)
    assert made == ["r1", "r2"], "remembered"
    monkeypatch.setitem(synthetic.SOLVED, "r2", 0.7)
    synthetic.make(root, PIPELINE, "r2")
    elections(root, PIPELINE)
    assert made == ["r1", "r2", "r2"]
    (root / champion.TESTS).write_text((root / champion.TESTS).read_text().replace('"p"', '"q"'))
    assert elections(root, PIPELINE)["r0"].looks[0] == first["r0"].looks[0]
    assert made[3:] == ["r1", "r2"], "a file that is not as it was written"
    monkeypatch.setattr(champion, "_code", lambda: "other")
    elections(root, PIPELINE)
    assert made[5:] == ["r1", "r2"]
