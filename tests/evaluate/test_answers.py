"""Accuracy measures against hand-worked examples, and the member against a scripted policy."""

from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks.core import roster
from tasks.core.stage import Result
from tasks.domains import Domain, Item, Verdict
from tasks.domains.arithmetic import Arithmetic, read, work
from tasks.engines import Completion
from tasks.engines.fake import Fake
from tasks.evaluate import EvaluateCase, evaluate
from tasks.evaluate._items import answer_row, stratify
from tasks.evaluate._measures import mean, proportion
from tasks.evaluate.answers import Answers, distinct_n, grade_measures, majority_right, pass_at_k
from tasks.evaluate.critiques import Critiques
from tasks.evaluate.judging import Calibration

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


def roster_of(**engines):
    return roster.Models({name: roster.Source(engine, lambda n=name: Path(n)) for name, engine in engines.items()})


def measured(engine, member, domain=DOMAIN, seed=1, **models):
    result = member(EvaluateCase(roster_of(model=engine, **models), domain, seed))
    return Result({name: f.collect() for name, f in result.frames.items()}, result.metrics)


def staged(members, engine, domain=DOMAIN, seed=1):
    return evaluate(members, {}, roster_of(model=engine), domain, seed)


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
    varied = mean("x", None, [0.0, 0.5, 1.0, 0.5])
    half = 1.959964 * (1 / 6) ** 0.5 / 2  # variance 1/6, four problems
    assert (varied.low, varied.high) == (pytest.approx(0.5 - half), pytest.approx(0.5 + half))
    none = mean("x", None, [0.0] * 10)
    assert none.low == 0.0
    assert none.high == proportion("x", None, [False] * 10).high > 0.2
    assert mean("x", None, []) is None


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_an_interval_holds_its_value(shares):
    measures = mean("x", None, shares)
    assert 0 <= measures.low <= measures.value + 1e-9
    assert measures.value - 1e-9 <= measures.high <= 1


def test_stratify_takes_the_levels_evenly():
    items = [Item(f"{level}{n}", level) for level in (2, 3) for n in range(3)]
    assert [i.problem for i in stratify(items, 3)] == ["20", "21", "30"]
    assert stratify(items, 99) == items


def test_levels_modes_and_answers():
    member = Answers(splits=HELDOUT, greedy=8, sampled=4, samples=6, ks=(1, 6))
    result = measured(Fake.scripted(two_good_of_three), member)
    measures = values(result)
    rows = result.frames["evals"]
    assert rows.filter(mode="greedy").height == 8
    assert rows.filter(mode="sampled").height == 24
    assert rows["id"].n_unique() == rows.height
    assert measures["greedy", None] == measures["greedy", 2] == measures["greedy", 3] == 1.0
    assert measures["pass_at_1", 2] == measures["majority_at_6", 2] == 1.0
    hard = rows.filter(mode="sampled", level=3)
    assert measures["pass_at_1", 3] == pytest.approx(hard["correct"].mean())
    assert 0 < measures["pass_at_1", 3] < 1
    assert measures["pass_at_1", None] == pytest.approx((1 + measures["pass_at_1", 3]) / 2)
    assert measures["answered", None] == 1.0
    assert measures["eval_errors", None] == 0.0
    assert measures["distinct_answers", 2] == 1.0
    assert measures["pass_at_1_answer", 2] == 1.0


def test_every_step_counts_and_the_answer_alone_is_told_apart():
    def lucky(messages, seed):
        story = read(messages[-1][1])
        return work(story, [v + 1 for v in story.values()]).rpartition("\n")[0] + f"\nAnswer: {story.values()[-1]}"

    measures = values(measured(Fake.scripted(lucky), Answers(splits=HELDOUT, greedy=4, sampled=2, samples=2, ks=(1,))))
    assert measures["greedy", None] == measures["pass_at_1", None] == 0.0
    assert (
        measures["greedy_answer", None] == measures["pass_at_1_answer", None] == measures["majority_at_2", None] == 1.0
    )


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
    missing = answer_row(Item("a", reference="8"), completed(" "), Silent())
    assert missing["correct"] is False  # there is a right answer, and none was given


def completed(text):
    return Completion(text, tokens=1, logprob=-1.0)


def test_grading_reads_verdict_and_logprob():
    class Half(Domain):
        def verify(self, problem, response, reference=None):
            return Verdict(None, error="time-out")

    row = answer_row(Item("a"), completed("8"), Half())
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


def test_the_stage_gives_tables_metrics_and_the_curve():
    members = {"answers": Answers(greedy=4, sampled=4, samples=4, ks=(1, 4))}
    first, again = (staged(members, Fake.scripted(two_good_of_three)) for _ in range(2))
    for name in ("evals", "audits", "measures"):
        assert first.frames[name].equals(again.frames[name])
    assert set(first.frames["evals"]["member"]) == {"answers"}
    assert first.metrics["pass_at_1/level_2"] == 1.0
    assert "@" not in "".join(first.metrics)
    assert first.plots["levels"]["level"].to_list() == [2, 3]
    assert first.plots["levels"]["pass_at_1"].to_list()[0] == 1.0
    assert first.frames["audits"].is_empty()


def test_two_members_of_one_strategy_stand_side_by_side():
    answers = Answers(splits=HELDOUT, greedy=4, sampled=4, samples=4, ks=(1,))
    alone = staged({"answers": answers}, Fake.scripted(two_good_of_three))
    both = staged({"answers": answers, "hot": answers}, Fake.scripted(two_good_of_three))
    rows = both.frames["evals"]
    assert rows["id"].n_unique() == rows.height == 2 * alone.frames["evals"].height
    assert rows.filter(member="answers").equals(alone.frames["evals"])
    assert rows.filter(member="hot", mode="greedy").height == 4
    assert {name: both.metrics[name] for name in alone.metrics} == alone.metrics
    assert set(both.metrics) == set(alone.metrics) | {f"hot_{name}" for name in alone.metrics}


def test_the_items_do_not_depend_on_the_rounds_seed():
    members = {"answers": Answers(greedy=4, sampled=4, samples=2, ks=(1,))}
    items = [set(staged(members, Fake(), seed=seed).frames["evals"]["item"]) for seed in (1, 2)]
    assert items[0] == items[1]


def test_a_domain_without_items_gives_empty_tables():
    class Nothing(Domain):
        def items(self, split, count, seed):
            return []

    members = {"answers": Answers(examiner="base"), "judging": Calibration(), "critiques": Critiques()}
    result = staged(members, Fake(), Nothing())
    assert all(frame.is_empty() for frame in result.frames.values())
    assert result.plots["levels"].columns == ["level", "greedy", "pass_at_1"]
    assert isinstance(result.plots["levels"], pl.DataFrame)


def test_a_score_is_the_check_and_an_answer_that_never_came_has_none():
    member = Answers(splits=HELDOUT, greedy=8, sampled=0)
    result = measured(Fake.scripted(two_good_of_three, error_rate=0.5), member)
    rows = result.frames["evals"]
    failed = rows.filter(pl.col("response").is_null())
    assert 0 < failed.height < 8
    assert failed["error"].null_count() == 0
    assert failed["correct"].null_count() == failed["score"].null_count() == failed.height
    checked = rows.filter(pl.col("response").is_not_null())
    assert (checked["score"] == checked["correct"].cast(float)).all()
    assert values(result)["eval_errors", None] == failed.height / 8
    with Fake().open(Path("model")) as policy:
        assert set(rows["model"]) == {policy.digest}
    mute = measured(Fake(garbage_rate=1.0), member).frames["evals"]
    assert set(mute["score"]) == {0.0}  # an answer that is missing from a response is wrong


def test_a_grade_of_the_domain_is_the_score():
    class Grading(Domain):
        def verify(self, problem, response, reference=None):
            return Verdict(None, score=0.25)

    row = answer_row(Item("a"), completed("8"), Grading())
    assert (row["correct"], row["score"], row["error"]) == (None, 0.25, None)


def test_the_entropy_is_that_of_the_samples():
    result = measured(
        Fake.scripted(two_good_of_three), Answers(splits=HELDOUT, greedy=4, sampled=4, samples=3, ks=(1,))
    )
    sampled = result.frames["evals"].filter(mode="sampled")
    measure = result.frames["measures"].filter(pl.col("level").is_null(), name="entropy").row(0, named=True)
    assert measure["value"] == pytest.approx(sampled["entropy"].mean())
    assert measure["count"] == 4  # problems
    by_problem = sampled.group_by("item").agg(pl.col("entropy").mean())["entropy"]
    assert measure["high"] - measure["value"] == pytest.approx(1.959964 * by_problem.std() / 2)
    unbounded = [{"level": None, "problem": "a", "split": "heldout", "mode": "sampled", "entropy": 3.0}]
    assert Answers()._measures("heldout", [Item("a")], unbounded)[0].value == 3.0


# Where nothing can be verified: an examiner


class Open(Domain):
    """Nothing can be verified; a judgment is `Score: n`, n from 0 to 4."""

    verdict_form = "Score: [0-4]"

    def items(self, split, count, seed):
        return [Item(f"{split} {n}") for n in range(3)][:count]

    def answer(self, response):
        return response.removeprefix("Answer:").strip() or None

    def verdict(self, text):
        grade = text.removeprefix("Score: ")
        return Verdict(None, score=int(grade) / 4) if grade.isdigit() else Verdict(None, error="no score")


ANSWERS = Fake(answers={"0": "Answer: good", "1": "Answer: bad", "2": "Answer:"})
EXAMINER = Fake(answers={"Answer: good": "Score: 3", "Answer: bad": "Score: 1"})
EXAM = Answers(splits=("validation",), greedy=3, sampled=2, samples=2, ks=(1,), examiner="base")


def test_an_examiner_grades_what_cannot_be_verified():
    result = measured(ANSWERS, EXAM, Open(), base=EXAMINER)
    rows = result.frames["evals"]
    greedy = {r["problem"][-1]: r for r in rows.filter(mode="greedy").iter_rows(named=True)}
    assert [greedy[n]["score"] for n in "012"] == [0.75, 0.25, 0.0]  # the last response holds no answer
    assert [greedy[n]["error"] for n in "012"] == [None, None, "no answer"]
    assert rows["correct"].null_count() == rows.height == 7
    assert values(result)["validation_grade", None] == pytest.approx((0.75 + 0.25 + 0) / 3)
    assert values(result)["validation_grade_sampled", None] == 0.5
    assert values(result)["validation_eval_errors", None] == 0.0
    sampled = result.frames["measures"].filter(name="validation_grade_sampled").row(0, named=True)
    assert sampled["count"] == 2  # problems, not answers
    assert EXAM.opened_models() == {"model", "base"}
    assert Answers().opened_models() == {"model"}


def test_without_an_examiner_nothing_has_a_score():
    result = measured(ANSWERS, EXAM.model_copy(update={"examiner": None}), Open())
    assert result.frames["evals"]["score"].null_count() == 7
    assert not [n for n, _ in values(result) if "grade" in n]


@pytest.mark.parametrize("examiner", [Fake(answers={"Answer": "hm"}), Fake(error_rate=1.0)])
def test_a_grade_that_cannot_be_read_is_an_error(examiner):
    result = measured(ANSWERS, EXAM, Open(), base=examiner)
    rows = result.frames["evals"].filter(pl.col("answer").is_not_null())
    assert rows.height == 6
    assert rows["score"].null_count() == 6 and rows["error"].str.starts_with("examiner: ").all()
    assert values(result)["validation_eval_errors", None] == pytest.approx(6 / 7)


def test_an_examiner_judges_equal_answers_once_greedily_and_in_form():
    requests = []

    class Recording(Fake):
        @contextmanager
        def open(self, model, cache=None):
            with super().open(model, cache) as policy:
                yield Recorder(policy)

    class Recorder:
        def __init__(self, policy):
            self.digest, self.policy = policy.digest, policy

        def sample(self, batch):
            requests.extend(batch)
            return self.policy.sample(batch)

    measured(ANSWERS, EXAM, Open(), base=Recording(answers=EXAMINER.answers))
    assert len(requests) == 2
    assert {(r.sampling.temperature, r.sampling.max_tokens, r.sampling.regex) for r in requests} == {
        (0.0, 192, Open.verdict_form)
    }


@pytest.mark.parametrize("name", ["model", "parent", "anchor", "grandparent"])
def test_no_round_grades_itself_and_no_examiner_differs_between_rounds(name):
    with pytest.raises(ValidationError, match="examiner"):
        Answers(examiner=name)
    assert Answers(examiner="teacher").opened_models() == {"model", "teacher"}


def test_what_can_be_verified_is_not_examined():
    whole = measured(
        Fake.scripted(two_good_of_three),
        Answers(splits=HELDOUT, greedy=4, sampled=0, examiner="base"),
        base=Fake(down=True),
    )
    assert values(whole)["grade", None] == values(whole)["greedy", None] == 1.0


def test_a_base_is_its_own_examiner():
    """A base has no `base` beside itself."""
    result = measured(Fake(answers=EXAMINER.answers | ANSWERS.answers), EXAM, Open())
    assert values(result)["validation_grade", None] == pytest.approx(1 / 3)


def test_grades_by_hand():
    rows = [
        {"level": level, "problem": p, "score": s}
        for level, p, s in [(1, "a", 0.0), (1, "a", 1.0), (1, "b", 1.0), (2, "c", None), (2, "c", 0.0)]
    ]
    measures = {m.level: m for m in grade_measures("grade", rows)}
    assert measures[None].value == pytest.approx((0.5 + 1 + 0) / 3)
    half = 1.959964 * 0.5 / 3**0.5  # the standard deviation of 0.5, 1, 0 is one half
    assert (measures[None].low, measures[None].high) == (0.0, pytest.approx(min(1.0, 0.5 + half)))
    assert (measures[1].value, measures[2].value) == (0.75, 0.0)
