"""What models may write: numbers of thousands of digits, characters that are none, and a megabyte of one piece again and again.
No method of a domain that reads it raises or takes for ever.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tasks.core.verdicts import MAX_DIGITS, Count, Pass, Score, Steps, shield, whole_number
from tasks.domains import PREFERENCE, Domain
from tasks.domains.arithmetic import Arithmetic
from tasks.domains.chat import Chat
from tasks.domains.choices import Choices
from tasks.domains.math import Math
from tasks.judge.tools import CALLED

DOMAINS = {
    "base": Domain(),
    "arithmetic": Arithmetic(),
    "chat": Chat(path="prompts.jsonl"),
    "choices": Choices(train="a", test="b"),
    "math": Math(train="a", test="b"),
}
PROBLEM = "Tom has 12 pens.\nDay 1: 5 found\nDay 2: halved\nHow many?"
FORMS = [Pass(), Score(), Steps(), Steps(2, 1, 10, "Scores"), Count(), PREFERENCE]
HUGE = "9" * (MAX_DIGITS + 1)


def readings(domain: Domain) -> Iterator[tuple[str, Callable[[str], object]]]:
    """Each way in which a domain reads a model's text."""
    for method in ("answer", "parse", "structure", "hint", "refuses", "read_feedback", "verdict", "critic_verdict"):
        yield method, getattr(domain, method)
    yield "verify, problem", lambda text: domain.verify(text, "Answer: 8", "8")
    yield "verify, response", lambda text: domain.verify(PROBLEM, text, "8")
    yield "verify, reference", lambda text: domain.verify(PROBLEM, "Answer: 8", text)
    yield "agree", lambda text: domain.agree(PROBLEM, [text, "Answer: 8"])
    yield "write", lambda text: domain.write([text], None)
    for form in FORMS:
        yield f"read {form}", lambda text, form=form: domain.read(form, text)
    for role in ("write", "imitate", "mutate", "solve", "judge", "critique", "truth"):
        prompt = f"deeper\n\n{PROBLEM}" if role == "mutate" else f"{PROBLEM}\n\nAnswer: 8"
        yield f"mark {role}", lambda text, role=role, prompt=prompt: domain.mark(role, prompt, PROBLEM, text)
        yield f"mark {role}, prompt", lambda text, role=role: domain.mark(role, f"deeper\n\n{text}", text, PROBLEM)
    if isinstance(domain, Choices):
        yield "reasoning", domain.reasoning


WRITTEN = [
    "{n}", "#### {n}", r"\boxed{{{n}}}", r"\boxed{{{n}+\sqrt{{2}}}}", r"\boxed{{\frac{{{n}}}{{3}}}}", "1/{n}", "{n}/{n}", "0.{n}", "{n}.{n}",
    "1 {n}/{n}", "1e{n}", "{n}e99", "Answer: {n}", "Answer: -{n}", "Tom has {n} pens.\nDay 1: 5 found\nHow many?",
    "Tom has 12 pens.\nDay {n}: 5 found\nHow many?", "Tom has 12 pens.\nDay 1: {n} found\nHow many?", "Day 1: 1+1={n}\nAnswer: {n}",
    "Day 1: 1+1={n}, said {n}: right\nVerdict: correct", "Day {n}: 1+1=2, said 2: right\nVerdict: wrong", "Answer: {n}, said 1: too low\nScore: {n}",
    "Verdict: {n}", "Step {n}: wrong\nVerdict: wrong", "Score: {n}", "Score: 5/{n}", "Score: -{n}", "Steps: {n} 1", "Scores: 1 {n}", "Count: {n}",
    "Choice: {n}", "Problem {n}: what?", "{n}) what is it?", "Tom has {n} pens.", "Feedback: {n}",
]  # fmt: skip


@pytest.mark.parametrize("name", DOMAINS)
@pytest.mark.parametrize(
    "digits", [HUGE, "9" * 100_000, "٣" * 5000, "１" * 5000, "²" * 30], ids=lambda d: f"{d[0]}×{len(d)}"
)
def test_a_number_without_end_is_malformed_and_no_exception(name, digits):
    domain = DOMAINS[name]
    for text in (form.format(n=digits) for form in WRITTEN):
        for _, reading in readings(domain):
            reading(text)
        verdict = domain.verify(PROBLEM, text, "8")
        assert not verdict.passed, text[:60]
        assert all(form.read(text).score is None for form in FORMS), text[:60]


def test_a_story_of_days_without_end_is_malformed():
    days = "\n".join(f"Day {k}: tripled" for k in range(1, 9999))
    problem = f"Tom has 12 pens.\n{days}\nHow many?"
    for _, reading in readings(DOMAINS["arithmetic"]):
        reading(problem)
    assert DOMAINS["arithmetic"].verify(problem, "Answer: 1").error == "the problem cannot be read"


@pytest.mark.parametrize(
    ("digits", "number"),
    [("0", 0), ("007", 7), ("9" * MAX_DIGITS, int("9" * MAX_DIGITS)), (HUGE, None), ("", None), ("-1", None), ("٣", None), ("²", None), ("1_0", None)],
    ids=lambda value: str(value)[:8],
)  # fmt: skip
def test_a_whole_number_is_ascii_digits_and_not_too_many(digits, number):
    assert whole_number(digits) == number


PIECES = [
    *(HUGE, "1e999999", "1E+99", "-", "+", "/", ".", ",", " ", "\n", "\x00", "\ud800", "\u202e", "\u200b", "１", "٣", "²", "½", "∞", "NaN", "inf"),
    *("\\boxed{", "\\frac{", "\\text{", "\\sqrt{", "{", "}", "$", "^", "18", "7", "Answer: ", "#### ", "Day 1: ", "Day ", ": 5 found", "\nHow many?"),
    *("Tom has ", " pens.", "=", ", said ", ": right", "Verdict: ", "correct", "Score: ", "Steps: ", "Count: ", "Choice: ", "A", "**", "<<", ">>"),
]  # fmt: skip


@settings(max_examples=60)
@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
@example("{" * 500 + "18" + "}" * 500)
@example("\\boxed{" * 500 + "18" + "}" * 500)
@example("\\boxed{\x00\ud800\\sqrt{4}}")
def test_no_text_breaks_a_reading(text):
    for domain in DOMAINS.values():
        for _, reading in readings(domain):
            reading(text)


# A megabyte

STARTS = [
    "",
    "Answer: ",
    "The answer is ",
    "#### ",
    "\\boxed{",
    "Verdict: ",
    "Score: ",
    "Step 1",
    "task",
    "problem",
    "A",
    "Tom has 1 pens.\n",
    "Day 1: ",
]
REPEATED = [
    *(" ", "\n", "\t", "*", "_", "#", "9", "1 ", "1,", "1/", "-", "a ", "A. ", "{", "}", "\\boxed{", "\\text{", "\\frac{1}{", "^{2}", "$", "answer"),
    *("answer is ", "answer: 1 ", "####\n", "<", "<<", "=", "not ", "step ", "Step 1: wrong\n", "verdict: ", "Day 1: =", "1 to ", ". ", "n't ", "\u200b"),
]  # fmt: skip
CLOSED = ["", "x", "1", "\nVerdict: wrong", "\nScore: 3", "\nHow many?", ":"]


KNOWN = [("task", " ", "x"), ("A", " ", "x"), ("x", "\n", "\nVerdict: wrong"), ("", "\n", "x")]
"""Those that took the square of their length once."""


def hostile(number: int, size: int) -> str:
    """The n-th text: a piece again and again, between a start and an end that a pattern may look for."""
    start, piece, end = (axis[number % len(axis)] for axis in (STARTS, REPEATED, CLOSED))
    if number % 10 == 0:
        start, piece, end = KNOWN[number // 10]
    return start + piece * (size // len(piece)) + end


def read_all(numbers: list[int], size: int) -> None:
    """Every reading of some of the texts."""
    for number in numbers:
        text = hostile(number, size)
        for reading in [*(r for d in DOMAINS.values() for _, r in readings(d)), shield, CALLED.match]:
            reading(text)


@pytest.mark.torture(
    "a megabyte of text on which patterns would backtrack", "it is read in time that grows with its length"
)
def test_a_megabyte_is_read_in_time_that_grows_with_its_length(tries):
    """What takes the square of the length takes hours; the process may take minutes of the processor."""
    numbers = list(tries(40))
    code = (
        "import resource, sys\nresource.setrlimit(resource.RLIMIT_CPU, (300, 300))\n"
        f"sys.path.insert(0, {str(__file__.rpartition('/')[0])!r})\n"
        f"from test_hostile_text import read_all\nread_all({numbers}, 1_000_000)"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0
