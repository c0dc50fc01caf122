"""Judges on the gold set, against hand-worked examples and scikit-learn."""

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from sklearn.metrics import balanced_accuracy_score

from tasks.core import frames, roster, tables
from tasks.core.judging import Judging, opinion
from tasks.domains.arithmetic import Arithmetic, criticism, first_wrong, judgment, read
from tasks.engines import turns
from tasks.engines.fake import Fake
from tasks.evaluate import EvaluateCase, evaluate
from tasks.evaluate.answers import Answers
from tasks.evaluate.critiques import Critiques
from tasks.evaluate.judging import Calibration, auroc, balanced_accuracy, calibration_error, judge_measures
from tasks.judge import JudgeOptions, judge
from tasks.judge.jury import Jury
from tasks.judge.logprob import Logprob
from tasks.judge.random import Random
from tasks.judge.self_certainty import SelfCertainty
from tasks.judge.self_consistency import SelfConsistency
from tasks.judge.self_judge import SelfJudge
from tasks.judge.verifier import Verifier

DOMAIN = Arithmetic(easiest=2, hardest=3)


def parts(messages):
    problem, _, response = messages[-1][1].partition("\n\n")
    return read(problem), response


def oracle(messages, seed):
    story, response = parts(messages)
    return f"Verdict: {'correct' if first_wrong(story, response) is None else 'wrong'}"


def roster_of(**engines):
    return roster.Models({name: roster.Source(engine, lambda n=name: Path(n)) for name, engine in engines.items()})


def run(engine, count=20, models=None, **judges):
    case = EvaluateCase(models or roster_of(model=engine), DOMAIN, 1, judges)
    result = Calibration(count=count)(case)
    return replace(result, frames={name: f.collect() for name, f in result.frames.items()})


def values(result):
    return {(n, level): v for n, level, v in result.frames["measures"].select("name", "level", "value").rows()}


def test_a_perfect_judge():
    measures = values(run(Fake.scripted(oracle), self_judge=SelfJudge()))
    for level in (None, 2, 3):
        assert measures["self_judge_balanced_accuracy", level] == measures["self_judge_auroc", level] == 1.0
        assert measures["self_judge_calibration_error", level] == measures["self_judge_errors", level] == 0.0


def test_a_judge_that_passes_everything_is_at_chance():
    result = run(Fake(answers={"Day": "Verdict: correct"}), self_judge=SelfJudge())
    truth = result.frames["audits"]["truth"]
    measures = values(result)
    assert measures["self_judge_balanced_accuracy", None] == measures["self_judge_auroc", None] == 0.5
    assert measures["self_judge_calibration_error", None] == pytest.approx(1 - truth.mean())
    assert {True, False} == set(truth)


def test_unreadable_verdicts_are_counted_and_nothing_else():
    result = run(Fake(garbage_rate=1.0), count=10, self_judge=SelfJudge())
    assert values(result)["self_judge_errors", None] == 1.0
    assert {name for name, _ in values(result)} == {"self_judge_errors"}
    assert result.frames["audits"]["verdict"].null_count() == result.frames["audits"]["score"].null_count() == 10


class Recording(Fake):
    """Keeps what it is asked in `requests`, and how it scores in `closed`."""

    requests: list = []
    closed: list = []

    @contextmanager
    def open(self, model, cache=None):
        with super().open(model, cache) as policy:
            yield Recorder(policy, self)


class Recorder:
    def __init__(self, policy, engine):
        self.digest, self.policy, self.engine = policy.digest, policy, engine

    def sample(self, requests):
        self.engine.requests.extend(requests)
        return self.policy.sample(requests)

    def score(self, prompts, completions, closed=False):
        self.engine.closed.append(closed)
        return self.policy.score(prompts, completions, closed)


def test_the_judge_that_is_measured_is_the_one_that_judges():
    """The very requests of a round that judges the same answers: form, length, samples, temperature, seeds."""
    member = SelfJudge(samples=2, temperature=0.5, max_tokens=77, likeliest=1)
    calibration, round_ = Recording(), Recording()
    run(calibration, count=6, strict=member)

    items = DOMAIN.items("gold", 6, 0)
    prompts = [{"id": str(n), "problem": i.problem} for n, i in enumerate(items)]
    responses = [{"id": str(n), "prompt_id": str(n), "response": i.response} for n, i in enumerate(items)]
    tabled = frames.frame(tables.prompts, prompts), frames.frame(tables.responses, responses)
    judge({"strict": member}, JudgeOptions(reward="strict"), *tabled, roster.one(round_), DOMAIN, 1)

    assert len(calibration.requests) == 12
    assert calibration.requests == round_.requests
    assert {r.sampling.regex for r in calibration.requests} == {DOMAIN.verdict_form}
    assert {r.sampling.max_tokens for r in calibration.requests} == {77}


def test_likelihood_counts_the_end_token_as_that_of_a_sample_does():
    engine = Recording()
    result = run(engine, count=10, logprob=Logprob())
    assert engine.closed == [True]
    item = DOMAIN.items("gold", 10, 0)[0]
    with Fake().open(Path("model")) as policy:
        [(_, scored)] = policy.score([turns(DOMAIN.solve(item.problem))], [item.response], True)
    scores = result.frames["audits"]["score"].to_list()
    assert len(scores) == 10
    assert any(s == pytest.approx(sum(scored.logprobs) / len(scored.logprobs)) for s in scores)
    assert ("logprob_auroc", None) in values(result)


def test_an_engine_that_cannot_score_gives_errors_and_no_numbers():
    class Mute(Fake):
        scores = False

    result = run(Mute(), count=10, logprob=Logprob())
    assert values(result)["logprob_errors", None] == 1.0
    assert result.frames["audits"]["score"].null_count() == 10


def test_only_judges_of_single_answers_are_measured_and_a_jury_is():
    members = {
        "self_consistency": SelfConsistency(),
        "random": Random(),
        "verifier": Verifier(),
        "self_certainty": SelfCertainty(),
        "jury": Jury(models=["teacher", "parent"]),
        "logprob": Logprob(),
        "self_judge": SelfJudge(),
    }
    wrong = Fake(answers={"": "Verdict: wrong"})
    models = roster_of(model=Fake.scripted(oracle), teacher=wrong, parent=Fake(down=True))
    result = run(None, models=models, **members)
    assert set(result.frames["audits"]["judge"]) == {"self_judge", "jury", "logprob"}
    jury = result.frames["audits"].filter(judge="jury")
    # the parent among the jurors is the model that is measured
    assert jury.select("truth", "score").unique().sort("truth").rows() == [(False, 0.0), (True, 0.5)]


def test_a_judge_whose_model_is_not_here_is_left_out_and_named():
    result = run(Fake.scripted(oracle), self_judge=SelfJudge(), jury=Jury(models=["anchor"]))
    assert set(result.frames["audits"]["judge"]) == {"self_judge"}
    assert result.metrics == {"skipped/jury": 1.0}
    assert len(result.warnings) == 1 and "jury" in result.warnings[0] and "anchor" in result.warnings[0]


def test_without_judges_there_are_no_rows_and_no_model_is_loaded():
    for judges in ({}, {"random": Random()}):
        result = run(Fake(down=True), **judges)
        assert all(frame.is_empty() for frame in result.frames.values()) and not result.metrics


def test_the_stage_names_judge_and_member():
    models = roster_of(model=Fake.scripted(oracle))
    members = {"judging": Calibration(count=4), "again": Calibration(count=4)}
    result = evaluate(members, {"strict": SelfJudge()}, models, DOMAIN, 1)
    rows = result.frames["audits"]
    assert set(rows.select("member", "judge").rows()) == {("judging", "strict"), ("again", "strict")}
    assert rows["id"].n_unique() == rows.height == 8
    assert result.metrics["strict_auroc"] == result.metrics["again_strict_auroc"] == 1.0


def test_reserved_judges_are_those_whose_measures_others_have_too():
    """And no other name of a judge makes two rows or two measures one."""

    def exam_of(members, **judges):
        models = roster_of(model=Fake.scripted(oracle))
        return evaluate(members, judges, models, DOMAIN, 1)

    answers = Answers(greedy=2, sampled=2, samples=2, ks=(1,))
    exam = {"answers": answers, "critiques": Critiques(count=4, problems=2)}
    others = set(exam_of(exam).frames["measures"]["name"])
    own = {m.removeprefix("judge") for m in exam_of({"judging": Calibration(count=4)}, judge=SelfJudge()).metrics}
    own = {end.partition("/")[0] for end in own}
    assert own == {"_balanced_accuracy", "_auroc", "_calibration_error", "_errors"}
    clashes = {name.removesuffix(end) for name in others for end in own if name.endswith(end)}
    assert clashes == Judging.reserved_names


def test_audits_of_the_critic_and_of_a_judge_named_so_are_other_rows():
    exam = {"judging": Calibration(count=4), "critiques": Critiques(count=4, problems=0)}
    models = roster_of(model=Fake.scripted(oracle))
    rows = evaluate(exam, {"critic": SelfJudge()}, models, DOMAIN, 1).frames["audits"]
    assert set(rows.select("member", "judge").rows()) == {("judging", "critic"), ("critiques", "critic")}
    assert rows["id"].n_unique() == rows.height == 8


def test_a_score_that_is_not_finite_is_an_error():
    class Infinite(Judging):
        def __call__(self, case):
            return opinion(case.responses, pl.lit(float("inf")), "no score")

    Infinite.auditable = True
    result = run(Fake(), count=4, infinite=Infinite())
    assert values(result)["infinite_errors", None] == 1.0


def test_several_judgments_are_drawn_apart():
    def odd(messages, seed):
        return f"Verdict: {'correct' if seed % 2 else 'wrong'}"

    result = run(Fake.scripted(odd), count=6, self_judge=SelfJudge(samples=5, temperature=0.7))
    assert set(result.frames["audits"]["score"]) - {0.0, 1.0}


def test_balanced_accuracy_agrees_with_scikit_learn():
    truth, verdicts = [True] * 6 + [False] * 2, ["pass"] * 5 + ["fail", "pass", "fail"]
    rows = [{"truth": t, "verdict": v} for t, v in zip(truth, verdicts, strict=True)]
    measure = balanced_accuracy("x", None, rows)
    assert measure.value == balanced_accuracy_score(truth, [v == "pass" for v in verdicts])
    # ½ ± 1.96 · ½ √(⅚·⅙/6 + ½·½/2)
    assert measure.high - measure.value == pytest.approx(
        min(1 - measure.value, 1.959964 / 2 * (5 / 216 + 1 / 8) ** 0.5)
    )
    assert balanced_accuracy("x", None, rows[:6]) is None


def scored(truth, scores):
    return [{"truth": t, "score": s, "level": None} for t, s in zip(truth, scores, strict=True)]


def test_auroc_by_hand():
    measure = auroc("x", None, scored([True, True, False, False], [0.9, 0.4, 0.5, 0.1]))
    assert measure.value == 0.75  # three of four pairs in order
    # A(1−A) + A/(2−A)−A² + 2A²/(1+A)−A² = 0.1875 + 0.0375 + 9/112, over 4 pairs
    assert measure.value - measure.low == pytest.approx(1.959964 * ((0.1875 + 0.0375 + 9 / 112) / 4) ** 0.5)
    assert auroc("x", None, scored([True, True], [1.0, 0.0])) is None


def test_calibration_error_by_hand():
    truth, scores = [True, False, True, False, False, True], [0.95, 0.95, 0.85, 0.1, 0.05, 0.0]
    # (0.9, 1]: |1/2 − 0.95| of 2; (0.8, 0.9]: |1 − 0.85| of 1; [0, 0.1]: |1/3 − 0.05| of 3
    expected = (2 * 0.45 + 1 * 0.15 + 3 * (1 / 3 - 0.05)) / 6
    assert calibration_error("x", None, scored(truth, scores)).value == pytest.approx(expected)
    # one bin's answers make up for each other, those of two bins do not
    assert calibration_error("x", None, scored([True, False], [0.55, 0.55])).value == pytest.approx(0.05)
    assert calibration_error("x", None, scored([True, False], [0.55, 0.45])).value == pytest.approx(0.45)
    assert calibration_error("x", None, scored([True, False], [1.0, 0.0])).value == 0.0
    assert calibration_error("x", None, []) is None


def test_scores_that_are_no_probabilities_have_no_calibration_error():
    rows = [r | {"verdict": None, "error": None} for r in scored([True, False], [-0.1, -2.0])]
    assert {m.name for m in judge_measures("logprob", rows)} == {"logprob_auroc", "logprob_errors"}


def test_what_the_domain_writes_the_domain_reads():
    item = next(i for i in DOMAIN.items("gold", 20, 0) if i.wrong_step)
    story = read(item.problem)
    assert DOMAIN.verdict("\n".join(judgment(story, item.response))).passed is False
    assert DOMAIN.verdict("\n".join(criticism(story, item.response))).wrong_step == item.wrong_step
