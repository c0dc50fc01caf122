"""Location accuracy and self-correction, against hand-worked examples."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.domains.arithmetic import Arithmetic, criticism, read, work
from tasks.engines.fake import Fake
from tasks.evaluate.critiques import Critiques, correction_measures, found_step, relative_score
from tasks.stage import Result

DOMAIN = Arithmetic(easiest=2, hardest=3)


def run(script, **fields):
    with Fake.scripted(script, **fields).open(Path("model")) as policy:
        result = Critiques(count=20, problems=12)(policy, DOMAIN, 1)
    return Result({name: f.collect() for name, f in result.frames.items()}, result.metrics)


def values(result):
    return {(n, level): v for n, level, v in result.frames["measures"].select("name", "level", "value").rows()}


def player(messages, seed):
    """Slips in every problem of three steps, criticises perfectly, refines as it should."""
    (_, role), (_, text) = messages
    problem, _, response = text.partition("\n\n")
    story = read(problem)
    if role == "critique":
        return "\n".join(criticism(story, response))
    slips = len(story.steps) == 3 and role == "solve"
    return work(story, [v + slips for v in story.values()])


def test_a_good_critic_finds_the_step_and_mends_the_answer():
    result = run(player)
    found = values(result)
    assert found["critique_location", None] == found["critique_location", 2] == 1.0
    assert found["critic_errors", None] == 0.0
    assert found["refined", 3] == found["refined", None] == 1.0
    assert found["critique_cl", None] == found["critique_cs", None] == 1.0
    assert found["critique_rss", None] == pytest.approx((1 - 0.5**2) / (2 * 0.5 * 0.5))
    rows = result.frames["evals"]
    assert set(rows["mode"]) == {"refined"}
    assert rows.height == rows["id"].n_unique() == 12


def test_a_critic_who_passes_everything_changes_nothing():
    def content(messages, seed):
        return "Verdict: correct" if messages[0][1] == "critique" else player(messages, seed)

    found = values(run(content))
    assert found["critique_location", None] == 0.0
    assert found["refined", None] == 0.5
    assert (found["critique_cl", None], found["critique_cs", None]) == (1.0, 0.0)
    assert found["critique_rss", None] == pytest.approx(0.5)


def test_an_unreadable_critique_is_an_error_and_no_correction():
    def mumbling(messages, seed):
        return "hm" if messages[0][1] == "critique" else player(messages, seed)

    result = run(mumbling)
    found = values(result)
    assert found["critic_errors", None] == 1.0
    assert not {"critique_location", "refined", "critique_cl"} & {n for n, _ in found}
    assert result.frames["evals"]["correct"].null_count() == 12
    assert result.frames["evals"]["error"].null_count() == 0


def test_failed_requests_do_not_crash():
    assert values(run(player, error_rate=1.0)) == {("critic_errors", level): 1.0 for level in (None, 2, 3)}
    assert run(player, error_rate=0.3).frames["evals"].height == 12


def test_cl_cs_rss_by_hand():
    before = [True, True, True, False, False, None, True]
    after = [True, True, False, True, False, True, None]
    rows = [[{"level": 2, "correct": c} for c in side] for side in (before, after)]
    found = {m.name: m.value for m in correction_measures(*rows) if m.level is None}
    assert found["critique_cl"] == pytest.approx(2 / 3)
    assert found["critique_cs"] == pytest.approx(1 / 2)
    assert found["refined"] == pytest.approx(3 / 5)
    # Acc₁ = Acc₂ = 3/5
    assert found["critique_rss"] == pytest.approx((3 / 5 - 9 / 25) / (2 * 3 / 5 * 2 / 5)) == 0.5


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_accuracy_after_is_composed_of_cl_and_cs(outcomes):
    before, after = zip(*outcomes, strict=True)
    rows = [[{"level": None, "correct": c} for c in side] for side in (before, after)]
    found = {m.name: m.value for m in correction_measures(*rows)}
    first = sum(before) / len(before)
    composed = first * found.get("critique_cl", 0) + (1 - first) * found.get("critique_cs", 0)
    assert found["refined"] == pytest.approx(composed)
    assert (relative_score(before, after) is None) == (first in (0, 1))


def test_the_right_step_of_a_wrong_verdict_only():
    row = {"verdict": "fail", "wrong_step": 2, "true_step": 2}
    assert found_step(row)
    assert not found_step(row | {"wrong_step": 1})
    assert not found_step(row | {"verdict": "pass"})
