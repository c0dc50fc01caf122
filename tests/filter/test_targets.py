"""The target of a prompt: one definition for whoever criticises and pairs its answers."""

import pytest

from tasks.core import frames, roster, tables
from tasks.core.targets import targets
from tasks.critique import critique
from tasks.critique.auto_math import AutoMathCritique
from tasks.domains.arithmetic import Arithmetic
from tasks.engines.fake import Fake
from tasks.filter import filter as filtering
from tasks.filter.threshold import Threshold
from tasks.pair import pair
from tasks.pair.best_worst import BestWorst


def prompt(name: str, error: str | None = None) -> dict:
    return {"id": name, "problem": f"problem {name}", "prompt": [{"role": "user", "content": name}], "error": error}


def response(name: str, answer: str | None, logprob: float = -1.0) -> dict:
    row = {"id": name, "prompt_id": name[0], "response": f"{name}: {answer}", "answer": answer, "tokens": 9}
    return row | {"finish_reason": "stop", "mean_logprob": logprob}


def test_it_is_the_answer_of_the_kept_response_of_rank_1():
    responses = [response(name, "7" if name.endswith("2") else "8") for name in ("a1", "a2", "b1", "c1", "d1")]
    ranks = {"a1": 2, "a2": 1, "b1": None, "c1": 1, "d1": 1, "e1": 1}
    filtered = [{"id": i, "prompt_id": i[0], "kept": rank is not None, "rank": rank} for i, rank in ranks.items()]
    frame = targets(
        frames.frame(
            tables.prompts, [prompt("a"), prompt("b"), prompt("c", error="malformed"), prompt("d"), prompt("e")]
        ),
        frames.frame(tables.responses, [*responses, response("e1", None)]),
        frames.frame(tables.filtered, filtered),
    )
    # nothing of b was kept, c cannot be used, e has no answer
    assert frame.sort("prompt_id").collect().rows() == [("a", "problem a", "a2", "7"), ("d", "problem d", "d1", "8")]


@pytest.mark.parametrize("likeliest", ["a1", "a2"])
def test_on_a_tie_critiques_and_pairs_take_the_one_that_the_filter_takes(likeliest):
    rows = [response(n, n[1], -0.5 if n == likeliest else -1.0) for n in ("a1", "a2")] + [response("a3", "3")]
    prompts, responses = frames.frame(tables.prompts, [prompt("a")]), frames.frame(tables.responses, rows)
    scores = {"a1": 0.5, "a2": 0.5, "a3": 0.0}
    judgments = frames.frame(
        tables.judgments, [{"id": n, "response_id": n, "reward": True, "score": score} for n, score in scores.items()]
    )
    filtered = filtering(Threshold(), prompts, responses, judgments)

    critics = {"auto_math": AutoMathCritique(per_prompt=3, correct_share=0)}
    models = roster.one(Fake(answers={"": "Verdict: wrong"}))
    result = critique(critics, prompts, responses, filtered, models, Arithmetic(), 1)
    pairs = pair(
        {"best_worst": BestWorst()}, prompts, responses, judgments, filtered, result.frames["refinements"], None, None
    )

    assert set(result.frames["critiques"].collect()["target"]) == {likeliest[1]}
    assert pairs.collect()["chosen_id"].to_list() == [likeliest]


def test_what_the_filter_refused_makes_no_critique_and_no_pair():
    rows = [response("a1", "1"), response("a2", "2")]
    prompts, responses = frames.frame(tables.prompts, [prompt("a")]), frames.frame(tables.responses, rows)
    judgments = frames.frame(
        tables.judgments,
        [
            {"id": f"{n}-{judge}", "response_id": n, "member": judge, "reward": judge == "votes", "score": score}
            for n, score in {"a1": 0.75, "a2": 0.25}.items()
            for judge in ("votes", "critic")
        ],
    )
    members = {"auto_math": AutoMathCritique()}, {"best_worst": BestWorst()}
    counts = []
    for required in ({}, {"critic": 0.9}):  # the second one refuses both
        filtered = filtering(Threshold(require=required), prompts, responses, judgments)
        models = roster.one(Fake(answers={"": "Verdict: wrong"}))
        result = critique(members[0], prompts, responses, filtered, models, Arithmetic(), 1)
        refinements = result.frames["refinements"]
        pairs = pair(members[1], prompts, responses, judgments, filtered, refinements, None, None)
        counts.append((result.frames["critiques"].collect().height, pairs.collect().height))
    assert counts == [(1, 1), (0, 0)]
