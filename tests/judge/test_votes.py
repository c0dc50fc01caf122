"""Judges that look at all of a prompt's answers together: who votes, with which weight."""

from math import exp, log, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.core import frames, roster, tables
from tasks.engines.fake import Fake
from tasks.judge import JudgeOptions, judge
from tasks.judge.borda import Borda
from tasks.judge.collective import Collective
from tasks.judge.rouge_consensus import RougeConsensus, consensus, rouge_l, words
from tasks.judge.rpc import Rpc, fit, weighted_densities
from tasks.judge.self_consistency import SelfConsistency
from tasks.judge.shortest import Shortest


def run(member, responses):
    """Score, verdict and error by response."""
    rows = [{"id": f"r{n:02}", "prompt_id": "p", "response": f"text {n}"} | row for n, row in enumerate(responses)]
    made = judge(
        {"m": member}, JudgeOptions(reward="m"), frames.frame(tables.prompts), frames.frame(tables.responses, rows),
        models=roster.one(Fake(down=True)), domain=None, seed=1,
    )  # fmt: skip
    rows = made.sort("response_id").select("score", "verdict", "error").collect()
    return rows["score"].to_list(), rows["verdict"].to_list(), rows["error"].to_list()


def samples(answers, **columns):
    return [{"answer": a} | {k: v[n] for k, v in columns.items()} for n, a in enumerate(answers)]


# Borda


def test_surer_answers_have_more_of_the_vote():
    scores, verdicts, errors = run(Borda(), samples(["8", "9", "8"], self_certainty=[1.0, 3.0, 2.0]))
    weights = [1.0, sqrt(3), sqrt(2)]  # (N − rank + 1)^½ for ranks 3, 1, 2
    total = sum(weights)
    assert scores == pytest.approx([(1 + sqrt(2)) / total, sqrt(3) / total, (1 + sqrt(2)) / total])
    assert verdicts == ["pass", "fail", "pass"]
    assert errors == [None] * 3


def test_with_power_0_it_is_a_plain_vote():
    rows = samples(["8", "9", "8", "7"], self_certainty=[1.0, 3.0, 2.0, 0.5])
    assert run(Borda(power=0), rows)[0] == pytest.approx(run(SelfConsistency(), rows)[0])


def test_who_has_no_answer_or_no_certainty_does_not_vote():
    scores, verdicts, errors = run(Borda(), samples(["8", None, "9"], self_certainty=[1.0, 9.0, None]))
    assert scores == [1.0, None, None]
    assert verdicts == ["pass", None, None]
    assert errors[0] is None
    assert "no answer" in errors[1]
    assert "self-certainty" in errors[2]


def test_equal_certainties_share_their_ranks_and_a_tie_is_no_verdict():
    scores, verdicts, _ = run(Borda(), samples(["8", "9"], self_certainty=[2.0, 2.0]))
    assert scores == pytest.approx([0.5, 0.5])
    assert verdicts == [None, None]


# First finish


def test_the_shortest_finished_answer_is_first():
    rows = samples(["8", "9", "8", "7"], tokens=[30, 10, 20, 5], finish_reason=["stop", "stop", "stop", "length"])
    scores, verdicts, errors = run(Shortest(), rows)
    assert scores == pytest.approx([2 / 4, 1.0, 3 / 4, 1 / 4])  # what was cut off ends last
    assert verdicts == errors == [None] * 4


def test_equal_lengths_share_their_ranks():
    assert run(Shortest(), samples(["8", "9", "7"], tokens=[10, 10, 20]))[0] == pytest.approx([1.0, 1.0, 1 / 3])
    assert run(Shortest(), samples([None, "9"], tokens=[1, 2]))[0] == [None, 1.0]


# RPC


def test_few_paths_are_not_pruned_and_equal_texts_are_one_path():
    rows = [
        {"answer": "8", "mean_logprob": log(0.8), "response": "a"},
        {"answer": "8", "mean_logprob": log(0.8), "response": "a"},
        {"answer": "9", "mean_logprob": log(0.6), "response": "b"},
    ]
    scores, verdicts, _ = run(Rpc(), rows)
    assert scores == pytest.approx([0.8, 0.8, 0.6])
    assert verdicts == ["pass", "pass", "fail"]


def test_unlikely_paths_do_not_vote():
    likely, unlikely = [0.90, 0.91, 0.92, 0.93, 0.94], [0.20, 0.21, 0.22, 0.23, 0.24, 0.25]
    rows = samples(["8"] * 5 + ["9"] * 6, mean_logprob=[log(p) for p in likely + unlikely])
    scores, verdicts, _ = run(Rpc(), rows)
    assert scores == pytest.approx([sum(likely)] * 5 + [0.0] * 6)
    assert run(Rpc(min_paths=20), rows)[0] == pytest.approx([sum(likely)] * 5 + [sum(unlikely)] * 6)
    assert verdicts == ["pass"] * 5 + ["fail"] * 6


@pytest.mark.parametrize("other", [0.1 * (1 + 1e-15), 0.1 * (1 - 1e-15)])
def test_paths_that_differ_by_rounding_are_equally_likely(other):
    rows = samples(["8"] * 9 + ["9"], mean_logprob=[log(0.1)] * 9 + [log(other)])
    assert run(Rpc(), rows)[0] == pytest.approx([0.9] * 9 + [0.1])


def test_probabilities_may_vanish():
    scores, verdicts, _ = run(Rpc(), samples(["8"] * 6 + ["9"] * 5, mean_logprob=[log(0.9)] * 6 + [-1e4] * 5))
    assert scores == pytest.approx([5.4] * 6 + [0.0] * 5)
    assert verdicts == ["pass"] * 6 + ["fail"] * 5


def test_the_mixture_finds_the_components_that_made_the_data():
    from scipy.stats import weibull_min

    rng = np.random.default_rng(0)
    low = weibull_min.rvs(6.0, scale=0.3, size=400, random_state=rng)
    high = weibull_min.rvs(30.0, scale=0.9, size=600, random_state=rng)
    p = np.clip(np.concatenate([low, high]), 0, 1)
    mixture = fit(p.tolist())
    assert mixture.scales == pytest.approx((0.3, 0.9), rel=0.05)
    assert mixture.shapes == pytest.approx((6.0, 30.0), rel=0.2)
    assert mixture.weights == pytest.approx((0.4, 0.6), abs=0.03)
    of_low, of_high = weighted_densities(mixture, p)
    assert (of_low > of_high)[:400].mean() > 0.97
    assert not (of_low > of_high)[400:].any()
    assert of_low == pytest.approx(mixture.weights[0] * weibull_min.pdf(p, mixture.shapes[0], scale=mixture.scales[0]))


@given(st.lists(st.tuples(st.sampled_from("789"), st.floats(-5, 0)), min_size=1, max_size=12))
def test_without_pruning_an_answer_has_the_sum_of_its_paths(drawn):
    rows = samples([a for a, _ in drawn], mean_logprob=[m for _, m in drawn])
    scores, _, errors = run(Rpc(min_paths=100), rows)
    for (answer, _), score in zip(drawn, scores, strict=True):
        assert score == pytest.approx(sum(exp(m) for a, m in drawn if a == answer))
    assert errors == [None] * len(drawn)


# Several models


def test_a_model_counts_as_much_as_it_agrees_with_itself():
    rows = [
        {"answer": "8", "author": "one"}, {"answer": "8", "author": "one"},  # agrees with itself wholly here
        {"answer": "9", "author": "two"}, {"answer": "7", "author": "two"},  # half of the time
        {"answer": "1", "author": "one", "prompt_id": "q"}, {"answer": "2", "author": "one", "prompt_id": "q"},
    ]  # fmt: skip
    one, two = (1.0 + 0.5) / 2, 0.5
    scores, verdicts, _ = run(Collective(within=True), rows)
    assert scores[:4] == pytest.approx([one / (one + two)] * 2 + [two / 2 / (one + two)] * 2)
    assert verdicts[:4] == ["pass", "pass", "fail", "fail"]
    assert scores[4:] == pytest.approx([0.5, 0.5])


def test_each_sample_may_have_its_authors_vote():
    rows = [{"answer": a, "author": who} for who, a in [("one", "8"), ("two", "9"), ("two", "9"), ("two", "9")]]
    assert run(Collective(), rows)[0] == pytest.approx([0.25, 0.75, 0.75, 0.75])
    assert run(Collective(within=True), rows)[0] == pytest.approx([0.5] * 4)


def test_one_author_is_self_consistency():
    rows = samples(["8", "9", "8", None])
    assert run(Collective(), [r | {"author": "a"} for r in rows])[0] == pytest.approx([2 / 3, 1 / 3, 2 / 3, None])


# Consensus


def test_answers_that_match_after_normalisation_are_taken():
    assert run(RougeConsensus(), samples(["The cat.", "the  CAT", "a dog"]))[0] == [1.0, 1.0, 0.0]


def test_else_the_answer_most_like_the_others_if_all_are_somewhat_alike():
    scores, verdicts, _ = run(RougeConsensus(), samples(["the cat sat", "the cat ran", "the dog sat"]))
    assert scores == pytest.approx([2 / 3, (2 / 3 + 1 / 3) / 2, (2 / 3 + 1 / 3) / 2])
    assert verdicts == [None] * 3
    assert run(RougeConsensus(), samples(["the cat sat", "the cat ran", "blue"]))[0] == [0.0] * 3


def test_two_camps_of_equal_size_have_one_each_and_one_answer_alone_is_an_error():
    assert run(RougeConsensus(), samples(["8", "8", "9", "9", "7"]))[0] == [1.0] * 4 + [0.0]
    scores, _, errors = run(RougeConsensus(), samples(["8", None]))
    assert scores == [None, None]
    assert "compare" in errors[0]


@given(
    st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=8), st.lists(st.sampled_from(["a", "b", "c"]), max_size=8)
)
def test_rouge_l_is_googles(one, other):
    from rouge_score.rouge_scorer import RougeScorer

    scored = RougeScorer(["rougeL"]).score(" ".join(one), " ".join(other))["rougeL"].fmeasure
    assert rouge_l(" ".join(one), " ".join(other)) == pytest.approx(scored)


@given(st.permutations(["a b c d e z", "a b x z", "c d e f g z", "b c d x z", "g h a z", "i x e z", "a c e g z"]))
def test_a_consensus_does_not_depend_on_the_order_of_answers(answers):
    scores = dict(zip(answers, consensus(answers, 0.0), strict=True))
    assert min(scores.values()) > 0
    assert scores == dict(zip(sorted(answers), consensus(sorted(answers), 0.0), strict=True))


def test_words():
    assert words("  It's  a_B! ") == ["it", "s", "a", "b"]
