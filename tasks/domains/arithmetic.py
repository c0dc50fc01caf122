"""Story problems of several steps, with an executable verifier of the answer and of every step.

    Tom has 12 pens.            Day 1: 12+5=17
    Day 1: 5 found              Day 2: 17/2=8          (halving rounds down)
    Day 2: halved               Answer: 8
    How many?

A problem's level is its number of steps. Two problems with the same numbers are near-duplicates whatever their words
are, and the hash of these numbers says to which split a problem belongs: the splits are disjoint by construction.
The judge and the critic work each step out again from what the answer said before it, and only then compare: asked for
a verdict at once, a small model judges at chance beyond two steps.
"""

import random
import re
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from tasks.core.verdicts import MAX_DIGITS, Form, Steps, whole_number
from tasks.domains import Domain, Item, Message, Split, Verdict, shield
from tasks.domains._lessons import LESSONS, UNKNOWN, unclear
from tasks.domains._marks import mark
from tasks.domains._stories import (
    Story,
    attempt,
    criticism,
    draw,
    first_wrong,
    in_range,
    judgment,
    of_split,
    owned,
    read,
    tell,
    work,
)

Role = Literal["write", "solve", "judge", "critique", "refine"]
"""The roles of the embedded base."""

_ANSWER = re.compile(r"Answer: ([0-9]+)")
_CLOSING = re.compile(r"Verdict: (correct|wrong(?:, .*)?)")
_CHECKED = re.compile(
    rf"(?:Day [0-9]+: .*=|Answer: )([0-9]{{1,{MAX_DIGITS}}}), said ([0-9]{{1,{MAX_DIGITS}}}): (?:right|too high|too low)"
)


class Arithmetic(Domain):
    """Story problems of several steps (`Tom has 12 pens.` …), verified by working them out."""

    near_duplicates: ClassVar[Literal["structure", "rouge"]] = "structure"
    verdict_form: ClassVar[str | None] = None
    roles: ClassVar[tuple[str, ...]] = ("write", "solve", "judge", "critique", "refine", *LESSONS)

    easiest: int = Field(2, ge=1, le=9)
    """Fewest steps of a problem in the sets."""
    hardest: int = Field(8, ge=1, le=9)
    """Most steps of a problem in the sets; the embedded model has seen up to 8."""

    @model_validator(mode="after")
    def _some_levels(self) -> "Arithmetic":
        if self.easiest > self.hardest:
            raise ValueError(f"easiest is {self.easiest}, which is above hardest ({self.hardest}); swap them")
        return self

    def items(self, split: Split, count: int, seed: int) -> list[Item]:
        """Stories of the levels `easiest` … `hardest`, equally many each as far as a level has so many."""
        levels = range(self.easiest, self.hardest + 1)
        counts = [count // len(levels) + (i < count % len(levels)) for i in range(len(levels))]
        # a generator of its own for each level: a larger count gives a superset
        rngs = [random.Random(f"{split} {seed} {level}") for level in levels]
        return [i for k, n, rng in zip(levels, counts, rngs, strict=True) for i in _level(rng, split, k, n)]

    def parse(self, text: str) -> Item | None:
        """A story with its level; None for a text that `read` cannot take apart, and for a story in which there are
        less than none or more than LARGEST: nobody has -3 pens. The answer stays unsaid.
        """
        story = read(text)
        return Item(text.strip(), len(story.steps)) if story and all(map(in_range, story.values())) else None

    def structure(self, problem: str) -> str:
        """The problem's numbers and operations, as `12+5/2`; a text that is no problem stands for itself."""
        story = read(problem)
        return story.key if story else problem

    def answer(self, response: str) -> str | None:
        """The number of the last line, `Answer: 8`; None for one of more than `MAX_DIGITS`."""
        last = _ANSWER.fullmatch(response.strip().rpartition("\n")[2])
        number = whole_number(last[1]) if last else None
        return None if number is None else str(number)

    def verify(self, problem: str, response: str, reference: str | None = None) -> Verdict:
        """Right when every step follows from the problem and from what the answer said before, and so does the
        `Answer:` line, which counts as the step after the last. A response without an answer, such as one that was cut
        off, is an error and not a fail.
        """
        story = read(problem)
        if story is None:
            return Verdict(None, error="the problem cannot be read")
        if self.answer(response) is None:
            return Verdict(None, error="no answer in the response")
        wrong = first_wrong(story, response)
        return Verdict(wrong is None, wrong)

    def write(self, examples: list[str], level: int | None) -> list[Message]:
        """Author. `examples` give only the level where none is named: the embedded model needs no more."""
        levels = [len(story.steps) for story in map(read, examples) if story]
        level = level or (levels or [self.easiest])[0]
        return _chat("write", f"Level {level}, to Day {level}: How many?")

    def solve(self, problem: str) -> list[Message]:
        """Solver: work the problem step by step."""
        return _chat("solve", problem)

    def judge(self, problem: str, response: str) -> list[Message]:
        """Judge: check each line up to the first wrong one."""
        return _chat("judge", problem, shield(response))

    def criticise(self, problem: str, response: str) -> list[Message]:
        """Critic: check every line, then correct the first wrong one."""
        return _chat("critique", problem, shield(response))

    def refine(self, problem: str, response: str, critique: str) -> list[Message]:
        """Refiner: work the problem again after reading the critique."""
        return _chat("refine", problem, response, critique)

    # The roles that the embedded base r0 does not know, and r0t was taught

    def imitate(self, examples: Sequence[str]) -> list[Message]:
        """Author: as many steps as the examples have, about the same things."""
        return _chat("imitate", *examples)

    def mutate(self, problem: str, how: Literal["deeper", "broader"]) -> list[Message]:
        """Author: `deeper` adds a day, `broader` changes one."""
        return _chat("mutate", how, problem)

    def solve_with(self, problem: str, hint: str) -> list[Message]:
        """Solver: work the problem after its first lines."""
        return _chat("hint", problem, hint)

    def hint(self, problem: str, reference: str | None = None) -> str | None:
        """The first half of the worked lines; None for a text that is no problem."""
        story = read(problem)
        return "\n".join(work(story, story.values()).split("\n")[: -(-len(story.steps) // 2)]) if story else None

    def another_way(self, problem: str, response: str) -> list[Message]:
        """Solver: work the problem again after the first answer; an embedded model knows no other way."""
        return self.retry(problem, response)

    def retry(self, problem: str, response: str) -> list[Message]:
        """Refiner: work the problem again, the first answer before it."""
        return _chat("retry", problem, response)

    def agree(self, problem: str, solutions: Sequence[str]) -> list[Message]:
        """Solver: the most frequent of the solutions' final answers."""
        return _chat("agree", problem, " ".join(self.answer(solution) or "none" for solution in solutions))

    def grade(self, problem: str, response: str, rubric: str, form: Form) -> list[Message]:
        """Judge: check each line, then the points. The embedded rubric is 5 points less one for each wrong line, whatever
        `rubric` says: r0t was taught it, and reads no other.
        """
        return _chat("grade", problem, shield(response))

    def compare(self, problem: str, first: str, second: str) -> list[Message]:
        """Judge: work the problem, copy both final answers, choose."""
        return _chat("compare", problem, shield(first), shield(second))

    def grade_steps(self, problem: str, response: str, form: Form) -> list[Message]:
        """Judge: check each line, which is what the role `judge` does; `read` takes the marks from its lines."""
        return self.judge(problem, response)

    def read(self, form: Form, text: str) -> Verdict:
        """As the form reads it. A `Steps` of role `judge` has a line for each step, of which the two numbers are compared."""
        lines = [_CHECKED.fullmatch(line) for line in text.strip().split("\n")[:-1]]
        if not isinstance(form, Steps) or form.marker != Steps().marker or not lines or not all(lines):
            return form.read(text)
        if self.verdict(text).error:
            return Verdict(None, error=self.verdict(text).error)
        grades = tuple(float(int(line[1]) == int(line[2])) for line in lines if line)
        return form.verdict(" ".join(str(int(grade)) for grade in grades), text)

    def grade_together(self, problem: str, responses: Sequence[str], form: Form) -> list[Message]:
        """Judge: work the problem, copy all final answers, then points for each."""
        return _chat("together", problem, *map(shield, responses))

    def truth(self, problem: str, ideas: Sequence[str], answer: str) -> list[Message]:
        """Judge: is a final answer true, after those of other samples?"""
        return _chat("truth", problem, " ".join(map(shield, ideas)) or "none", shield(answer))

    def knows(self, problem: str) -> list[Message]:
        """Judge: will the problem be solved?"""
        return _chat("know", problem)

    def feedback(self, problem: str, response: str) -> list[Message]:
        """Teacher: check the lines up to the first wrong one, then say which it is."""
        return _chat("feedback", problem, shield(response))

    def read_feedback(self, text: str) -> str:
        """What follows `Feedback: ` on the last line; empty where nothing does."""
        return text.strip().rpartition("\n")[2].partition("Feedback: ")[2]

    def describe(self, verdict: Verdict) -> str:
        """`Line 2 is wrong.`; the answer is the line after the last day."""
        return self.line_feedback(verdict.wrong_step) if verdict.passed is not None else super().describe(verdict)

    def line_feedback(self, wrong: int | None) -> str:
        """What is said of an answer whose first wrong line is `wrong`."""
        return f"Line {wrong} is wrong." if wrong else "All is right."

    def ill_posed(self, count: int, seed: int) -> list[str]:
        """Held-out stories in which one number is missing, of all levels."""
        rng = random.Random(f"ill-posed {seed}")
        levels = [self.easiest + n % (self.hardest - self.easiest + 1) for n in range(count)]
        return [unclear(rng, of_split(rng, "heldout", level)[0]) for level in levels]

    def refuses(self, response: str) -> bool:
        """Whether it closes with `Answer: unknown`."""
        return response.strip().rpartition("\n")[2] == UNKNOWN

    def verdict(self, text: str) -> Verdict:
        """Reads a judge's or critic's lines: `Day 2: 17/2=8, said 9: too high` … `Verdict: wrong`, and nothing else.

        A line is wrong when its two numbers differ, and an answer when one of its lines is: a small model works a
        step out far more reliably than it words the comparison. A bare verdict counts as it stands.
        """
        *lines, last = text.strip().split("\n")
        checked = [_CHECKED.fullmatch(line) for line in lines]
        closing = _CLOSING.fullmatch(last)
        if not all(checked) or not closing:
            return Verdict(None, error="not lines like 'Day 2: 17/2=8, said 9: too high' and a verdict")
        wrong = next((k for k, line in enumerate(checked, 1) if line and int(line[1]) != int(line[2])), None)
        passed = wrong is None if checked else closing[1] == "correct"
        return Verdict(passed, wrong)

    def document(
        self, rng: random.Random, role: str, level: int, noise: float, split: Split = "train"
    ) -> tuple[list[Message], str]:
        """A conversation in one of `roles` and its completion for the corpus of an embedded model, on a story of the split.
        In the role `solve` each step slips with probability `noise`; what the other roles say is right.
        """
        if role in LESSONS:
            return LESSONS[role](self, rng, level, split)
        if role in ("judge", "critique", "refine"):
            return self._checked(rng, role, level, split)
        story, values = of_split(rng, split, level, noise)
        problem = tell(story, rng)
        return (self.write([], level), problem) if role == "write" else (self.solve(problem), work(story, values))

    def mark(self, role: str, prompt: str, expected: str, completion: str) -> Verdict:
        """Passed or failed, by the verifier where there is one for the role."""
        return mark(self, role, prompt, expected, completion)

    def _checked(self, rng: random.Random, role: str, level: int, split: Split) -> tuple[list[Message], str]:
        # more slips than a model makes: where nearly every line is right, comparing is not learnt
        correct = rng.random() < (0.1 if role == "refine" else 0.35)
        story, response = attempt(rng, split, level, correct, slips=0.35)
        problem = tell(story, rng)
        if role == "judge":
            return self.judge(problem, response), "\n".join(judgment(story, response))
        critique = "\n".join(criticism(story, response))
        if role == "critique":
            return self.criticise(problem, response), critique
        return self.refine(problem, response, critique), work(story, story.values())


def _chat(role: str, *parts: str) -> list[Message]:
    # the role tag is the system message; a model that is no embedded one reads it as a one-word instruction
    return [{"role": "system", "content": role}, {"role": "user", "content": "\n\n".join(parts)}]


def _level(rng: random.Random, split: Split, level: int, count: int) -> Iterator[Item]:
    seen: set[str] = set()
    enough = owned(split, level, count)  # few-step levels hold only so many stories
    for _ in range(50 * count):
        if len(seen) == enough:
            return
        story, item = _item(rng, split, level)
        if story.split == split and story.key not in seen:
            seen.add(story.key)
            yield item


def _item(rng: random.Random, split: Split, level: int) -> tuple[Story, Item]:
    if split != "gold":
        story, values = draw(rng, level)
        return story, Item(tell(story, rng), level, str(values[-1]))
    story, response = attempt(rng, split, level, correct=rng.random() < 0.5)
    wrong = first_wrong(story, response)
    return story, Item(tell(story, rng), level, str(story.values()[-1]), response, wrong)
