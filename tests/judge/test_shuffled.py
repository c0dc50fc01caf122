"""The same option must be chosen again when the options change places, after the same trace."""

import pytest
from asked import judged

from tasks.core.errors import ParamsError
from tasks.domains.arithmetic import Arithmetic
from tasks.domains.choices import Choices
from tasks.engines.fake import Fake
from tasks.judge.shuffled import Shuffled

PROBLEM = "Which is a mammal?\nA. trout\nB. bat\nC. crow\nD. newt"
PROMPTS = [{"id": "p", "problem": PROBLEM, "reference": "B"}, {"id": "q", "problem": "No options here."}]
RESPONSES = [
    "It suckles its young.\nAnswer: B",
    "It has wings.\nAnswer: C",
    "I cannot say.",
    "Answer: B",
    "Hm.\nAnswer: E",
]


def choose(messages, text: str) -> str:
    """The letter of an option's text in a problem that was put."""
    problem = messages if isinstance(messages, str) else messages[0][1]
    return next(line[0] for line in problem.splitlines() if line.endswith(f". {text}"))


def run(answer, responses=RESPONSES, **more):
    domain = Choices(train="a", test="b")
    return judged(Shuffled(), responses, answer, **{"domain": domain, "prompts": PROMPTS} | more)


def test_the_full_score_is_for_the_same_option_after_the_same_trace():
    asked = run(lambda messages, seed: f"Answer: {choose(messages, 'bat')}")
    assert asked.column() == {"1": 1.0, "2": 0.5, "3": None, "4": 1.0, "5": None}
    assert set(asked.column("verdict").values()) == {None}
    assert "no option" in asked.rows["3"]["error"]
    assert "no option" in asked.rows["5"]["error"]


def test_the_model_goes_on_with_the_trace_and_the_chosen_option_has_another_letter():
    chats = []
    run(lambda messages, seed: chats.append(messages) or "Answer: A", RESPONSES[:1])
    [((_, problem), (role, trace))] = chats
    assert (role, trace) == ("assistant", "It suckles its young.\n")
    assert choose(problem, "bat") != "B"
    assert sorted(line[3:] for line in problem.splitlines()[1:5]) == ["bat", "crow", "newt", "trout"]


def test_a_habit_of_one_letter_is_never_consistent():
    assert run(lambda messages, seed: "Answer: B", RESPONSES[:1]).column() == {"1": 0.5}


def test_a_problem_without_options_is_an_error():
    asked = run(lambda messages, seed: "Answer: A", [{"id": "1", "prompt_id": "q", "response": "Answer: A"}])
    assert (asked.rows["1"]["score"], asked.prompts) == (None, [])
    assert "options" in asked.rows["1"]["error"]


def test_another_domain_is_refused_by_name():
    with pytest.raises(ParamsError, match="arithmetic"):
        run(lambda messages, seed: "", domain=Arithmetic())


@pytest.mark.parametrize("order", [list, lambda rows: rows[::-1]])
def test_the_order_of_rows_does_not_matter(order):
    asked = run(lambda messages, seed: f"Answer: {'ABCD'[seed % 4]}", order=order)
    assert asked.rows == run(lambda messages, seed: f"Answer: {'ABCD'[seed % 4]}").rows


@pytest.mark.parametrize("engine", [Fake(error_rate=1.0), Fake(garbage_rate=1.0)])
def test_an_engine_that_fails_or_babbles_gives_no_score(engine):
    assert set(run(None, engine=engine).column().values()) == {None}


def test_without_rows_no_model_is_loaded():
    assert run(None, [], engine=Fake(down=True)).rows == {}
