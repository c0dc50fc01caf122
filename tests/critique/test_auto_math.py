"""AutoMathCritique's steps on hand-made answers, with a scripted critic and refiner."""

from collections import Counter

import polars as pl
import pytest

from tasks.core import frames, roster, tables
from tasks.core.errors import UnknownName
from tasks.core.stage import Result
from tasks.critique import critique
from tasks.critique.auto_math import AutoMathCritique
from tasks.domains.arithmetic import Arithmetic, criticism, read, work
from tasks.engines.fake import Fake

DOMAIN = Arithmetic(easiest=1, hardest=3)
PROBLEMS = {f"p{n}": f"Tom has {n} pens.\nDay 1: 5 found\nDay 2: doubled\nHow many?" for n in range(1, 5)}


def table(name, rows):
    schema = frames.frame(tables.TABLES[name]).collect_schema()
    return pl.DataFrame(rows, schema=schema).lazy()


def prompts(*ids):
    return table("prompts", [{"id": i, "problem": PROBLEMS[i], "prompt": DOMAIN.solve(PROBLEMS[i])} for i in ids])


def answer(prompt_id, by=0):
    """A worked answer that slips by `by` at the second step."""
    story = read(PROBLEMS[prompt_id])
    first, second = story.values()
    return work(story, [first, second + by])


def round_of(*answers):
    """prompts, responses, filtered for (id, prompt id, slip or None, rank or None); a slip of None is an error."""
    ids = sorted({a[1] for a in answers})
    responses, filtered = [], []
    for row, prompt, slip, rank in answers:
        text = "" if slip is None else answer(prompt, slip)
        error = "failed" if slip is None else None
        responses.append(
            {"id": row, "prompt_id": prompt, "response": text, "answer": DOMAIN.answer(text), "error": error}
        )
        reason = None if rank else "score"
        filtered.append({"id": row, "prompt_id": prompt, "kept": rank is not None, "rank": rank, "reason": reason})
    return prompts(*ids), table("responses", responses), table("filtered", filtered)


def oracle(messages, seed):
    (_, role), (_, text) = messages
    problem, response, *_ = text.split("\n\n")
    story = read(problem)
    return "\n".join(criticism(story, response)) if role == "critique" else work(story, story.values())


def run(members, inputs, engine, seed=1, *models):
    members = members if isinstance(members, dict) else {"auto_math": members}
    result = critique(members, *inputs, roster.one(engine, roster.SERVED, *models), DOMAIN, seed)
    return Result({name: f.collect() for name, f in result.frames.items()}, result.metrics)


BASIC = AutoMathCritique(per_prompt=5, correct_share=0, refinements=4)
ONE_WRONG = ("a", "p1", 0, 1), ("b", "p1", 1, None)
"""`b` is wrong, for the filter kept `a`."""


def test_wrong_answers_only_and_only_where_there_is_a_target():
    inputs = round_of(
        *ONE_WRONG, ("c", "p1", None, None),  # c is an error
        ("d", "p2", 0, None), ("e", "p2", 1, None),  # nothing was kept: no target
    )  # fmt: skip
    result = run(BASIC, inputs, Fake.scripted(oracle))
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
    assert result.metrics["critique_wrong/auto_math"] == 1


def test_the_target_is_the_best_kept_answer_though_it_be_wrong():
    """Another kept one with another answer counts as wrong, and is criticised."""
    inputs = round_of(("a", "p1", 0, 2), ("b", "p1", 1, 1))
    (row,) = run(BASIC, inputs, Fake.scripted(oracle)).frames["critiques"].iter_rows(named=True)
    assert (row["response_id"], row["target"]) == ("a", "13")
    assert not row["kept"]  # the critic passes it


@pytest.mark.parametrize(("successes", "kept"), [(0, False), (1, False), (2, True), (4, True)])
def test_a_critique_is_kept_from_a_success_of_three_tenths(successes, kept):
    """Of four refinements 1 is a quarter, 2 a half."""
    calls = Counter()

    def sometimes(messages, seed):
        if messages[0][1] == "critique":
            return oracle(messages, seed)
        calls["refine"] += 1
        return oracle(messages, seed) if calls["refine"] <= successes else answer("p1", 2)

    result = run(BASIC, round_of(*ONE_WRONG), Fake.scripted(sometimes))
    (row,) = result.frames["critiques"].iter_rows(named=True)
    assert (row["refinements"], row["successes"], row["kept"]) == (4, successes, kept)


def test_an_answerless_refinement_is_no_failure():
    calls = Counter()

    def mute(messages, seed):
        calls[messages[0][1]] += 1
        return oracle(messages, seed) if calls["refine"] <= 1 else "I do not know"

    result = run(BASIC, round_of(*ONE_WRONG), Fake.scripted(mute))
    (row,) = result.frames["critiques"].iter_rows(named=True)
    assert (row["refinements"], row["successes"], row["kept"]) == (1, 1, True)
    assert result.frames["refinements"]["success"].null_count() == 3
    assert result.metrics["refinement_errors/auto_math"] == 3


@pytest.mark.parametrize("faults", [{"garbage_rate": 1.0}, {"error_rate": 1.0}])
def test_an_unreadable_critique_is_an_error_and_is_not_refined(faults):
    result = run(BASIC, round_of(*ONE_WRONG), Fake.scripted(oracle, **faults))
    (row,) = result.frames["critiques"].iter_rows(named=True)
    assert row["error"]
    assert (row["verdict"], row["kept"], row["refinements"]) == (None, False, 0)
    assert result.frames["refinements"].is_empty()


def test_a_critique_that_passes_a_wrong_answer_is_not_refined():
    result = run(BASIC, round_of(*ONE_WRONG), Fake(answers={"Day": "Verdict: correct"}))
    assert result.frames["critiques"]["verdict"].to_list() == ["pass"]
    assert result.frames["refinements"].is_empty()
    assert result.metrics["critique_passed_wrong/auto_math"] == 1.0


def test_limits_and_each_text_once():
    inputs = round_of(
        *ONE_WRONG, ("c", "p1", 1, None), ("d", "p1", 2, None), ("e", "p2", 0, 1), ("f", "p2", 1, None)
    )  # fmt: skip
    assert run(BASIC, inputs, Fake.scripted(oracle)).frames["critiques"].height == 3
    single = BASIC.model_copy(update={"per_prompt": 1})
    assert sorted(run(single, inputs, Fake.scripted(oracle)).frames["critiques"]["prompt_id"]) == ["p1", "p2"]
    limited = BASIC.model_copy(update={"limit": 1})
    assert run(limited, inputs, Fake.scripted(oracle)).frames["critiques"].height == 1


def test_correct_answers_are_criticised_too_and_kept_when_passed():
    inputs = round_of(*ONE_WRONG, ("c", "p2", 0, 1), ("d", "p2", 1, None))
    both = BASIC.model_copy(update={"correct_share": 1.0})
    rows = run(both, inputs, Fake.scripted(oracle)).frames["critiques"]
    assert sorted(rows["response_id"]) == ["a", "b", "c", "d"]
    correct = rows.filter(pl.col("response_id").is_in(["a", "c"]))
    assert correct["verdict"].to_list() == ["pass"] * 2
    assert correct["kept"].all()
    assert correct["refinements"].to_list() == [0, 0]


@pytest.mark.parametrize(
    "answers", [(("a", "p1", 0, 1), ("b", "p1", 0, None)), (), (("a", "p1", 0, None), ("b", "p1", 1, None))]
)
def test_nothing_wrong_gives_empty_tables_and_zeros_without_a_model(answers):
    result = run(BASIC, round_of(*answers), Fake(down=True))
    assert result.frames["critiques"].is_empty()
    assert result.frames["refinements"].is_empty()
    assert result.metrics["critique_wrong/auto_math"] == 0


def test_equal_runs_give_equal_rows_whatever_the_order_of_the_input():
    inputs = round_of(*[(f"{p}{n}", p, n, None if n else 1) for p in PROBLEMS for n in range(4)])
    turned = [f.collect().reverse().lazy() for f in inputs]
    engine = Fake.scripted(oracle, garbage_rate=0.3)
    one, two = run(BASIC, inputs, engine), run(BASIC, turned, engine)
    for name in ("critiques", "refinements"):
        assert one.frames[name].equals(two.frames[name])
        assert one.frames[name]["id"].is_unique().all()
    drawn = BASIC.model_copy(update={"limit": 2})
    picks = {tuple(run(drawn, inputs, engine, seed).frames["critiques"]["response_id"]) for seed in range(6)}
    assert len(picks) > 1


def test_without_members_both_tables_are_empty_and_no_model_is_opened():
    result = run({}, round_of(*ONE_WRONG), Fake(down=True))
    for name in ("critiques", "refinements"):
        assert result.frames[name].schema == frames.frame(tables.TABLES[name]).collect_schema()
        assert result.frames[name].is_empty()


def test_members_work_side_by_side_each_with_rows_and_metrics_of_its_own():
    """Both write the same greedy critique; one of them refines it otherwise."""
    members = {"often": BASIC.model_copy(update={"refinements": 6}), "auto_math": BASIC}
    seeds = {}

    def noting(messages, seed):
        seeds.setdefault(messages[0][1], set()).add(seed)
        return oracle(messages, seed)

    result = run(members, round_of(*ONE_WRONG), Fake.scripted(noting))
    critiques, refinements = result.frames["critiques"], result.frames["refinements"]
    assert critiques["critique"].n_unique() == 1
    assert critiques["id"].n_unique() == 2
    assert critiques["id"].is_sorted()
    assert refinements["id"].n_unique() == 10
    assert len(seeds["refine"]) == 10  # a member that is not named as its strategy draws otherwise
    joined = refinements.join(critiques, left_on=["critique_id", "member"], right_on=["id", "member"])
    assert dict(joined["member"].value_counts().iter_rows()) == {"often": 6, "auto_math": 4}
    assert {m for m in result.metrics if m.startswith("critique_wrong")} == {
        "critique_wrong/often",
        "critique_wrong/auto_math",
    }


def test_a_member_asks_the_model_that_it_names():
    other = BASIC.model_copy(update={"model": "anchor"})
    assert (BASIC.opened_models(), other.opened_models()) == ({"parent"}, {"anchor"})
    assert run(other, round_of(*ONE_WRONG), Fake.scripted(oracle), 1, "anchor").frames["critiques"].height == 1
    with pytest.raises(UnknownName, match="anchor"):
        run(other, round_of(*ONE_WRONG), Fake.scripted(oracle), 1, "parent")
