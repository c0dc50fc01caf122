"""Location accuracy and self-correction, against hand-worked examples."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.core import roster
from tasks.core.stage import Result
from tasks.core.verdicts import Score
from tasks.domains.arithmetic import Arithmetic, criticism, read, work
from tasks.engines.fake import Fake
from tasks.evaluate import EvaluateCase
from tasks.evaluate.critiques import Critiques, correction_measures, names_wrong_step, relative_score

DOMAIN = Arithmetic(easiest=2, hardest=3)


def run(script, domain=DOMAIN, **fields):
    models = roster.one(Fake.scripted(script, **fields), Path("model"), "model")
    result = Critiques(count=20, problems=12)(EvaluateCase(models, domain, 1))
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
    measures = values(result)
    assert measures["critique_location", None] == measures["critique_location", 2] == 1.0
    assert measures["critic_errors", None] == 0.0
    assert measures["refined", 3] == measures["refined", None] == 1.0
    assert measures["critique_cl", None] == measures["critique_cs", None] == 1.0
    assert measures["critique_rss", None] == pytest.approx((1 - 0.5**2) / (2 * 0.5 * 0.5))
    rows = result.frames["evals"]
    assert set(rows["mode"]) == {"refined"}
    assert rows.height == rows["id"].n_unique() == 12


def test_a_critic_who_passes_everything_changes_nothing():
    def content(messages, seed):
        return "Verdict: correct" if messages[0][1] == "critique" else player(messages, seed)

    measures = values(run(content))
    assert measures["critique_location", None] == 0.0
    assert measures["refined", None] == 0.5
    assert (measures["critique_cl", None], measures["critique_cs", None]) == (1.0, 0.0)
    assert measures["critique_rss", None] == pytest.approx(0.5)


def test_an_unreadable_critique_is_an_error_and_no_correction():
    def mumbling(messages, seed):
        return "hm" if messages[0][1] == "critique" else player(messages, seed)

    result = run(mumbling)
    measures = values(result)
    assert measures["critic_errors", None] == 1.0
    assert not {"critique_location", "refined", "critique_cl"} & {n for n, _ in measures}
    assert result.frames["evals"]["correct"].null_count() == 12
    assert result.frames["evals"]["error"].null_count() == 0


def test_a_critique_is_read_by_the_critics_reader():
    class Rubric(Arithmetic):
        """Asks its judge for a score, and its critic for a verdict."""

        def verdict(self, text):
            return Score(0, 5).read(text)

        def critic_verdict(self, text):
            return super().verdict(text)

    result = run(player, domain=Rubric(easiest=2, hardest=3))
    assert values(result)["critique_location", None] == values(result)["refined", None] == 1.0


def test_failed_requests_do_not_crash():
    assert values(run(player, error_rate=1.0)) == {("critic_errors", level): 1.0 for level in (None, 2, 3)}
    assert run(player, error_rate=0.3).frames["evals"].height == 12


def test_cl_cs_rss_by_hand():
    before = [True, True, True, False, False, None, True]
    after = [True, True, False, True, False, True, None]
    rows = [[{"level": 2, "correct": c} for c in side] for side in (before, after)]
    measures = {m.name: m.value for m in correction_measures(*rows) if m.level is None}
    assert measures["critique_cl"] == pytest.approx(2 / 3)
    assert measures["critique_cs"] == pytest.approx(1 / 2)
    assert measures["refined"] == pytest.approx(3 / 5)
    # Acc₁ = Acc₂ = 3/5
    assert measures["critique_rss"] == pytest.approx((3 / 5 - 9 / 25) / (2 * 3 / 5 * 2 / 5)) == 0.5


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_accuracy_after_is_composed_of_cl_and_cs(outcomes):
    before, after = zip(*outcomes, strict=True)
    rows = [[{"level": None, "correct": c} for c in side] for side in (before, after)]
    measures = {m.name: m.value for m in correction_measures(*rows)}
    first = sum(before) / len(before)
    composed = first * measures.get("critique_cl", 0) + (1 - first) * measures.get("critique_cs", 0)
    assert measures["refined"] == pytest.approx(composed)
    assert (relative_score(before, after) is None) == (first in (0, 1))


def test_the_right_step_of_a_wrong_verdict_only():
    row = {"verdict": "fail", "wrong_step": 2, "true_step": 2}
    assert names_wrong_step(row)
    assert not names_wrong_step(row | {"wrong_step": 1})
    assert not names_wrong_step(row | {"verdict": "pass"})
