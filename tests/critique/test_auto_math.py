"""AutoMathCritique's steps on hand-made answers, with a scripted critic and refiner."""

from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from tasks import critique as stage
from tasks import tables
from tasks.critique.auto_math import AutoMathCritique
from tasks.critique.none import NoCritiques
from tasks.domains.arithmetic import Arithmetic, criticism, read, work
from tasks.engines.fake import Fake
from tasks.stage import Result

DOMAIN = Arithmetic(easiest=1, hardest=3)
PROBLEMS = {f"p{n}": f"Tom has {n} pens.\nDay 1: 5 found\nDay 2: doubled\nHow many?" for n in range(1, 5)}


def table(name, rows):
    schema = tables.frame(tables.TABLES[name]).collect_schema()
    return pl.DataFrame(rows, schema=schema).lazy()


def prompts(*ids):
    return table("prompts", [{"id": i, "problem": PROBLEMS[i], "prompt": DOMAIN.solve(PROBLEMS[i])} for i in ids])


def answer(prompt_id, by=0):
    """A worked answer that slips by `by` at the second step."""
    story = read(PROBLEMS[prompt_id])
    first, second = story.values()
    return work(story, [first, second + by])


def given(*answers):
    """prompts, responses, judgments for (id, prompt id, slip or None, reward or None); None is an error."""
    ids = sorted({a[1] for a in answers})
    responses, judgments = [], []
    for row, prompt, slip, reward in answers:
        text = "" if slip is None else answer(prompt, slip)
        error = "failed" if slip is None else None
        responses.append(
            {"id": row, "prompt_id": prompt, "response": text, "answer": DOMAIN.answer(text), "error": error}
        )
        told = {"score": reward, "error": None if reward is not None else "cannot say"}
        judgments.append({"id": f"j{row}", "response_id": row, "prompt_id": prompt, "reward": True, **told})
        # another judge, who is not the reward, says the opposite
        judgments.append({"id": f"k{row}", "response_id": row, "prompt_id": prompt, "reward": False, "score": 1.0})
    return prompts(*ids), table("responses", responses), table("judgments", judgments)


def oracle(messages, seed):
    (_, role), (_, text) = messages
    problem, response, *_ = text.split("\n\n")
    story = read(problem)
    return "\n".join(criticism(story, response)) if role == "critique" else work(story, story.values())


def run(params, frames, engine, seed=1):
    result = stage.critique(params, *frames, Path("model"), engine, DOMAIN, seed, Path("cache"))
    return Result({name: f.collect() for name, f in result.frames.items()}, result.metrics)


BASIC = AutoMathCritique(least=0.5, per_prompt=5, right=0, refinements=4)


def test_wrong_answers_only_and_only_where_there_is_a_target():
    frames = given(
        ("a", "p1", 0, 0.75), ("b", "p1", 1, 0.25), ("c", "p1", None, None),  # b is wrong, c is an error
        ("d", "p2", 0, 0.4), ("e", "p2", 1, 0.2),  # the best is below `least`: no target
        ("f", "p3", 0, None), ("g", "p3", 1, 0.2),  # the reward could not say
    )  # fmt: skip
    result = run(BASIC, frames, Fake.scripted(oracle))
    (row,) = result.frames["critiques"].iter_rows(named=True)
    assert (row["response_id"], row["prompt_id"], row["target"]) == ("b", "p1", "12")
    assert (row["verdict"], row["wrong_step"]) == ("fail", 2)
    assert (row["refinements"], row["successes"], row["kept"]) == (4, 4, True)
    assert row["prompt"] == DOMAIN.criticise(PROBLEMS["p1"], answer("p1", 1))
    refined = result.frames["refinements"]
    assert refined["success"].to_list() == [True] * 4
    assert refined["hinted"].all()
    assert sorted(refined["sample"]) == [0, 1, 2, 3]
    assert set(refined["critique_id"]) == {row["id"]}
    assert result.metrics["critique_targets"] == 1
    assert result.metrics["critique_wrong"] == 1


def test_the_target_is_the_best_answer_though_it_be_wrong():
    frames = given(("a", "p1", 0, 0.6), ("b", "p1", 1, 0.75))
    (row,) = run(BASIC, frames, Fake.scripted(oracle)).frames["critiques"].iter_rows(named=True)
    assert (row["response_id"], row["target"]) == ("a", "13")
    assert not row["kept"]  # the critic passes it


@pytest.mark.parametrize(("right", "kept"), [(0, False), (1, False), (2, True), (4, True)])
def test_a_critique_is_kept_from_a_success_of_three_tenths(right, kept):
    """Of four refinements 1 is a quarter, 2 a half."""
    done = Counter()

    def sometimes(messages, seed):
        if messages[0][1] == "critique":
            return oracle(messages, seed)
        done["refined"] += 1
        return oracle(messages, seed) if done["refined"] <= right else answer("p1", 2)

    frames = given(("a", "p1", 0, 0.75), ("b", "p1", 1, 0.25))
    result = run(BASIC, frames, Fake.scripted(sometimes))
    (row,) = result.frames["critiques"].iter_rows(named=True)
    assert (row["refinements"], row["successes"], row["kept"]) == (4, right, kept)


def test_an_answerless_refinement_is_no_failure():
    done = Counter()

    def mute(messages, seed):
        done[messages[0][1]] += 1
        return oracle(messages, seed) if done["refine"] <= 1 else "I do not know"

    frames = given(("a", "p1", 0, 0.75), ("b", "p1", 1, 0.25))
    result = run(BASIC, frames, Fake.scripted(mute))
    (row,) = result.frames["critiques"].iter_rows(named=True)
    assert (row["refinements"], row["successes"], row["kept"]) == (1, 1, True)
    assert result.frames["refinements"]["success"].null_count() == 3
    assert result.metrics["refinement_errors"] == 3


@pytest.mark.parametrize("faults", [{"garbage_rate": 1.0}, {"error_rate": 1.0}])
def test_an_unreadable_critique_is_an_error_and_is_not_refined(faults):
    frames = given(("a", "p1", 0, 0.75), ("b", "p1", 1, 0.25))
    result = run(BASIC, frames, Fake.scripted(oracle, **faults))
    (row,) = result.frames["critiques"].iter_rows(named=True)
    assert row["error"]
    assert (row["verdict"], row["kept"], row["refinements"]) == (None, False, 0)
    assert result.frames["refinements"].is_empty()


def test_a_critique_that_passes_a_wrong_answer_is_not_refined():
    frames = given(("a", "p1", 0, 0.75), ("b", "p1", 1, 0.25))
    result = run(BASIC, frames, Fake(answers={"Day": "Verdict: correct"}))
    assert result.frames["critiques"]["verdict"].to_list() == ["pass"]
    assert result.frames["refinements"].is_empty()
    assert result.metrics["critique_passed_wrong"] == 1.0


def test_limits_and_each_text_once():
    frames = given(
        ("a", "p1", 0, 0.75), ("b", "p1", 1, 0.25), ("c", "p1", 1, 0.25), ("d", "p1", 2, 0.25),
        ("e", "p2", 0, 0.75), ("f", "p2", 1, 0.25),
    )  # fmt: skip
    assert run(BASIC, frames, Fake.scripted(oracle)).frames["critiques"].height == 3
    single = BASIC.model_copy(update={"per_prompt": 1})
    assert sorted(run(single, frames, Fake.scripted(oracle)).frames["critiques"]["prompt_id"]) == ["p1", "p2"]
    few = BASIC.model_copy(update={"limit": 1})
    assert run(few, frames, Fake.scripted(oracle)).frames["critiques"].height == 1


def test_right_answers_are_criticised_too_and_kept_when_passed():
    frames = given(("a", "p1", 0, 0.75), ("b", "p1", 1, 0.25), ("c", "p2", 0, 0.75), ("d", "p2", 1, 0.25))
    both = BASIC.model_copy(update={"right": 1.0})
    rows = run(both, frames, Fake.scripted(oracle)).frames["critiques"]
    assert sorted(rows["response_id"]) == ["a", "b", "c", "d"]
    right = rows.filter(pl.col("response_id").is_in(["a", "c"]))
    assert right["verdict"].to_list() == ["pass"] * 2
    assert right["kept"].all()
    assert right["refinements"].to_list() == [0, 0]


def test_nothing_wrong_gives_empty_tables_and_zeros_without_a_model():
    frames = given(("a", "p1", 0, 1.0), ("b", "p1", 0, 1.0))
    for tables_given in (frames, given()):
        result = run(BASIC, tables_given, Fake(down=True))
        assert result.frames["critiques"].is_empty()
        assert result.frames["refinements"].is_empty()
        assert result.metrics["critique_wrong"] == 0


def test_equal_runs_give_equal_rows_whatever_the_order_of_the_input():
    frames = given(
        *[(f"{p}{n}", p, n, 1 - n / 10) for p in PROBLEMS for n in range(4)],
    )
    turned = [f.collect().reverse().lazy() for f in frames]
    engine = Fake.scripted(oracle, garbage_rate=0.3)
    one, two = run(BASIC, frames, engine), run(BASIC, turned, engine)
    for name in ("critiques", "refinements"):
        assert one.frames[name].equals(two.frames[name])
        assert one.frames[name]["id"].is_unique().all()
    drawn = BASIC.model_copy(update={"limit": 2})
    picks = {tuple(run(drawn, frames, engine, seed).frames["critiques"]["response_id"]) for seed in range(6)}
    assert len(picks) > 1


def test_none_asks_nothing():
    result = run(NoCritiques(), given(("a", "p1", 0, 0.75), ("b", "p1", 1, 0.25)), Fake(down=True))
    assert set(result.frames) == {"critiques", "refinements"}
    assert all(f.is_empty() for f in result.frames.values())
