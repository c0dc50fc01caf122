"""Bisections: the stage, parent or seed that a change between two rounds comes from."""

import json
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

import polars as pl
import projects
import pytest
from typer.testing import CliRunner

from tasks.__main__ import app
from tasks.core import store
from tasks.core.errors import FlywheelError, StoreError, UnknownName
from tasks.project import _bisect_metric as metrics
from tasks.project import _bisect_runs as runs
from tasks.project import bisect as bisections
from tasks.project._bisect_metric import Change, Measured
from tasks.project._bisect_runs import PARENT, RERUN, SEED
from tasks.project._bisect_slices import labels, leave_out, slices
from tasks.project._bisect_units import differing, open_rounds, units
from tasks.project.execute import run_stage
from tasks.project.params import load_params, stages_of
from tasks.project.plan import write as write_plans

pytestmark = pytest.mark.xdist_group("campaign")
ROOT = Path()


def run(name: str) -> None:
    """Runs every stage of a round in this process."""
    write_plans(ROOT)
    for stage in stages_of(load_params(ROOT).block(name)):
        run_stage(ROOT, name, stage.name)


def edit_manifest(name: str, stage: str, change: Callable[[dict], object]) -> None:
    path = ROOT / f"data/round={name}/manifests/{stage}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(store.Manifest.model_validate(content).text)


def found(good: str, bad: str) -> dict[str, list[str]]:
    """What differs, but for the exam: the fake engine's answers carry the path of the model."""
    lines = {
        u.name: [line for line in u.differs if "evaluate:" not in line] for u in units(open_rounds(ROOT, good, bad))
    }
    return {name: differs for name, differs in lines.items() if differs}


def twin(name: str = "r3", settings: Collection[str] = ()) -> None:
    """A round with the parent and seed of r1, that has run."""
    projects.add_round(ROOT, name, "r0", ["seed=1", *settings])
    run(name)


# In what rounds differ


def test_a_round_and_its_child_differ_in_parent_and_seed_alone(made):
    assert found("r1", "r2") == {PARENT: ["r0 → r1"], SEED: ["1 → 2"]}
    assert [u.name for u in units(open_rounds(ROOT, "r1", "r2"))] == [RERUN, PARENT, SEED]


def test_a_setting_is_told_with_both_values_and_another_strategy_without_its_parameters(made):
    twin(settings=["filter.threshold.min_reward=0.9"])
    assert found("r1", "r3") == {"filter": ["filter.threshold.min_reward: 0.4 → 0.9"]}
    old = {"judge.a.strategy": "logprob", "judge.a.x": 1, "judge.b.x": 1}
    new = {"judge.a.strategy": "random", "judge.a.y": 2, "judge.b.x": 3}
    assert differing(old, new) == ["judge.a: logprob → random", "judge.b.x: 1 → 3"]


def test_equal_rounds_differ_in_nothing(made):
    twin()
    assert found("r1", "r3") == {}


def test_a_result_that_its_plan_does_not_give_is_found_without_a_run(made):
    twin()
    rows = store.read(ROOT, "r3", "filtered")
    manifest = store.manifests(ROOT, "r3")["filter"]
    with store.writing(ROOT, "r3", "filter") as draft:
        draft.table(store.TABLES["filtered"], rows.with_columns(margin=pl.col("margin") + 1))
        draft.commit(manifest.model_copy(update={"outputs": draft.outputs}))
    with pytest.raises(StoreError, match="filtered of r3 was made again since critique read it"):
        found("r1", "r3")
    for stage in ("critique", "pair", "collect", "train", "evaluate"):
        run_stage(ROOT, "r3", stage)
    assert found("r1", "r3") == {RERUN: ["filter: the same plan and inputs, and another result"]}


def test_code_that_was_edited_since_belongs_to_the_round_that_it_made(made):
    twin()
    file = "tasks/filter/threshold.py"

    def older(content: dict) -> None:
        content["plan"]["code"][file] = "0" * 64

    edit_manifest("r3", "filter", older)
    assert found("r1", "r3") == {RERUN: [f"filter: {file} was edited since"]}
    assert found("r3", "r1") == {"filter": [f"{file} was edited since r3 was made"]}
    assert [u.repeatable for u in units(open_rounds(ROOT, "r3", "r1")) if u.name == "filter"] == [False]
    edit_manifest("r1", "filter", older)
    with pytest.raises(FlywheelError, match=rf"{file} was edited since r1 and r3 ran filter: restore it"):
        found("r1", "r3")


# Wrong arguments


def test_rounds_that_cannot_be_compared(made):
    with pytest.raises(UnknownName, match="no round or base 'r9'"):
        open_rounds(ROOT, "r1", "r9")
    with pytest.raises(FlywheelError, match="--good r0: is a base"):
        open_rounds(ROOT, "r0", "r1")
    with pytest.raises(FlywheelError, match="both r1"):
        open_rounds(ROOT, "r1", "r1")
    projects.add_round(ROOT, "r3", "r2")
    with pytest.raises(FlywheelError, match="r3 has not run as far as its exam: prompts is missing; `flywheel run r3`"):
        open_rounds(ROOT, "r1", "r3")
    projects.set_values(ROOT, "r2", ["filter.threshold.min_reward=0.5"])
    with pytest.raises(
        FlywheelError, match="r2 is not up to date: filter.threshold.min_reward: 0.4 → 0.5 since filter"
    ):
        open_rounds(ROOT, "r1", "r2")
    (ROOT / "data/round=r1/evals/part-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(StoreError, match=r"evals/part-00000.parquet has 4 bytes"):
        open_rounds(ROOT, "r1", "r2")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--metric", "greddy"], "did you mean 'greedy'"),
        (["--metric", "pass_at_1/level_99"], "there is no measure of the exam"),
        (["--metric", "pass_at_1/level_x"], "there is no measure of the exam"),
        (["--metric", "[/bold]\x1b[2J"], "there is no measure of the exam"),
        (["--metric", "kept"], "is a number of filter"),
        (["--slice", "levle"], "did you mean 'level'"),
        (["--slice", "source"], "no training rows at all"),
        (["--slice", "source", "--all"], "leave out --slice, or --all"),
    ],
)
def test_the_command_says_what_is_wrong(made, arguments, told):
    done = CliRunner().invoke(app, ["bisect", "--good", "r1", "--bad", "r2", *arguments])
    assert done.exit_code == 1
    assert told in str(done.exception)
    assert not (made / runs.PLACE).exists()


def test_a_measure_that_one_exam_alone_has(made):
    manifest, rows = store.manifests(ROOT, "r2")["evaluate"], store.read(ROOT, "r2", "measures")
    tables = {n: store.read(ROOT, "r2", n) for n in ("evals", "audits")} | {
        "measures": rows.filter(pl.col("name") != "greedy")
    }
    with store.writing(ROOT, "r2", "evaluate") as draft:
        for name, table in tables.items():
            draft.table(store.TABLES[name], table)
        draft.commit(manifest.model_copy(update={"outputs": draft.outputs}))
    with pytest.raises(FlywheelError, match="--metric greedy: only r1 has it"):
        bisections.bisect(ROOT, "r1", "r2", "greedy", lambda *_: None)


# Measures


def test_means_over_items_are_paired_and_others_are_not(made):
    for metric in (
        "greedy",
        "pass_at_1",
        "pass_at_2/level_4",
        "majority_at_2",
        "distinct_2",
        "validation_greedy",
        "entropy",
    ):
        measured = metrics.measure(ROOT, "r1", metric)
        assert measured.items, metric
        assert sum(measured.items.values()) / len(measured.items) == pytest.approx(measured.value)
    assert not metrics.measure(ROOT, "r1", "answered").items


def test_a_change_is_that_of_the_same_items():
    before = Measured(value=0.5, low=0.1, high=0.9, items={"a": 0, "b": 1, "c": 0, "d": 1})
    after = Measured(value=0.75, low=0.3, high=1.0, items={"a": 0, "b": 1, "c": 1, "e": 1})
    change = metrics.change(before, after)
    assert (change.items, change.value) == (3, pytest.approx(1 / 3))
    assert change.low < 0 < change.high
    alone = metrics.change(before.model_copy(update={"items": {}}), after)
    assert (alone.items, alone.value) == (0, 0.25)
    assert alone.high - alone.value == pytest.approx((0.4**2 + 0.35**2) ** 0.5)
    assert not Change(value=0, low=0, high=0, items=9).is_clear


# The search


class Search:
    """A search among named units whose measure is 0.9 − what the units of the bad round cost, over 100 items."""

    def __init__(self, made: Path, costs: dict[str, float], broken: Collection[str] = ()) -> None:
        self.asked: list[tuple[str, ...]] = []
        named = [bisections.Unit(name=n, differs=["x"], place=0) for n in costs]
        self.search = bisections._Search(open_rounds(made, "r1", "r2"), "greedy", named, lambda *_: None)
        self.costs, self.broken = costs, broken
        self.search.exchanged = self.exchanged  # type: ignore[method-assign]
        self.search.points = {0: self.measured([]), len(costs): self.measured(list(costs))}
        self.search.bad = self.measured([])
        self.search.result.change = metrics.change(self.measured(list(costs)), self.measured([]))

    def measured(self, chosen: Collection[str]) -> Measured:
        value = 0.9 - sum(cost for name, cost in self.costs.items() if name not in chosen)
        wrong = round(100 * (1 - value))
        items = {f"{n:03}": float(n >= wrong) for n in range(100)}
        return Measured(value=value, low=0, high=1, items=items)

    def exchanged(self, chosen: list[str]) -> Measured | None:
        self.asked.append(tuple(chosen))
        return None if chosen and chosen[-1] in self.broken else self.measured(chosen)

    def run(self, split_all: bool = False) -> bisections.Bisection:
        self.search.attribute(split_all)
        self.search.confirm()
        return self.search.result


NAMES = [RERUN, PARENT, SEED, "prompts", "generate", "judge", "filter", "train"]


@pytest.mark.parametrize("fault", NAMES[3:])
def test_one_cause_among_many_is_found_in_few_runs_and_confirmed_alone(made, fault):
    search = Search(made, {n: 0.4 * (n == fault) for n in NAMES})
    result = search.run()
    assert (result.verdict, result.causes) == ("cause", [fault])
    assert search.asked[0] == (RERUN, PARENT, SEED), "the stages first, for which little runs"
    assert len(search.asked) <= 5
    assert search.asked[-1] == (fault,)
    assert result.confirmation.share == pytest.approx(1)
    assert sum(p.change.value for p in result.parts) == pytest.approx(result.change.value)
    assert [u for p in result.parts for u in p.units] == NAMES


def test_several_causes_are_found_the_greatest_first_and_a_parent_is_no_stage(made):
    search = Search(made, dict.fromkeys(NAMES, 0.0) | {PARENT: 0.4, "filter": 0.2})
    result = search.run()
    assert result.causes == [PARENT, "filter"]
    assert result.confirmation.units == ["filter"]
    result = Search(made, {RERUN: 0, PARENT: 0.4, SEED: 0}).run()
    assert (result.causes, result.confirmation) == ([PARENT], None)


def test_a_change_that_is_spread_out_has_no_cause(made):
    result = Search(made, dict.fromkeys(NAMES, 0.01)).run()
    assert (result.verdict, result.causes) == ("spread", [])


def test_all_measures_what_does_nothing_together(made):
    search = Search(made, dict.fromkeys(NAMES, 0.0) | {"judge": 0.3, "train": -0.3})
    assert search.run().verdict == "noise"
    assert search.asked == []
    result = search.run(split_all=True)
    assert [p.units for p in result.parts][-8:] == [[n] for n in NAMES]


def test_a_counterfactual_that_fails_is_gone_round(made):
    search = Search(made, {n: 0.4 * (n == "filter") for n in NAMES}, broken=["generate"])
    assert search.run().causes == ["filter"]
    search = Search(made, {n: 0.4 * (n == "filter") for n in NAMES}, broken=["judge", "filter"])
    result = search.run()
    assert (result.verdict, result.causes) == ("unmeasured", [])
    assert [p.units for p in result.parts if p.change.is_clear] == [["judge", "filter", "train"]]


# Counterfactuals


def test_what_comes_before_an_exchange_is_taken_from_where_it_is(made):
    twin(settings=["filter.threshold.min_reward=0.9", "seed=5"])
    rounds = open_rounds(ROOT, "r1", "r3")
    both = [u.model_copy(update={"place": 0}) if u.name == RERUN else u for u in units(rounds)]

    def stored(*chosen: str) -> dict[str, str | None]:
        return {s.stage: s.stored for s in runs.compose(rounds, both, chosen).steps}

    assert set(stored().values()) == {"r3"}
    assert set(stored(RERUN, SEED, "filter").values()) == {"r1"}
    assert [s for s, owner in stored(RERUN, SEED).items() if owner == "r1"] == ["prompts", "generate", "judge"]
    assert [s for s, owner in stored("filter").items() if owner == "r3"] == ["prompts", "generate", "judge"]
    assert set(stored(RERUN).values()) == {None}
    plans = {s.stage: s.plan for s in runs.compose(rounds, both, ["filter"]).steps if not s.stored}
    assert plans["filter"].members["threshold"]["min_reward"] == 0.4
    assert (plans["critique"].seed, plans["evaluate"].seed) == (5, rounds.manifests["r3"]["evaluate"].plan.seed)
    seeded = {s.stage: s.plan.seed for s in runs.compose(rounds, both, [RERUN, SEED]).steps if not s.stored}
    assert seeded["critique"] == 1


def test_it_is_made_once_and_a_kill_loses_no_stage(made):
    twin(settings=["filter.threshold.min_reward=0.9", "seed=5"])
    before = projects.digests(made)
    rounds = open_rounds(ROOT, "r1", "r3")
    what = runs.compose(rounds, units(rounds), ["filter"])
    assert runs.make(what) is None
    first = runs.made(what)
    assert first.ran == ["filter", "critique", "pair", "collect"], "nothing to train on, so the model is r3's"
    shutil.rmtree(what.place)  # killed before it was done
    shutil.rmtree(next((made / runs.PLACE / "stages").glob("collect-*")))
    assert runs.make(what) is None
    assert runs.made(what).ran == ["collect"]
    assert runs.made(what).outputs == first.outputs
    runs.clean(made)
    assert what.is_made
    assert {p.name for p in (made / runs.PLACE).iterdir()} == {"runs"}
    assert metrics.measure(what.place, runs.NAME, "greedy").items
    assert projects.digests(made) == before, "the rounds stay as they are"


def test_a_stage_that_fails_is_told_and_its_output_kept(made):
    twin(settings=["filter.threshold.min_reward=0.9", "seed=5"])

    def gone(content: dict) -> None:
        content["plan"]["members"]["best_worst"]["strategy"] = "gone"

    rounds = open_rounds(ROOT, "r1", "r3")
    both = units(rounds)
    edit_manifest("r3", "pair", gone)
    broken = runs.compose(bisections.Rounds(rounds.root, "r1", "r3"), both, ["filter"])
    assert "there is no pair strategy 'gone'" in str(runs.make(broken))
    assert not broken.is_made
    assert "filter@counterfactual" in (made / runs.PLACE / f"logs/{broken.identity}.log").read_text()


# The embedded model

TINY = {
    "prompts.pool.count": 8,
    "prompts.pool.evaluation": projects.SCREEN,
    "prompts.pool.levels": {2: 1, 4: 1, 6: 1},
    "generate.sample.samples": 4,
    "critique.auto_math.limit": 4,
    "train.sft.epochs": 1,
}
TOO_FAST = {"train.sft.muon_lr": 2.0, "train.sft.adamw_lr": 0.5}


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """Two small rounds of the shipped model with other seeds; the second one trains far too fast."""
    root = tmp_path_factory.mktemp("embedded")
    for name in ("tasks", "recipes", "data/base", "data/seeds"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(projects.HERE / name)
    content = projects.values(projects.HERE)
    content["bases"] = {"r0": content["bases"]["r0"] | {"evaluate": {"answers": projects.EXAM["answers"]}}}
    line = {"parent": "r0", "base": "r0"}
    content["rounds"] = {"r1": line | {"seed": 1, "set": TINY}, "r2": line | {"seed": 2, "set": TINY | TOO_FAST}}
    (root / "params.yaml").write_text(json.dumps(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        projects.run_all()
    return root


def test_the_command_names_the_stage_with_the_fault_and_not_the_seed(embedded, monkeypatch):
    monkeypatch.chdir(embedded)
    arguments = ["bisect", "--good", "r1", "--bad", "r2", "--metric", "greedy"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "of the change: train (train.sft." in done.output
    assert "Alone it does the same: train adds" in done.output
    again = CliRunner().invoke(app, [*arguments, "--json"])
    result = json.loads(again.stdout)
    assert result["causes"] == ["train"]
    assert result["confirmation"]["share"] > 0.5
    assert [r["found"] for r in result["runs"]] == [True, True]
    assert result["runs"][0]["ran"] == ["train", "evaluate"], "the good round has all before that"
    assert "made before" in again.stderr


def test_slices_of_the_training_rows_are_left_out_one_at_a_time(embedded, monkeypatch):
    monkeypatch.chdir(embedded)
    sources = slices(ROOT, "r1", "source")
    rows = store.read(ROOT, "r1", "training").filter(pl.col("error").is_null())
    assert {s.value: s.rows for s in sources} == dict(rows.group_by("source").len().iter_rows())
    levels = slices(ROOT, "r1", "level")
    assert {s.value for s in levels} <= {"2", "4", "6"}
    assert sum(s.rows for s in levels) == len(rows)
    monkeypatch.setattr(bisections, "slices", lambda *_: sources[:1])
    result = bisections.bisect_slices(ROOT, "r2", "r1", "greedy", "source", lambda *_: None)
    assert [(p.units, p.rows) for p in result.parts] == [([sources[0].name], sources[0].rows)]
    assert [r.ran for r in result.runs] == [["train", "evaluate"]]
    assert result.parts[0].change.value == pytest.approx(-result.runs[0].change.value)
    assert {s.value for s in slices(ROOT, "r1", "author")} == {"sample", "none"}, (
        "no member of generate wrote the critiques"
    )
    leave_out(embedded, embedded / "place", "r1", "r1", sources[0], store.manifests(ROOT, "r1")["collect"])
    rest = store.read(embedded / "place", "r1", "training")
    assert rest.equals(store.read(ROOT, "r1", "training").filter(pl.col("source") != sources[0].value))
    failed = labels(ROOT, "r1", "judge", "training").select("id", "value")
    verdicts = store.read(ROOT, "r1", "judgments").filter(verdict="fail")
    expected = rows.join(verdicts, on="response_id", suffix="_judge").select("id", value="member_judge")
    assert set(failed.rows()) == set(expected.rows())
