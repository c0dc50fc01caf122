import math
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from tasks.core.errors import EngineError
from tasks.engines import Request, Sampling
from tasks.engines.fake import Fake

NOWHERE = Path("no/such/model")
WANTED = [Request((("user", f"How many? {i % 5}"),), Sampling(), i) for i in range(200)]


def ask(engine, wanted=WANTED):
    with engine.open(NOWHERE) as policy:
        return [c for _, c in policy.sample(wanted)]


def test_answers_are_a_pure_function_of_messages_and_seed():
    assert ask(Fake()) == ask(Fake())
    assert ask(Fake(), WANTED[::-1])[::-1] == ask(Fake())
    assert len({c.text for c in ask(Fake())}) > 3


def test_greedy_has_no_seed():
    cold = [Request(WANTED[0].messages, Sampling(temperature=0.0), seed) for seed in range(5)]
    first, *others = ask(Fake(), cold)
    assert others == [first] * 4


def test_answers_can_be_scripted():
    assert ask(Fake(reply="echo"))[3].text == "How many? 3"
    assert ask(Fake(answers={"? 3": "Answer: 8"}))[3].text == "Answer: 8"
    assert ask(Fake.scripted(lambda messages, seed: f"{messages[-1][1]} {seed}"))[3].text == "How many? 3 3"


def test_faults_come_at_the_rates_asked_for():
    answers = ask(Fake(error_rate=0.2, garbage_rate=0.3))
    failed = [c for c in answers if c.error]
    assert 20 < len(failed) < 60
    assert all(c.text == "" and c.finish_reason == "error" for c in failed)
    assert 35 < sum("\ufffd" in c.text for c in answers) < 85


def test_slow_is_slow():
    start = time.monotonic()
    ask(Fake(seconds=0.02), WANTED[:5])
    assert time.monotonic() - start >= 0.1


def test_a_crash_is_a_kill_after_so_many_answers():
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with Fake(crash_after=3).open(NOWHERE) as policy:
            for index, _ in policy.sample(WANTED):
                os.write(writer, bytes([index]))
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert os.read(reader, 100) == bytes([0, 1, 2])


def test_down_is_a_clear_error():
    with pytest.raises(EngineError, match="down"):
        ask(Fake(down=True))


def test_scores_are_log_probabilities():
    with Fake().open(NOWHERE) as policy:
        scores = dict(policy.score([r.messages for r in WANTED[:3]], ["a b", "", "c"]))
    assert [len(scores[i].logprobs) for i in range(3)] == [2, 0, 1]
    assert all(p <= 0 for s in scores.values() for p in s.logprobs)


def test_a_closed_score_has_as_many_tokens_as_the_sampled_answer():
    answers = ask(Fake())
    prompts, texts = [r.messages for r in WANTED], [c.text for c in answers]
    with Fake().open(NOWHERE) as policy:
        closed, opened = dict(policy.score(prompts, texts, closed=True)), dict(policy.score(prompts, texts))
    assert [len(closed[i].logprobs) for i in range(len(answers))] == [c.tokens for c in answers]
    assert all(closed[i].logprobs[:-1] == opened[i].logprobs for i in opened)


def test_a_trace_sums_to_the_totals_and_changes_nothing_else():
    traced = [replace(r, sampling=Sampling(trace=True)) for r in WANTED]
    answers = ask(Fake(), traced)
    assert answers == ask(Fake(), traced)
    for ours in answers:
        assert len(ours.token_logprobs) == len(ours.token_entropies) == ours.tokens
        assert sum(ours.token_logprobs) == pytest.approx(ours.logprob, abs=1e-6)
        assert sum(ours.token_entropies) / ours.tokens == pytest.approx(ours.entropy, abs=1e-6)
        assert len(set(ours.token_entropies)) == ours.tokens, "tokens differ"
        assert max(ours.token_logprobs) <= 0 <= min(ours.token_entropies)
    assert [replace(c, token_logprobs=None, token_entropies=None) for c in answers] == ask(Fake())


def vectors(*texts, **how):
    with Fake(**how).open(NOWHERE) as policy:
        return [embedded for _, embedded in policy.embed(texts)]


def test_the_more_words_two_texts_share_the_closer_they_are():
    a, same, near, far, empty = vectors("two red pens", "two red pens", "two red books", "Ann sold all", " ")
    assert a == same
    assert (len(a.vector), a.tokens, math.hypot(*a.vector)) == (8, 3, pytest.approx(1))
    assert np.dot(a.vector, near.vector) > np.dot(a.vector, far.vector)
    assert empty.permanent and "empty" in empty.error


def test_scores_and_vectors_fail_at_the_error_rate():
    texts = [f"{n} pens" for n in range(200)]
    with Fake(error_rate=0.2).open(NOWHERE) as policy:
        scores = [s for _, s in policy.score([r.messages for r in WANTED], texts)]
    for answers in (scores, vectors(*texts, error_rate=0.2)):
        assert 20 < sum(a.error is not None for a in answers) < 60
    assert not any(a.vector for a in vectors(*texts, error_rate=1.0))


def test_a_rate_is_a_share():
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        Fake(error_rate=2)
