from contextlib import closing

import polars as pl
import pytest

from tasks.core import frames, roster, tables
from tasks.core.errors import ParamsError
from tasks.core.ids import content_id, member_seed, seed_of
from tasks.core.judging import JudgeCase, grade, graded
from tasks.domains import Domain, Verdict
from tasks.domains.arithmetic import Arithmetic
from tasks.engines.fake import Fake
from tasks.judge import JudgeOptions, judge
from tasks.judge.logprob import Logprob
from tasks.judge.random import Random
from tasks.judge.self_certainty import SelfCertainty
from tasks.judge.self_consistency import SelfConsistency
from tasks.judge.self_judge import SelfJudge
from tasks.judge.verifier import Verifier

PROBLEM = "Tom has 12 pens.\nDay 1: 5 found\nDay 2: halved\nHow many?"
RIGHT = "Day 1: 12+5=17\nDay 2: 17/2=8\nAnswer: 8"
WRONG = "Day 1: 12+5=17\nDay 2: 17/2=9\nAnswer: 9"
PROMPTS = [{"id": "p", "problem": PROBLEM}, {"id": "q", "problem": PROBLEM}]


def answered(*answers: str | None, prompt: str = "p", **more) -> list[dict]:
    return [
        {"id": f"{prompt}{k}", "prompt_id": prompt, "sample": k, "response": f"Answer: {a}", "answer": a} | more
        for k, a in enumerate(answers)
    ]


def run(members: dict, responses: list[dict], engine: Fake | None = None, **context) -> pl.DataFrame:
    options = JudgeOptions(reward=context.pop("reward", next(iter(members))))
    prompts = frames.frame(tables.prompts, context.pop("prompts", PROMPTS))
    models = roster.one(engine or Fake(down=True))
    context = {"domain": Arithmetic(), "seed": 3, "models": models} | context
    return judge(members, options, prompts, frames.frame(tables.responses, responses), **context).collect()


def column(rows: pl.DataFrame, name: str = "score") -> dict:
    return dict(rows.select("response_id", name).rows())


def test_the_reward_is_a_member():
    with pytest.raises(ParamsError, match="'verifier'"):
        run({"verifier": Verifier(), "logprob": Logprob()}, [], reward="verifer")


def test_every_member_judges_every_response_and_one_is_the_reward():
    members = {"self_consistency": SelfConsistency(), "logprob": Logprob(), "verifier": Verifier()}
    rows = run(members, answered("8", "9", mean_logprob=-0.5), reward="logprob")

    assert rows.select("member", "response_id").rows() == [(m, r) for m in sorted(members) for r in ("p0", "p1")]
    assert set(rows.filter("reward")["member"]) == {"logprob"}
    assert rows["id"].to_list() == [content_id(r, m) for m, r in rows.select("member", "response_id").rows()]
    assert set(rows["prompt_id"]) == {"p"}


def test_what_failed_is_an_error_of_every_judge_and_asks_nothing():
    failed = [{"id": "f", "prompt_id": "p", "error": "time-out"}]
    requests = []
    engine = Fake.scripted(lambda messages, seed: requests.append(messages) or "Verdict: correct")
    members = {
        "a": SelfConsistency(),
        "b": Verifier(),
        "c": SelfJudge(),
        "d": Random(),
        "e": Logprob(),
        "f": SelfCertainty(),
    }

    rows = run(members, failed, engine)

    assert set(rows["error"]) == {"no response: time-out"}
    assert rows["score"].null_count() == rows["verdict"].null_count() == len(rows) == 6
    assert requests == []


def test_no_responses():
    members = {"self_consistency": SelfConsistency(), "verifier": Verifier(), "self_judge": SelfJudge()}
    rows = run(members, [], Fake())

    assert rows.is_empty()
    assert set(tables.judgments.schema.names) <= set(rows.columns)


def test_vote_shares():
    rows = run({"v": SelfConsistency()}, [*answered("8", "8", "9", None), *answered("8", prompt="q")])

    assert column(rows) == {"p0": 0.5, "p1": 0.5, "p2": 0.25, "p3": None, "q0": 1.0}
    assert column(rows, "verdict") == {"p0": "pass", "p1": "pass", "p2": "fail", "p3": None, "q0": "pass"}
    assert column(rows, "error")["p3"] == "no answer in the response"


def test_a_tie_at_the_top_is_no_verdict():
    rows = run({"v": SelfConsistency()}, answered("1", "1", "2", "2", "3"))

    assert column(rows, "verdict") == {"p0": None, "p1": None, "p2": None, "p3": None, "p4": "fail"}


def test_a_response_that_failed_has_no_vote():
    responses = [*answered("8", "9", "8"), {"id": "f", "prompt_id": "p", "error": "time-out"}]

    assert column(run({"v": SelfConsistency()}, responses))["p0"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(("member", "name"), [(Logprob(), "mean_logprob"), (SelfCertainty(), "self_certainty")])
def test_the_engines_numbers_are_scores_where_they_are_numbers(member, name):
    values = [-0.25, None, float("nan"), float("-inf")]
    responses = [row | {name: value} for row, value in zip(answered(*"1234"), values, strict=True)]

    rows = run({"m": member}, responses)

    assert column(rows) == {"p0": -0.25, "p1": None, "p2": None, "p3": None}
    errors = column(rows, "error")
    assert errors["p0"] is None
    assert errors["p1"].startswith("the engine gave no ")
    assert errors["p2"] == errors["p3"] == "score is not finite"


def test_random_scores_are_uniform_and_depend_on_seed_and_id_alone():
    responses = answered(*map(str, range(2000)))
    rows, again, other = (
        run({"r": Random()}, responses),
        run({"r": Random()}, responses[::-1]),
        run({"r": Random()}, responses, seed=4),
    )

    assert rows.equals(again)
    assert not rows["score"].equals(other["score"])
    assert 0 <= rows["score"].min() < rows["score"].max() < 1
    assert rows["score"].mean() == pytest.approx(0.5, abs=0.03)
    assert rows["score"].var() == pytest.approx(1 / 12, abs=0.01)


def test_the_verifier_judges_steps_and_answers():
    responses = [
        row | {"response": text} for row, text in zip(answered("8", "9", "8"), (RIGHT, WRONG, "Answer: 8"), strict=True)
    ]
    rows = run({"v": Verifier()}, responses)

    assert column(rows) == {"p0": 1.0, "p1": 0.0, "p2": 0.0}
    assert column(rows, "verdict") == {"p0": "pass", "p1": "fail", "p2": "fail"}


def test_a_domain_without_a_verifier_gives_errors_and_references_reach_one_that_has():
    class Compare(Domain):
        def verify(self, problem, response, reference=None):
            return Verdict(response == reference) if reference else Verdict(None, error="no reference")

    rows = run({"v": Verifier()}, answered("8"), domain=Domain())
    assert column(rows, "error") == {"p0": "this domain has no verifier"}

    prompts = [PROMPTS[0] | {"reference": "Answer: 8"}, PROMPTS[1]]
    responses = [*answered("8", "9"), *answered("8", prompt="q")]
    rows = run({"v": Verifier()}, responses, domain=Compare(), prompts=prompts)
    assert column(rows) == {"p0": 1.0, "p1": 0.0, "q0": None}


def test_a_response_whose_prompt_is_gone_is_an_error():
    members = {"verifier": Verifier(), "self_judge": SelfJudge()}
    rows = run(members, answered("8", prompt="gone"), Fake())

    assert set(rows["error"]) == {"its prompt is not in the table of prompts"}


def test_the_self_judge_asks_once_for_equal_answers():
    texts = []

    def answer(messages, seed):
        texts.append(messages[-1][1])
        return "Verdict: correct" if texts[-1].endswith("Answer: 8") else "Verdict: wrong"

    rows = run({"j": SelfJudge()}, answered("8", "8", "9"), Fake.scripted(answer))

    assert column(rows) == {"p0": 1.0, "p1": 1.0, "p2": 0.0}
    assert column(rows, "verdict") == {"p0": "pass", "p1": "pass", "p2": "fail"}
    assert column(rows, "rationale")["p2"] == "Verdict: wrong"
    assert texts == [Arithmetic().judge(PROBLEM, f"Answer: {a}")[-1]["content"] for a in "89"]


def test_the_self_judge_judges_only_the_likeliest_different_answers_of_each_prompt():
    rows = [
        a | {"mean_logprob": m} for a, m in zip(answered("8", "9", "7", "9"), (-0.3, -0.1, -0.2, -0.4), strict=True)
    ]
    judged = run({"j": SelfJudge(likeliest=2)}, rows, Fake.scripted(lambda messages, seed: "Verdict: correct"))
    assert set(column(judged)) == {"p1", "p2", "p3"}  # both answers 9 and the 7


def test_where_answers_are_equally_likely_the_most_frequent_are_judged():
    """Not the first in the alphabet."""
    for logprobs in ({}, {"mean_logprob": -0.5}, {"mean_logprob": float("nan")}):
        responses = [
            *answered("1", "2", "7", "7", "9", "9", "9", **logprobs),
            *answered("3", "4", "4", prompt="q", **logprobs),
        ]
        judged = run({"j": SelfJudge(likeliest=2)}, responses, Fake.scripted(lambda messages, seed: "Verdict: correct"))
        assert set(column(judged)) == {"p2", "p3", "p4", "p5", "p6", "q0", "q1", "q2"}


def test_between_equally_frequent_answers_the_seed_draws():
    responses = [row for k in range(60) for row in answered("1", "2", prompt=f"prompt{k}-")]
    prompts = [{"id": f"prompt{k}-", "problem": f"{PROBLEM} {k}"} for k in range(60)]

    def judged(seed: int) -> set[str]:
        rows = run(
            {"j": SelfJudge(likeliest=1)}, responses, Fake(answers={"": "Verdict: correct"}), prompts=prompts, seed=seed
        )
        return set(rows["response_id"])

    firsts = [sum(name.endswith("-0") for name in judged(seed)) for seed in (1, 2)]
    assert len(judged(1)) == 60 and all(15 < n < 45 for n in firsts)
    assert judged(1) == judged(1) != judged(2)


def test_a_member_of_another_name_draws_otherwise():
    rows = run({"random": Random(), "second": Random()}, answered("8", "9"))

    for member in ("random", "second"):
        seed = member_seed(3, member, "random")
        scores = [(seed_of(seed, "random", r) >> 10) / 2**53 for r in ("p0", "p1")]
        assert rows.filter(member=member)["score"].to_list() == scores
    assert rows["score"].n_unique() == 4 and rows["id"].n_unique() == 4


def test_a_case_opens_the_author_of_the_responses_as_parent():
    models = roster.Models({n: roster.Source(Fake(), lambda n=n: n) for n in ("parent", "model", "teacher")})
    case = JudgeCase(
        frames.frame(tables.prompts), frames.frame(tables.responses), models, Arithmetic(), 1, model="model"
    )
    digests = {}
    for name in ("parent", "teacher"):
        with case.open(name) as policy:
            digests[name] = policy.digest
    with models.open("model") as policy:
        assert digests["parent"] == policy.digest != digests["teacher"]


def test_the_seeds_of_judgments_are_hashes_of_what_is_judged():
    def seeds(*answers: str) -> dict[str, set[int]]:
        seen: dict[str, set[int]] = {}
        engine = Fake.scripted(lambda messages, seed: seen.setdefault(messages[-1][1][-1], set()).add(seed) or "")
        run({"j": SelfJudge(samples=3, temperature=1.0)}, answered(*answers), engine)
        return seen

    both = seeds("8", "9")
    assert [len(s) for s in both.values()] == [3, 3]
    assert not both["8"] & both["9"]
    assert seeds("9") == {"9": both["9"]}


def test_judgments_that_cannot_be_read_do_not_count():
    texts = iter(["Verdict: correct", "hm", "Verdict: wrong", "Verdict: correct", *["hm"] * 4])
    engine = Fake.scripted(lambda messages, seed: next(texts))

    rows = run({"j": SelfJudge(samples=4, temperature=1.0)}, answered("8", "9"), engine)

    assert column(rows) == {"p0": pytest.approx(2 / 3), "p1": None}
    assert column(rows, "verdict") == {"p0": "pass", "p1": None}
    assert column(rows, "error")["p1"] == Arithmetic().verdict("hm").error
    assert column(rows, "rationale")["p1"] == "hm"


def test_a_judge_that_is_down_is_an_error_of_the_row():
    rows = run({"j": SelfJudge()}, answered("8"), Fake(error_rate=1.0))

    assert column(rows, "error") == {"p0": "the fake engine failed, as its params ask"}


@pytest.mark.parametrize(
    ("verdicts", "score", "verdict"),
    [
        ([Verdict(True)], 1.0, "pass"),
        ([Verdict(False, 2)], 0.0, "fail"),
        ([Verdict(True), Verdict(False)], 0.5, None),
        ([Verdict(None, score=0.8)], 0.8, None),
        ([Verdict(True, score=0.3), Verdict(None, error="x")], 0.3, "pass"),
        ([Verdict(None, error="x")], None, None),
        ([Verdict(None)], None, None),
    ],
)
def test_verdicts_are_averaged(verdicts, score, verdict):
    opinion = graded(verdicts)

    assert (opinion["score"], opinion["verdict"]) == (score, verdict)
    assert (opinion["error"] is None) == (score is not None)
    assert (grade(verdicts[0]) is None) == (verdicts[0].error == "x" or verdicts == [Verdict(None)])


def test_a_real_models_words_are_judgments_or_errors(tiny_model, tmp_path):
    from tasks.engines.transformers import Transformers

    models = roster.one(Transformers(), tiny_model, cache=tmp_path)
    with closing(models):
        rows = run({"j": SelfJudge(max_tokens=8)}, answered("8", "9"), models=models)

    assert rows["error"].null_count() == rows["score"].is_not_null().sum() == 0
    assert rows["rationale"].null_count() == 0
