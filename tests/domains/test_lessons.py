"""Documents of the roles that the embedded base is taught: each right in all it says, short enough, of its split."""

import random

import projects
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tasks.core.verdicts import Score, Steps, closing_line
from tasks.domains import Domain
from tasks.domains._lessons import LESSONS, claims, points, unclear
from tasks.domains._stories import attempt, checks, judgment, of_split, tell
from tasks.domains.arithmetic import Arithmetic, read

DOMAIN = Arithmetic()
ROLES = pytest.mark.parametrize("role", LESSONS)
DRAWS = st.integers(0, 10**6)
LEVELS = st.integers(1, 8)


def parts(chat):
    """The texts that a document's prompt is made of."""
    return chat[1]["content"].split("\n\n")


@ROLES
@given(DRAWS, LEVELS)
def test_the_completion_does_the_work_of_its_role(role, seed, level):
    chat, completion = DOMAIN.document(random.Random(seed), role, level, 0.0)
    assume(completion not in chat[1]["content"])  # of one step, two stories may be equal by chance
    assert DOMAIN.mark(role, chat[1]["content"], completion, completion).passed


@ROLES
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_its_story_is_of_the_split(role, split):
    rng = random.Random(1)
    for _ in range(20):
        chat, _ = DOMAIN.document(rng, role, 4, 0.0, split)
        stories = [story for part in parts(chat) if (story := read(part))]
        assert all(story.split == split for story in stories)
        assert stories or role == "refuse"


@ROLES
def test_nonsense_does_not_do_it(role):
    rng = random.Random(2)
    chat, completion = DOMAIN.document(rng, role, 4, 0.0)
    for text in ("", "Answer: 99", completion[: len(completion) // 2] + "?"):
        assert DOMAIN.mark(role, chat[1]["content"], completion, text).passed is False


def test_a_document_fits_into_the_models_context():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(projects.HERE / "data/base")
    rng = random.Random(3)
    chats = [DOMAIN.document(rng, role, 8, 0.0) for role in DOMAIN.roles for _ in range(20)]
    texts = [[*chat, {"role": "assistant", "content": text}] for chat, text in chats]
    lengths = [len(tokenizer.apply_chat_template(t, tokenize=True, return_dict=True)["input_ids"]) for t in texts]
    assert max(lengths) <= 512


@given(DRAWS, LEVELS)
def test_points_count_wrong_lines(seed, level):
    _, completion = DOMAIN.document(random.Random(seed), "grade", level, 0.0)
    *lines, last = completion.split("\n")
    wrong = sum(not line.endswith(": right") for line in lines)
    assert Score(0, 5).read(last).score == points(wrong) / 5
    assert points(0) == 5
    assert points(9) == 0


@given(DRAWS, LEVELS)
def test_a_comparison_chooses_the_right_answer(seed, level):
    chat, completion = DOMAIN.document(random.Random(seed), "compare", level, 0.0)
    problem, first, second = parts(chat)
    truth = str(read(problem).values()[-1])
    right = [DOMAIN.answer(text) == truth for text in (first, second)]
    expected = {(True, False): "A", (False, True): "B"}.get(tuple(right), "tie")
    assert closing_line(completion) == f"Choice: {expected}"


@given(DRAWS, LEVELS)
def test_marks_of_steps_are_read_from_the_judges_lines(seed, level):
    rng = random.Random(seed)
    story, response = attempt(rng, "train", level, rng.random() < 0.5, slips=0.3)
    text = "\n".join(judgment(story, response))
    verdict = DOMAIN.read(Steps(level + 1), text)
    assert verdict.steps == tuple(float(due == claim) for _, due, claim in checks(story, response))
    assert DOMAIN.read(Steps(level + 2), text).error
    assert DOMAIN.read(Steps(), f"{text}\nand so on").error
    assert DOMAIN.read(Score(0, 5), "Score: 4").score == 0.8
    assert DOMAIN.read(Steps(2, 1, 10, "Scores"), "Scores: 10 1").steps == (1.0, 0.0)


@given(DRAWS, LEVELS)
def test_feedback_names_the_first_wrong_line_and_no_number_of_it(seed, level):
    chat, completion = DOMAIN.document(random.Random(seed), "feedback", level, 0.0)
    problem, response = parts(chat)
    said = DOMAIN.read_feedback(completion)
    assert said in ("All is right.", *(f"Line {k}{' is wrong.'}" for k in range(1, level + 2)))
    assert DOMAIN.read_feedback("no feedback") == ""
    assert DOMAIN.describe(DOMAIN.verify(problem, response)) == said or said != "All is right."


@given(DRAWS, st.integers(2, 8))
def test_an_unclear_story_is_no_problem_and_lacks_one_number(seed, level):
    rng = random.Random(seed)
    text = unclear(rng, of_split(rng, "train", level)[0])
    assert text.count("some ") == 1
    assert DOMAIN.parse(text) is None


def test_ill_posed_problems_are_frozen_and_refused_by_one_answer():
    problems = DOMAIN.ill_posed(20, 0)
    assert problems == DOMAIN.ill_posed(20, 0)
    assert problems[:10] == DOMAIN.ill_posed(10, 0)
    assert DOMAIN.refuses("Answer: unknown")
    assert not DOMAIN.refuses("Answer: 7")
    assert DOMAIN.answer("Answer: unknown") is None


@given(DRAWS, LEVELS, st.floats(0, 1))
def test_a_solver_stays_in_range_or_gives_up(seed, level, slips):
    rng = random.Random(seed)
    story, _ = of_split(rng, "train", level)
    values = claims(rng, story, slips)
    assert values is None or (len(values) == level and all(0 <= value <= 30 for value in values))
    assert claims(rng, story, 0.0) == story.values()


def test_a_hint_is_the_first_half_of_the_work():
    story, _ = of_split(random.Random(4), "train", 5)
    hint = DOMAIN.hint(tell(story, random.Random(4)))
    assert [line.partition(":")[0] for line in hint.split("\n")] == ["Day 1", "Day 2", "Day 3"]
    assert DOMAIN.hint("no problem") is None


def test_a_domain_that_writes_no_documents_says_so():
    with pytest.raises(NotImplementedError):
        Domain().document(random.Random(0), "solve", 2, 0.0)
    assert Domain().mark("solve", "", "", "").error
