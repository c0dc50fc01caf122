"""Accuracy measures against hand-worked examples, and the member against a scripted policy."""

from itertools import combinations
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks import evaluate as stage
from tasks.domains import Domain, Item, Verdict
from tasks.domains.arithmetic import Arithmetic, read, work
from tasks.engines.fake import Fake
from tasks.evaluate import Evaluate, graded, mean, proportion, spread
from tasks.evaluate.answers import Answers, distinct_n, majority_right, pass_at_k
from tasks.stage import Result

DOMAIN = Arithmetic(easiest=2, hardest=3)
HELDOUT = ("heldout",)


def right(problem):
    story = read(problem)
    return work(story, story.values())


def wrong(problem):
    story = read(problem)
    return work(story, [v + 1 for v in story.values()])


def two_good_of_three(messages, seed):
    """Solves two steps always, three steps greedily (seed 0) and by every second draw."""
    problem = messages[-1][1]
    return right(problem) if len(read(problem).steps) == 2 or seed % 2 == 0 else wrong(problem)


def measured(engine, member, domain=DOMAIN, seed=1):
    with engine.open(Path("model")) as policy:
        result = member(policy, domain, seed, True)
    return Result({name: f.collect() for name, f in result.frames.items()}, result.metrics)


def values(result):
    return {(n, level): v for n, level, v in result.frames["measures"].select("name", "level", "value").rows()}


def test_pass_at_k_by_hand():
    assert pass_at_k(5, 2, 1) == pytest.approx(2 / 5)
    assert pass_at_k(5, 2, 3) == pytest.approx(1 - 1 / 10)  # of 10 triples one holds no right sample
    assert pass_at_k(5, 0, 3) == 0.0
    assert pass_at_k(5, 3, 3) == 1.0
    assert pass_at_k(2, 1, 3) is None


@given(st.integers(1, 7), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    subsets = list(combinations(range(n), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(min(s) < c for s in subsets) / len(subsets))


def test_majority_by_hand():
    def rows(*answers, proven=()):
        return [{"answer": a, "correct": n in proven} for n, a in enumerate(answers)]

    assert majority_right(rows("8", "8", "9"), "8") == 1.0
    assert majority_right(rows("8", "9", "9"), "8") == 0.0
    assert majority_right(rows("8", "9"), "8") == 0.5  # a fair draw between the two
    assert majority_right(rows("8", None, None), "8") == 1.0  # no answer is no vote
    assert majority_right(rows(None), "8") == 0.0
    assert majority_right(rows("8", "8", "9", proven={1}), None) == 1.0  # a verified sample proves its answer
    assert majority_right([], "8") is None


def test_distinct_n_by_hand():
    assert distinct_n(["a b c", "a b d"], 2) == 3 / 4  # ab, bc, ab, bd
    assert distinct_n(["a"], 2) is None


def test_intervals():
    whole = proportion("x", None, [True] * 8 + [False] * 2)
    assert (whole.low, whole.high) == (pytest.approx(0.4901625), pytest.approx(0.9433178))  # Wilson, by its formula
    some = mean("x", None, [0.0, 0.5, 1.0, 0.5])
    half = 1.959964 * (1 / 6) ** 0.5 / 2  # variance 1/6, four problems
    assert (some.low, some.high) == (pytest.approx(0.5 - half), pytest.approx(0.5 + half))
    none = mean("x", None, [0.0] * 10)
    assert none.low == 0.0
    assert none.high == proportion("x", None, [False] * 10).high > 0.2
    assert mean("x", None, []) is None


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_an_interval_holds_its_value(shares):
    found = mean("x", None, shares)
    assert 0 <= found.low <= found.value + 1e-9
    assert found.value - 1e-9 <= found.high <= 1


def test_spread_takes_the_levels_evenly():
    items = [Item(f"{level}{n}", level) for level in (2, 3) for n in range(3)]
    assert [i.problem for i in spread(items, 3)] == ["20", "21", "30"]
    assert spread(items, 99) == items


def test_levels_modes_and_answers():
    member = Answers(splits=HELDOUT, greedy=8, sampled=4, samples=6, ks=(1, 6))
    result = measured(Fake.scripted(two_good_of_three), member)
    found = values(result)
    rows = result.frames["evals"]
    assert rows.filter(mode="greedy").height == 8
    assert rows.filter(mode="sampled").height == 24
    assert rows["id"].n_unique() == rows.height
    assert found["greedy", None] == found["greedy", 2] == found["greedy", 3] == 1.0
    assert found["pass_at_1", 2] == found["majority_at_6", 2] == 1.0
    hard = rows.filter(mode="sampled", level=3)
    assert found["pass_at_1", 3] == pytest.approx(hard["correct"].mean())
    assert 0 < found["pass_at_1", 3] < 1
    assert found["pass_at_1", None] == pytest.approx((1 + found["pass_at_1", 3]) / 2)
    assert found["answered", None] == 1.0
    assert found["eval_errors", None] == 0.0
    assert found["distinct_answers", 2] == 1.0
    assert found["pass_at_1_answer", 2] == 1.0


def test_every_step_counts_and_the_answer_alone_is_told_apart():
    def lucky(messages, seed):
        story = read(messages[-1][1])
        return work(story, [v + 1 for v in story.values()]).rpartition("\n")[0] + f"\nAnswer: {story.values()[-1]}"

    found = values(measured(Fake.scripted(lucky), Answers(splits=HELDOUT, greedy=4, sampled=2, samples=2, ks=(1,))))
    assert found["greedy", None] == found["pass_at_1", None] == 0.0
    assert found["greedy_answer", None] == found["pass_at_1_answer", None] == found["majority_at_2", None] == 1.0


def test_a_failed_request_is_no_wrong_answer_and_a_missing_answer_is():
    whole = measured(Fake(error_rate=1.0), Answers(splits=HELDOUT, greedy=4, sampled=2, samples=2, ks=(1,)))
    assert values(whole) == {("eval_errors", None): 1.0}
    assert whole.frames["evals"]["correct"].null_count() == 8
    mute = measured(Fake(garbage_rate=1.0), Answers(splits=HELDOUT, greedy=4, sampled=2, samples=2, ks=(1,)))
    assert values(mute)["greedy", None] == 0.0
    assert values(mute)["answered", None] == 0.0
    assert set(mute.frames["evals"]["error"]) == {"no answer"}


def test_a_verifier_that_cannot_say_leaves_the_measure_out():
    class Silent(Domain):
        def items(self, split, count, seed):
            return [Item("a"), Item("a"), Item("b")][:count]

    result = measured(Fake(reply="echo"), Answers(splits=HELDOUT, greedy=3, sampled=3, samples=2, ks=(1,)), Silent())
    assert result.frames["evals"].filter(mode="greedy").height == 2  # a problem counts once
    assert not {n for n, _ in values(result)} & {"greedy", "pass_at_1", "majority_at_2"}
    missing = graded(Item("a", reference="8"), completed(" "), Silent())
    assert missing["correct"] is False  # there is a right answer, and none was given


def completed(text):
    from tasks.engines import Completion

    return Completion(text, tokens=1, logprob=-1.0)


def test_grading_reads_verdict_and_logprob():
    class Half(Domain):
        def verify(self, problem, response, reference=None):
            return Verdict(None, error="time-out")

    row = graded(Item("a"), completed("8"), Half())
    assert (row["correct"], row["error"], row["mean_logprob"], row["answer"]) == (None, "time-out", -1.0, "8")


def test_validation_has_its_name_in_front():
    result = measured(Fake.scripted(two_good_of_three), Answers(splits=("validation",), greedy=2, sampled=0))
    assert values(result)["validation_greedy", None] == 1.0
    assert set(result.frames["evals"]["split"]) == {"validation"}


def test_both_frozen_sets_are_answered_by_default():
    result = measured(Fake.scripted(two_good_of_three), Answers(greedy=2, sampled=1, samples=1, ks=(1,)))
    assert set(result.frames["evals"]["split"]) == {"heldout", "validation"}
    assert {"greedy", "validation_greedy"} <= {name for name, _ in values(result)}


def test_ks_above_samples_are_refused():
    with pytest.raises(ValidationError, match="more than samples"):
        Answers(samples=4, ks=(1, 8))


def test_the_stage_gives_tables_metrics_and_the_curve(tmp_path):
    panel = Evaluate(panel={"answers": Answers(greedy=4, sampled=4, samples=4, ks=(1, 4))})
    engine = Fake.scripted(two_good_of_three)
    first, again = (stage.evaluate(panel, tmp_path, engine, DOMAIN, 1, tmp_path) for _ in range(2))
    for name in ("evals", "audits", "measures"):
        assert first.frames[name].equals(again.frames[name])
    assert first.metrics["pass_at_1/level_2"] == 1.0
    assert "@" not in "".join(first.metrics)
    assert first.plots["levels"]["level"].to_list() == [2, 3]
    assert first.plots["levels"]["pass_at_1"].to_list()[0] == 1.0
    assert first.frames["audits"].is_empty()


def test_the_frozen_set_does_not_depend_on_the_rounds_seed(tmp_path):
    panel = Evaluate(panel={"answers": Answers(greedy=4, sampled=4, samples=2, ks=(1,))})
    items = [
        set(stage.evaluate(panel, tmp_path, Fake(), DOMAIN, seed, tmp_path).frames["evals"]["item"]) for seed in (1, 2)
    ]
    assert items[0] == items[1]


def test_a_domain_without_items_gives_empty_tables(tmp_path):
    class Nothing(Domain):
        def items(self, split, count, seed):
            return []

    from tasks.evaluate.critiques import Critiques
    from tasks.evaluate.judging import Judging

    panel = Evaluate(panel={"answers": Answers(), "judging": Judging(), "critiques": Critiques()})
    result = stage.evaluate(panel, tmp_path, Fake(), Nothing(), 1, tmp_path)
    assert all(frame.is_empty() for frame in result.frames.values())
    assert result.plots["levels"].columns == ["level", "greedy", "pass_at_1"]
    assert isinstance(result.plots["levels"], pl.DataFrame)
