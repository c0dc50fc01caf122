"""Judges on the gold set, against hand-worked examples and scikit-learn."""

from pathlib import Path

import pytest
from sklearn.metrics import balanced_accuracy_score

from tasks.domains import Verdict
from tasks.domains.arithmetic import Arithmetic, criticism, first_wrong, judgment, read
from tasks.engines.fake import Fake
from tasks.evaluate.judging import Judging, auroc, balanced_accuracy, voted
from tasks.stage import Result

DOMAIN = Arithmetic(easiest=2, hardest=3)


def parts(messages):
    problem, _, response = messages[-1][1].partition("\n\n")
    return read(problem), response


def oracle(messages, seed):
    story, response = parts(messages)
    said = first_wrong(story, response) is None
    return f"Verdict: {'correct' if said else 'wrong'}"


def run(engine, member, scores=True):
    with engine.open(Path("model")) as policy:
        result = member(policy, DOMAIN, 1, scores)
    return Result({name: f.collect() for name, f in result.frames.items()}, result.metrics)


def values(result):
    return {(n, level): v for n, level, v in result.frames["measures"].select("name", "level", "value").rows()}


def test_a_perfect_judge():
    found = values(run(Fake.scripted(oracle), Judging(count=20)))
    for level in (None, 2, 3):
        assert found["judge_balanced_accuracy", level] == found["judge_auroc", level] == 1.0
        assert found["judge_errors", level] == 0.0


def test_a_judge_that_passes_everything_is_at_chance():
    result = run(Fake(answers={"Day": "Verdict: correct"}), Judging(count=20))
    assert values(result)["judge_balanced_accuracy", None] == values(result)["judge_auroc", None] == 0.5
    truth = result.frames["audits"].filter(judge="self_judge")["truth"].to_list()
    assert {True, False} == set(truth)


def test_unreadable_verdicts_are_counted_and_nothing_else():
    result = run(Fake(garbage_rate=1.0), Judging(count=10))
    assert values(result)["judge_errors", None] == 1.0
    assert ("judge_balanced_accuracy", None) not in values(result)
    assert result.frames["audits"].filter(judge="self_judge")["verdict"].null_count() == 10


def test_likelihood_is_the_mean_over_tokens_and_left_out_where_the_engine_cannot():
    both, one = run(Fake(), Judging(count=10)), run(Fake(), Judging(count=10), scores=False)
    likely = both.frames["audits"].filter(judge="logprob")
    assert likely.height == 10
    assert likely["score"].is_between(-1, 0).all()
    assert ("logprob_auroc", None) in values(both)
    assert one.metrics == {"skipped/logprob": 1.0}
    assert set(one.frames["audits"]["judge"]) == {"self_judge"}


def test_votes_by_hand():
    yes, no, unread, grade = Verdict(True), Verdict(False), Verdict(None, error="?"), Verdict(None, score=0.8)
    assert voted([yes, yes, no]) == {"score": pytest.approx(2 / 3), "verdict": "pass"}
    assert voted([yes, no]) == {"score": 0.5, "verdict": None}
    assert voted([no, unread]) == {"score": 0.0, "verdict": "fail"}
    assert voted([unread]) == {"error": "?"}
    assert voted([grade]) == {"score": 0.8, "verdict": None}


def test_several_votes_are_drawn_apart():
    def odd(messages, seed):
        return f"Verdict: {'correct' if seed % 2 else 'wrong'}"

    scores = run(Fake.scripted(odd), Judging(count=6, votes=5), scores=False).frames["audits"]["score"]
    assert set(scores) - {0.0, 1.0}


def test_balanced_accuracy_agrees_with_scikit_learn():
    truth, said = [True] * 6 + [False] * 2, ["pass"] * 5 + ["fail", "pass", "fail"]
    rows = [{"truth": t, "verdict": v} for t, v in zip(truth, said, strict=True)]
    found = balanced_accuracy("x", None, rows)
    assert found.value == balanced_accuracy_score(truth, [v == "pass" for v in said])
    # ½ ± 1.96 · ½ √(⅚·⅙/6 + ½·½/2)
    assert found.high - found.value == pytest.approx(min(1 - found.value, 1.959964 / 2 * (5 / 216 + 1 / 8) ** 0.5))
    assert balanced_accuracy("x", None, rows[:6]) is None


def test_auroc_by_hand():
    found = auroc("x", None, [True, True, False, False], [0.9, 0.4, 0.5, 0.1])
    assert found.value == 0.75  # three of four pairs in order
    # A(1−A) + A/(2−A)−A² + 2A²/(1+A)−A² = 0.1875 + 0.0375 + 9/112, over 4 pairs
    assert found.value - found.low == pytest.approx(1.959964 * ((0.1875 + 0.0375 + 9 / 112) / 4) ** 0.5)
    assert auroc("x", None, [True, True], [1.0, 0.0]) is None


def test_what_the_domain_writes_the_domain_reads():
    item = next(i for i in DOMAIN.items("gold", 20, 0) if i.wrong_step)
    story = read(item.problem)
    assert DOMAIN.verdict("\n".join(judgment(story, item.response))).passed is False
    assert DOMAIN.verdict("\n".join(criticism(story, item.response))).wrong_step == item.wrong_step
