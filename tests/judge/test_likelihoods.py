"""Judges of log-probabilities: the implicit reward of two models, and what a question adds to its answer."""

from math import exp, fsum, log, nan
from pathlib import Path

import pytest
from asked import PROMPTS, judged

from tasks.core.roster import Models, Source
from tasks.domains import Domain
from tasks.engines import Scored, turns
from tasks.engines.fake import Fake
from tasks.judge.implicit import Implicit
from tasks.judge.self_aligned import SelfAligned, emptied, relative_fall

CHAT = Domain().solve(PROMPTS[0]["problem"])
ROWS = [PROMPTS[0] | {"prompt": CHAT}]
TEXTS = [{"id": str(n), "response": text, "finish_reason": "stop"} for n, text in enumerate(["It is 11", "Seven"], 1)]
CUT = [{"id": "1", "response": "It is 11", "finish_reason": "length"}]


class Sure(Fake):
    """Whose every token has one log-probability."""

    each: float = -1.0

    def open(self, model, cache=None):
        from contextlib import contextmanager

        @contextmanager
        def opened():
            with Fake.open(self, model, cache) as policy:
                score = policy.score

                def scored(prompts, completions, closed=False):
                    for index, one in score(prompts, completions, closed):
                        yield index, type(one)(tuple(self.each for _ in one.logprobs), one.error, one.permanent)

                policy.score = scored
                yield policy

        return opened()


def models(**each):
    return Models({n: Source(Sure(each=e), lambda n=n: Path(n)) for n, e in each.items()})


def test_the_difference_of_two_models_log_probabilities():
    made = judged(
        Implicit(reference="base", beta=0.5), TEXTS, None, models=models(parent=-1.0, base=-3.0), prompts=ROWS
    )
    assert made.column() == {"1": pytest.approx(0.5 * 4 * 2), "2": pytest.approx(0.5 * 2 * 2)}  # words and the end
    assert set(made.column("verdict").values()) == {None}


def test_per_token_and_without_a_reference():
    made = judged(Implicit(reference=None, beta=1.0, mean=True), TEXTS, None, models=models(parent=-1.5), prompts=ROWS)
    assert made.column() == {"1": pytest.approx(-1.5), "2": pytest.approx(-1.5)}
    assert (
        judged(Implicit(reference=None, beta=1.0), TEXTS, None, models=models(parent=-1.5), prompts=ROWS).column()["1"]
        == -6.0
    )


def test_the_end_token_counts_where_the_model_ended_it():
    made = judged(Implicit(reference=None, beta=1.0), CUT, None, models=models(parent=-1.0), prompts=ROWS)
    assert made.column() == {"1": -3.0}


def test_two_names_of_one_model_are_refused():
    with pytest.raises(ValueError, match="both 'parent'"):
        Implicit(reference="parent")


def test_one_model_is_open_at_a_time():
    opened = models(parent=-1.0, base=-3.0)
    judged(Implicit(reference="base"), TEXTS, None, models=opened, prompts=ROWS)
    assert len(opened._open) == 1
    assert Implicit(reference="base").opened_models() == {"parent", "base"}
    assert Implicit(reference=None).opened_models() == {"parent"}


def test_an_error_of_either_model_is_one():
    broken = Models({
        "parent": Source(Sure(), lambda: Path("p")),
        "base": Source(Sure(error_rate=1.0, max_error_share=1.0), lambda: Path("b")),
    })  # fmt: skip
    made = judged(Implicit(reference="base"), TEXTS, None, models=broken, prompts=ROWS)
    assert set(made.column().values()) == {None}
    assert all(made.column("error").values())


def test_the_relative_fall_of_perplexity():
    engine = Fake()
    made = judged(SelfAligned(), TEXTS, None, engine=engine, prompts=ROWS)
    chat = turns(CHAT)
    with engine.open(Path("served")) as policy:
        given = dict(policy.score([chat] * 2, [row["response"] for row in TEXTS], True))
        alone = dict(policy.score([emptied(chat)] * 2, [row["response"] for row in TEXTS], True))
    for n in range(2):
        ppl, bare = (exp(-fsum(s[n].logprobs) / len(s[n].logprobs)) for s in (given, alone))
        assert made.column()[str(n + 1)] == pytest.approx(max(-1.0, (bare - ppl) / bare), abs=1e-6)


@pytest.mark.parametrize(
    ("after", "alone", "fall"),
    [
        ([log(1 / 2), log(1 / 8)], [log(1 / 8), log(1 / 32)], 1 - 4 / 16),  # perplexities 4 and 16
        ([log(1 / 6)], [log(1 / 4)], 1 - 6 / 4),
        ([log(1 / 9)], [log(1 / 3)], -1.0),  # 1 − 9/3, clipped
        ([-2.0], [-2.0], 0.0),
        ([-5000.0], [-1.0], -1.0),
    ],
)
def test_perplexities_worked_by_hand(after, alone, fall):
    assert relative_fall(Scored(tuple(after)), Scored(tuple(alone)))["score"] == pytest.approx(fall)


@pytest.mark.parametrize(("after", "alone"), [((nan,), (-1.0,)), ((-1.0,), (nan,)), ((), (-1.0,))])
def test_log_probabilities_that_are_no_numbers_are_an_error_and_not_the_worst_score(after, alone):
    opinion = relative_fall(Scored(after), Scored(alone))
    assert opinion["score"] is None
    assert opinion["error"]


def test_the_question_is_taken_out_and_the_role_stays():
    chat = (("system", "solve"), ("user", "1+1?"))
    assert emptied(chat) == (("system", "solve"), ("user", ""))


def test_a_response_without_its_prompt_is_an_error():
    made = judged(Implicit(reference=None, beta=1.0), TEXTS, None, models=models(parent=-1.0), prompts=[])
    assert set(made.column("error").values()) == {"its prompt is not in the table of prompts"}
