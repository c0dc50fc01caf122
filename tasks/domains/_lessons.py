"""What the embedded model can be taught beside its first five roles: a document of each further role of the arithmetic
domain, written by a program and right in all it says.
"""

import random
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from tasks.core.verdicts import Score, Steps
from tasks.domains import FALSE, TRUE, Message, Split
from tasks.domains._stories import (
    STEPS,
    THINGS,
    Story,
    apply,
    attempt,
    checks,
    in_range,
    judgment,
    of_split,
    said_mark,
    slip,
    tell,
    work,
)

if TYPE_CHECKING:
    from tasks.domains.arithmetic import Arithmetic

Document = tuple[list[Message], str]
"""A conversation and the completion to learn."""
BEST = 5
"""Points of an answer in which every line is right."""
NOISE = 0.12
"""Slips a step of the solver whose answers `knows` foretells: those of the embedded base."""
UNKNOWN = "Answer: unknown"
"""What is answered to a problem that has no answer."""


def points(wrong_lines: int) -> int:
    """The embedded rubric: a point is lost for each wrong line."""
    return max(0, BEST - wrong_lines)


def claims(rng: random.Random, story: Story, slips: float) -> list[int] | None:
    """The values of a solver who slips at each step with that probability; None where one leaves the range."""
    value, values = story.start, []
    for sign, n in story.steps:
        value = apply(value, sign, n)
        if in_range(value) and rng.random() < slips:
            value = slip(rng, value)
        if not in_range(value):
            return None
        values.append(value)
    return values


def attempts(rng: random.Random, story: Story, count: int, slips: float) -> list[list[int]]:
    """The values of several solvers of one story."""
    solved: list[list[int]] = []
    while len(solved) < count:
        values = claims(rng, story, slips)
        if values is not None:
            solved.append(values)
    return solved


def unclear(rng: random.Random, story: Story) -> str:
    """A story in which one number is missing."""
    first, *days, last = tell(story, rng).split("\n")
    spoken = [k for k, (sign, _) in enumerate(story.steps) if sign in "+-"]
    at = rng.choice([-1, *spoken])
    if at < 0:
        first = first.replace(f" {story.start} ", " some ")
    else:
        days[at] = days[at].replace(f": {story.steps[at][1]} ", ": some ")
    return "\n".join([first, *days, last])


def _checked(rng: random.Random, level: int, split: Split) -> tuple[str, str, list[tuple[str, bool]]]:
    """A problem, an answer to it, and each line of a true check of that answer with whether the answer's line is right."""
    story, response = attempt(rng, split, level, rng.random() < 0.35, slips=0.35)
    right = [due == claim for _, due, claim in checks(story, response)]
    return tell(story, rng), response, list(zip(judgment(story, response)[:-1], right, strict=True))


def _grade(domain: "Arithmetic", rng: random.Random, level: int, split: Split) -> Document:
    problem, response, lines = _checked(rng, level, split)
    score = points(sum(not right for _, right in lines))
    return domain.grade(problem, response, "", Score(0, BEST)), "\n".join(
        [*(line for line, _ in lines), f"Score: {score}"]
    )


def _compare(domain: "Arithmetic", rng: random.Random, level: int, split: Split) -> Document:
    choice = rng.choice(("A", "B", "A", "B", "tie"))
    while True:
        story, _ = of_split(rng, split, level)
        first, second = attempts(rng, story, 2, rng.choice((0.06, 0.12, 0.25)))
        truth = story.values()
        a, b = first[-1] == truth[-1], second[-1] == truth[-1]
        if choice == ("tie" if a == b else "A" if a else "B"):
            break
    chat = domain.compare(tell(story, rng), work(story, first), work(story, second))
    return chat, f"{_solved(story, [first, second])}\nChoice: {choice}"


def _together(domain: "Arithmetic", rng: random.Random, level: int, split: Split) -> Document:
    story, _ = of_split(rng, split, level)
    answers = attempts(rng, story, rng.randint(2, 4), rng.choice((0.06, 0.12, 0.25)))
    scores = " ".join("10" if values[-1] == story.values()[-1] else "1" for values in answers)
    form = Steps(len(answers), 1, 10, "Scores")
    chat = domain.grade_together(tell(story, rng), [work(story, values) for values in answers], form)
    return chat, f"{_solved(story, answers)}\nScores: {scores}"


def _solved(story: Story, answers: list[list[int]]) -> str:
    """The days worked, and each answer's end against the true one, as a judge's last line has it."""
    *days, end = work(story, story.values()).split("\n")
    due = story.values()[-1]
    return "\n".join([*days, *(f"{end}, said {values[-1]}: {said_mark(due, values[-1])}" for values in answers)])


def _truth(domain: "Arithmetic", rng: random.Random, level: int, split: Split) -> Document:
    story, _ = of_split(rng, split, level)
    ideas = [values[-1] for values in attempts(rng, story, rng.randint(1, 8), rng.uniform(0.02, 0.25))]
    *others, possible = ideas
    right = possible == story.values()[-1]
    return domain.truth(tell(story, rng), list(map(str, others)), str(possible)), TRUE if right else FALSE


def _know(domain: "Arithmetic", rng: random.Random, level: int, split: Split) -> Document:
    story, _ = of_split(rng, split, level)
    [values] = attempts(rng, story, 1, NOISE)
    return domain.knows(tell(story, rng)), TRUE if values[-1] == story.values()[-1] else FALSE


def _agree(domain: "Arithmetic", rng: random.Random, level: int, split: Split) -> Document:
    story, _ = of_split(rng, split, level)
    answers = attempts(rng, story, rng.randint(2, 8), rng.uniform(0.02, 0.3))
    majority = Counter(values[-1] for values in answers).most_common(1)[0][0]
    return domain.agree(tell(story, rng), [work(story, v) for v in answers]), f"Answer: {majority}"


def _feedback(domain: "Arithmetic", rng: random.Random, level: int, split: Split) -> Document:
    problem, response, lines = _checked(rng, level, split)
    wrong = next((k for k, (_, right) in enumerate(lines, 1) if not right), None)
    said = [line for line, _ in lines[:wrong]]
    return domain.feedback(problem, response), "\n".join([*said, f"Feedback: {domain.line_feedback(wrong)}"])


def _revise(domain: "Arithmetic", rng: random.Random, level: int, split: Split) -> Document:
    """A wrong answer and true feedback to it: the answer is worked again."""
    story, response = attempt(rng, split, level, rng.random() < 0.1, slips=0.2)
    wrong = next((k for k, (_, due, claim) in enumerate(checks(story, response), 1) if due != claim), None)
    return domain.refine(tell(story, rng), response, domain.line_feedback(wrong)), work(story, story.values())


def _retry(domain: "Arithmetic", rng: random.Random, level: int, split: Split) -> Document:
    story, response = attempt(rng, split, level, rng.random() < 0.5, slips=0.1)
    return domain.retry(tell(story, rng), response), work(story, story.values())


def _hint(domain: "Arithmetic", rng: random.Random, level: int, split: Split) -> Document:
    story, _ = of_split(rng, split, level)
    problem = tell(story, rng)
    return domain.solve_with(problem, domain.hint(problem) or ""), work(story, story.values())


def _refuse(domain: "Arithmetic", rng: random.Random, level: int, split: Split) -> Document:
    story, _ = of_split(rng, split, level)
    return domain.solve(unclear(rng, story)), UNKNOWN


def _imitate(domain: "Arithmetic", rng: random.Random, level: int, split: Split) -> Document:
    thing = rng.choice(THINGS)
    *examples, problem = [tell(of_split(rng, split, level)[0], rng, thing) for _ in range(rng.randint(3, 4))]
    return domain.imitate(examples), problem


def _mutate(domain: "Arithmetic", rng: random.Random, level: int, split: Split) -> Document:
    how: Literal["deeper", "broader"] = rng.choice(("deeper", "broader"))
    while True:
        story, _ = of_split(rng, split, level)
        at = len(story.steps) if how == "deeper" else rng.randrange(len(story.steps))
        steps = (*story.steps[:at], rng.choice(STEPS), *story.steps[at + 1 :])
        other = Story(story.start, steps)
        if other.split == split and other != story and all(map(in_range, other.values())):
            break
    problem = tell(story, rng)
    lines = problem.split("\n")
    day = tell(other, rng).split("\n")[1 + at]
    mutated = [*lines[: 1 + at], day, *lines[1 + at + (how == "broader") :]]
    return domain.mutate(problem, how), "\n".join(mutated)


LESSONS: dict[str, Callable[["Arithmetic", random.Random, int, Split], Document]] = {
    "grade": _grade,
    "compare": _compare,
    "together": _together,
    "truth": _truth,
    "know": _know,
    "agree": _agree,
    "feedback": _feedback,
    "revise": _revise,
    "retry": _retry,
    "hint": _hint,
    "refuse": _refuse,
    "imitate": _imitate,
    "mutate": _mutate,
}
"""Further roles by name, each with what writes a document of it."""
