from pathlib import Path

import polars as pl
import pytest
from pydantic import ValidationError

from tasks import tables
from tasks.domains import Domain, Verdict
from tasks.domains.arithmetic import Arithmetic
from tasks.engines.fake import Fake
from tasks.judge import Judge, grade, graded, judge
from tasks.judge.logprob import Logprob
from tasks.judge.random import Random
from tasks.judge.self_certainty import SelfCertainty
from tasks.judge.self_consistency import SelfConsistency
from tasks.judge.self_judge import SelfJudge
from tasks.judge.verifier import Verifier
from tasks.stage import content_id

PROBLEM = "Tom has 12 pens.\nDay 1: 5 found\nDay 2: halved\nHow many?"
RIGHT = "Day 1: 12+5=17\nDay 2: 17/2=8\nAnswer: 8"
WRONG = "Day 1: 12+5=17\nDay 2: 17/2=9\nAnswer: 9"
ASKED = [{"id": "p", "problem": PROBLEM}, {"id": "q", "problem": PROBLEM}]


def answered(*answers: str | None, prompt: str = "p", **more) -> list[dict]:
    return [
        {"id": f"{prompt}{k}", "prompt_id": prompt, "sample": k, "response": f"Answer: {a}", "answer": a} | more
        for k, a in enumerate(answers)
    ]


def run(panel: dict, responses: list[dict], engine: Fake | None = None, **more) -> pl.DataFrame:
    params = Judge(panel=panel, reward=more.pop("reward", next(iter(panel))))
    given = {"parent_model": Path("m"), "engine": engine or Fake(down=True), "cache": Path("c"), "seed": 3}
    frames = tables.frame(tables.prompts, ASKED), tables.frame(tables.responses, responses)
    return judge(params, *frames, **({"domain": Arithmetic()} | given | more)).collect()


def column(rows: pl.DataFrame, name: str = "score", judge: str | None = None) -> dict:
    rows = rows.filter(pl.col("judge") == judge) if judge else rows
    return dict(rows.select("response_id", name).rows())


def test_the_reward_is_one_of_the_panel():
    with pytest.raises(ValidationError, match="did you mean 'verifier'"):
        Judge(panel={"verifier": Verifier(), "logprob": Logprob()}, reward="verifer")


def test_every_member_judges_every_response_and_one_is_the_reward():
    panel = {"self_consistency": SelfConsistency(), "logprob": Logprob(), "verifier": Verifier()}
    rows = run(panel, answered("8", "9", mean_logprob=-0.5), reward="logprob")

    assert rows.select("judge", "response_id").rows() == [(j, r) for j in sorted(panel) for r in ("p0", "p1")]
    assert set(rows.filter("reward")["judge"]) == {"logprob"}
    assert rows["id"].to_list() == [content_id(r, j) for j, r in rows.select("judge", "response_id").rows()]
    assert set(rows["prompt_id"]) == {"p"}


def test_what_failed_is_an_error_of_every_judge_and_asks_nothing():
    failed = [{"id": "f", "prompt_id": "p", "error": "time-out"}]
    asked = []
    engine = Fake.scripted(lambda messages, seed: asked.append(messages) or "Verdict: correct")
    panel = {
        "a": SelfConsistency(),
        "b": Verifier(),
        "c": SelfJudge(),
        "d": Random(),
        "e": Logprob(),
        "f": SelfCertainty(),
    }

    rows = run(panel, failed, engine)

    assert set(rows["error"]) == {"no response: time-out"}
    assert rows["score"].null_count() == rows["verdict"].null_count() == len(rows) == 6
    assert asked == []


def test_no_responses():
    panel = {"self_consistency": SelfConsistency(), "verifier": Verifier(), "self_judge": SelfJudge()}
    rows = run(panel, [], Fake())

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

    frames = (
        tables.frame(tables.prompts, [ASKED[0] | {"reference": "Answer: 8"}, ASKED[1]]),
        tables.frame(tables.responses, [*answered("8", "9"), *answered("8", prompt="q")]),
    )
    given = {"parent_model": Path("m"), "engine": Fake(), "cache": Path("c"), "seed": 3, "domain": Compare()}
    rows = judge(Judge(panel={"v": Verifier()}, reward="v"), *frames, **given).collect()
    assert column(rows) == {"p0": 1.0, "p1": 0.0, "q0": None}


def test_a_response_whose_prompt_is_gone_is_an_error():
    panel = {"verifier": Verifier(), "self_judge": SelfJudge()}
    rows = run(panel, answered("8", prompt="gone"), Fake())

    assert set(rows["error"]) == {"its prompt is not in the table of prompts"}


def test_the_self_judge_asks_once_for_equal_answers():
    asked = []

    def answer(messages, seed):
        asked.append(messages[-1][1])
        return "Verdict: correct" if asked[-1].endswith("Answer: 8") else "Verdict: wrong"

    rows = run({"j": SelfJudge()}, answered("8", "8", "9"), Fake.scripted(answer))

    assert column(rows) == {"p0": 1.0, "p1": 1.0, "p2": 0.0}
    assert column(rows, "verdict") == {"p0": "pass", "p1": "pass", "p2": "fail"}
    assert column(rows, "rationale")["p2"] == "Verdict: wrong"
    assert asked == [Arithmetic().judge(PROBLEM, f"Answer: {a}")[-1]["content"] for a in "89"]


def test_the_self_judge_judges_only_the_likeliest_different_answers_of_each_prompt():
    rows = [
        a | {"mean_logprob": m} for a, m in zip(answered("8", "9", "7", "9"), (-0.3, -0.1, -0.2, -0.4), strict=True)
    ]
    judged = run({"j": SelfJudge(likeliest=2)}, rows, Fake.scripted(lambda messages, seed: "Verdict: correct"))
    assert set(column(judged)) == {"p1", "p2", "p3"}  # both answers 9 and the 7


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
    assert column(rows, "error")["p1"].startswith("not lines like")
    assert column(rows, "rationale")["p1"] == "hm"


def test_a_judge_that_is_down_is_an_error_of_the_row():
    rows = run({"j": SelfJudge()}, answered("8"), Fake(error_rate=1.0))

    assert column(rows, "error") == {"p0": "the fake engine failed, as its params ask"}


@pytest.mark.parametrize(
    ("verdicts", "score", "said"),
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
def test_verdicts_are_averaged(verdicts, score, said):
    opinion = graded(verdicts)

    assert (opinion["score"], opinion["verdict"]) == (score, said)
    assert (opinion["error"] is None) == (score is not None)
    assert (grade(verdicts[0]) is None) == (verdicts[0].error == "x" or verdicts == [Verdict(None)])


def test_a_real_models_words_are_judgments_or_errors(tiny_model, tmp_path):
    from tasks.engines.transformers import Transformers

    given = {"parent_model": tiny_model, "cache": tmp_path}
    rows = run({"j": SelfJudge(max_tokens=8)}, answered("8", "9"), Transformers(), **given)

    assert set(rows["error"]) == {"not lines like 'Day 2: 17/2=8, said 9: too high' and a verdict"}
    assert rows["rationale"].null_count() == 0
