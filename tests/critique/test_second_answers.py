"""Reflections and second turns on hand-made answers."""

from contextlib import contextmanager

import pytest

from tasks.core import frames, roster, tables
from tasks.core.stage import Result
from tasks.critique import critique
from tasks.critique.reflect import Reflect
from tasks.critique.two_turn import TwoTurn
from tasks.domains import Domain
from tasks.domains.arithmetic import Arithmetic
from tasks.engines import Completion
from tasks.engines.fake import Fake

DOMAIN = Arithmetic(easiest=1, hardest=3)
PROBLEM = "Tom has 12 pens.\nDay 1: 5 found\nDay 2: halved\nHow many?"
RIGHT, WRONG = "Day 1: 12+5=17\nDay 2: 17/2=8\nAnswer: 8", "Day 1: 12+5=17\nDay 2: 17/2=9\nAnswer: 9"


class Plain(Domain):
    """Free text without a verifier."""


class CutOff(Fake):
    """Gives the wrong answer, cut off at `max_tokens`."""

    @contextmanager
    def open(self, model, cache=None):
        with super().open(model, cache) as policy:
            policy.sample = lambda requests: (
                (n, Completion(WRONG, 9, finish_reason="length")) for n, _ in enumerate(requests)
            )
            yield policy


def answer(name, text, rank=None, error=None, domain=DOMAIN):
    row = {
        "id": name,
        "prompt_id": "p",
        "response": text,
        "answer": None if error else domain.answer(text),
        "error": error,
    }
    return row, {"id": name, "prompt_id": "p", "kept": rank is not None, "rank": rank}


def run(strategy, answers, engine, domain=DOMAIN, **prompt):
    problem = {"id": "p", "problem": PROBLEM, "prompt": domain.solve(PROBLEM)} | prompt
    responses, filtered = zip(*answers, strict=True)
    result = critique(
        {strategy.strategy_name(): strategy},
        frames.frame(tables.prompts, [problem]),
        frames.frame(tables.responses, responses),
        frames.frame(tables.filtered, filtered),
        roster.one(engine),
        domain,
        1,
    )
    return Result({name: f.collect() for name, f in result.frames.items()}, result.metrics)


def rows(result, table, *columns):
    return result.frames[table].sort("response_id").select("response_id", *columns).rows()


def corrects(messages, seed):
    """Corrects an answer of which it is told that its second line is wrong."""
    return RIGHT if "Line 2 is wrong." in messages[-1][1] else WRONG


ALL = [answer("a", RIGHT), answer("b", WRONG), answer("c", "I do not know"), answer("d", "", error="time-out")]


def test_only_failing_answers_are_reflected_on_with_what_the_verifier_says():
    """Nothing was kept, so there is no target: the verifier needs none."""
    seen = []
    result = run(Reflect(), ALL, Fake.scripted(lambda m, seed: seen.append((m, seed)) or corrects(m, seed)))

    assert rows(
        result, "critiques", "critique", "verdict", "wrong_step", "refinements", "successes", "kept", "model"
    ) == [("b", "Line 2 is wrong.", "fail", 2, 1, 1, False, None)]
    assert rows(result, "refinements", "answer", "success", "hinted", "error") == [("b", "8", True, True, None)]
    assert len(seen) == 1
    assert RIGHT not in seen[0][0][-1][1]
    assert result.metrics["reflected/reflect"] == result.metrics["reflection_success/reflect"] == 1


def test_a_reflection_that_fails_or_has_no_answer():
    result = run(Reflect(), ALL, Fake.scripted(lambda m, seed: WRONG))
    assert rows(result, "refinements", "success", "error") == [("b", False, None)]
    assert rows(result, "critiques", "refinements", "successes") == [("b", 1, 0)]

    result = run(Reflect(), ALL, Fake(error_rate=1.0))
    assert rows(result, "refinements", "success") == [("b", None)]
    assert rows(result, "critiques", "refinements", "successes") == [("b", 0, 0)]
    assert result.metrics["reflection_errors/reflect"] == 1


def test_without_a_verifier_the_target_decides():
    answers = [answer("a", "yes", 1, domain=Plain()), answer("b", "no", domain=Plain())]
    result = run(Reflect(), answers, Fake.scripted(lambda m, seed: "yes"), Plain())
    assert rows(result, "critiques", "critique", "target") == [("b", "The answer is wrong.", "yes")]
    assert rows(result, "refinements", "success") == [("b", True)]

    without = run(Reflect(), [answer("a", "yes", domain=Plain())], Fake(down=True), Plain())
    assert without.frames["critiques"].is_empty()  # nobody knows


def looks_again(messages, seed):
    """Turns right into wrong, and wrong into right."""
    return WRONG if RIGHT in messages[-1][1] else RIGHT


def test_right_and_wrong_answers_alike_get_a_second_turn():
    answers = [answer("a", RIGHT, 1), *ALL[1:], answer("e", RIGHT)]  # e is a's text again
    result = run(TwoTurn(), answers, Fake.scripted(looks_again))

    assert rows(result, "refinements", "answer", "success", "hinted") == [
        ("a", "9", False, True),
        ("b", "8", True, True),
    ]
    assert rows(result, "critiques", "critique", "verdict", "kept", "refinements", "successes") == [
        ("a", "", None, False, 1, 0), ("b", "", None, False, 1, 1),
    ]  # fmt: skip
    chats = result.frames["critiques"].sort("response_id")["prompt"].to_list()
    assert chats == [DOMAIN.retry(PROBLEM, text) for text in (RIGHT, WRONG)]
    joined = result.frames["refinements"].join(result.frames["critiques"], left_on="critique_id", right_on="id")
    assert (joined["response_id"] == joined["response_id_right"]).all() and len(joined) == 2
    metrics = {name.partition("/")[0]: value for name, value in result.metrics.items()}
    assert (metrics["turned_right"], metrics["turned_wrong"], metrics["turn_errors"]) == (1, 1, 0)


@pytest.mark.parametrize("engine", [Fake(error_rate=1.0), Fake(garbage_rate=1.0)])
def test_a_second_turn_without_an_answer_is_an_error_and_not_wrong(engine):
    result = run(TwoTurn(), [answer("a", RIGHT, 1), answer("b", WRONG)], engine)
    assert result.frames["refinements"]["success"].null_count() == 2
    assert result.frames["refinements"]["error"].null_count() == 0
    assert result.frames["critiques"]["refinements"].to_list() == [0, 0]
    assert result.metrics["turned_wrong/two_turn"] == 0


@pytest.mark.parametrize("strategy", [Reflect(), TwoTurn()])
def test_an_answer_that_was_cut_off_is_an_error_and_not_wrong(strategy):
    result = run(strategy, [answer("a", RIGHT, 1), answer("b", WRONG)], CutOff())
    refined = result.frames["refinements"]
    assert len(refined) and set(refined.select("answer", "success", "error").rows()) == {(None, None, "cut off")}
    assert set(result.frames["critiques"].select("refinements", "successes").rows()) == {(0, 0)}


@pytest.mark.parametrize("strategy", [Reflect(), TwoTurn()])
def test_an_answer_that_was_cut_off_is_not_answered_again(strategy):
    cut = answer("b", WRONG)
    cut[0]["finish_reason"] = "length"
    result = run(strategy, [answer("a", RIGHT, 1), cut], Fake.scripted(corrects))
    assert "b" not in result.frames["critiques"]["response_id"].to_list()


def test_without_a_target_there_is_no_second_turn():
    result = run(TwoTurn(), ALL, Fake(down=True))
    assert result.frames["critiques"].is_empty()


@pytest.mark.parametrize("strategy", [Reflect(model="anchor"), TwoTurn(model="anchor")])
def test_the_model_that_answers_again_is_a_parameter(strategy):
    assert strategy.opened_models() == {"anchor"}
