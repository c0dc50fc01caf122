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
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from itertools import accumulate
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from tasks.domains import Domain, Item, Message, Split, Verdict, shield

Role = Literal["write", "solve", "judge", "critique", "refine"]

NAMES = ("Tom", "Ann", "Sam", "Eva", "Ben", "Mia", "Leo", "Ida", "Max", "Zoe", "Kim", "Joe")
THINGS = ("pens", "eggs", "nuts", "cups", "hats", "bags", "keys", "toys", "figs", "coins", "books", "cards")
VERBS = {"+": ("found", "bought", "got"), "-": ("lost", "sold", "gave")}
WHOLE = {"doubled": ("*", 2), "tripled": ("*", 3), "halved": ("/", 2)}

LARGEST = 30
"""Values of a generated story lie in 0 … LARGEST, also where a slip is carried on."""

STEPS = tuple((sign, n) for sign in "+-" for n in range(1, 6)) + tuple(WHOLE.values())
SHARES: dict[Split, range] = {
    "heldout": range(0, 32),
    "validation": range(32, 50),
    "gold": range(50, 60),
    "seeds": range(60, 66),
    "train": range(66, 100),
}
"""Of 100 buckets of the hash of a problem's numbers, those that a split owns."""

_FIRST = re.compile(r"(\w+) has (\d+) (\w+)\.")
_STEP = re.compile(r"Day (\d+): (?:([1-9]\d?) (\w+)|(\w+))")
_WORKED = re.compile(r"Day (\d+): (\d+)([-+*/])(\d+)=(\d+)")
_ANSWER = re.compile(r"Answer: (\d+)")
_CLOSING = re.compile(r"Verdict: (correct|wrong(?:, .*)?)")
_CHECKED = re.compile(r"(?:Day \d+: .*=|Answer: )(\d+), said (\d+): (?:right|too high|too low)")


@dataclass(frozen=True, slots=True)
class Story:
    """A problem taken apart: what there was, and what each day did to it as (sign, operand)."""

    start: int
    steps: tuple[tuple[str, int], ...]

    @property
    def key(self) -> str:
        """The numbers alone, as `12+5/2`."""
        return str(self.start) + "".join(f"{sign}{n}" for sign, n in self.steps)

    @property
    def split(self) -> Split:
        """The split that owns this story."""
        bucket = int.from_bytes(blake2b(self.key.encode(), digest_size=4).digest()) % 100
        return next(split for split, owned in SHARES.items() if bucket in owned)

    def values(self) -> list[int]:
        """The right value after each step."""
        value, after = self.start, []
        for sign, n in self.steps:
            value = apply(value, sign, n)
            after.append(value)
        return after


def apply(value: int, sign: str, n: int) -> int:
    """One step of arithmetic; division rounds down."""
    match sign:
        case "+":
            return value + n
        case "-":
            return value - n
        case "*":
            return value * n
        case _:
            return value // n


def read(problem: str) -> Story | None:
    """Takes a problem's text apart; None when a line is not of the form above."""
    first, *days, last = problem.strip().split("\n") if "\n" in problem.strip() else ("", "")
    opening = _FIRST.fullmatch(first)
    steps = [_read_step(k, line) for k, line in enumerate(days, 1)]
    if not opening or not steps or None in steps or last != "How many?" or len(opening[2]) > 2:
        return None
    return Story(int(opening[2]), tuple(step for step in steps if step))


def _read_step(k: int, line: str) -> tuple[str, int] | None:
    day = _STEP.fullmatch(line)
    if not day or int(day[1]) != k:
        return None
    if day[4]:
        return WHOLE.get(day[4])
    return next(((sign, int(day[2])) for sign, verbs in VERBS.items() if day[3] in verbs), None)


def tell(story: Story, rng: random.Random) -> str:
    """Puts a story into words drawn at random."""
    words = {step: word for word, step in WHOLE.items()}
    days = [words.get((s, n)) or f"{n} {rng.choice(VERBS[s])}" for s, n in story.steps]
    lines = [f"{rng.choice(NAMES)} has {story.start} {rng.choice(THINGS)}."]
    return "\n".join(lines + [f"Day {k}: {day}" for k, day in enumerate(days, 1)] + ["How many?"])


def work(story: Story, values: list[int]) -> str:
    """The worked answer whose steps end in `values`, right or wrong, each carried on into the next."""
    before = [story.start, *values]
    lines = [f"Day {k}: {before[k - 1]}{s}{n}={values[k - 1]}" for k, (s, n) in enumerate(story.steps, 1)]
    return "\n".join([*lines, f"Answer: {values[-1]}"])


def draw(rng: random.Random, level: int, slips: set[int] | float = 0.0) -> tuple[Story, list[int]]:
    """A random story and the values of a solver who slips by 1 to 3 at the steps `slips` (counted from 1), or at each step
    with that probability, and carries it on. All values, the true ones and the solver's, are in range.
    """
    start = rng.randint(1, LARGEST)
    truth, claim, steps, claims = start, start, [], []
    for k in range(1, level + 1):
        fits, weights = _steps(truth, claim)
        step = rng.choices(fits, cum_weights=weights)[0]
        truth, claim = apply(truth, *step), apply(claim, *step)
        if k in slips if isinstance(slips, set) else rng.random() < slips:
            claim = _slip(rng, claim)
        steps.append(step)
        claims.append(claim)
    return Story(start, tuple(steps)), claims


@cache
def _steps(truth: int, claim: int) -> tuple[list[tuple[str, int]], list[int]]:
    """The steps that keep both values in range, and their weights, summed up."""
    fits = [s for s in STEPS if _fits(apply(truth, *s)) and _fits(apply(claim, *s))]
    # additions fit five times as often as the rest: without weights few stories would multiply
    return fits, list(accumulate(1 if s[0] in "+-" else 3 for s in fits))


def _fits(value: int) -> bool:
    return 0 <= value <= LARGEST


def _slip(rng: random.Random, value: int) -> int:
    return rng.choice([v for by in (1, 2, 3) for v in (value - by, value + by) if _fits(v)])


class Arithmetic(Domain):
    """Story problems of several steps (`Tom has 12 pens.` …), verified by working them out."""

    near_duplicates: ClassVar[Literal["structure", "rouge"]] = "structure"
    verdict_form: ClassVar[str | None] = None

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
        return Item(text.strip(), len(story.steps)) if story and all(map(_fits, story.values())) else None

    def structure(self, problem: str) -> str:
        """The problem's numbers and operations, as `12+5/2`; a text that is no problem stands for itself."""
        story = read(problem)
        return story.key if story else problem

    def answer(self, response: str) -> str | None:
        """The number of the last line, `Answer: 8`."""
        last = _ANSWER.fullmatch(response.strip().rpartition("\n")[2])
        return str(int(last[1])) if last else None

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

    def document(self, rng: random.Random, role: Role, level: int, noise: float) -> tuple[list[Message], str]:
        """A conversation and its completion for the corpus of an embedded model, from the `train` split. In the role
        `solve` each step slips with probability `noise`; what the other roles say is right.
        """
        if role in ("judge", "critique", "refine"):
            return self._checked(rng, role, level)
        story, values = _of_split(rng, "train", level, noise)
        problem = tell(story, rng)
        return (self.write([], level), problem) if role == "write" else (self.solve(problem), work(story, values))

    def _checked(self, rng: random.Random, role: Role, level: int) -> tuple[list[Message], str]:
        # more slips than a model makes: where nearly every line is right, comparing is not learnt
        correct = rng.random() < (0.1 if role == "refine" else 0.35)
        story, response = _attempt(rng, "train", level, correct, slips=0.35)
        problem = tell(story, rng)
        if role == "judge":
            return self.judge(problem, response), "\n".join(judgment(story, response))
        critique = "\n".join(criticism(story, response))
        if role == "critique":
            return self.criticise(problem, response), critique
        return self.refine(problem, response, critique), work(story, story.values())


def _chat(role: Role, *parts: str) -> list[Message]:
    # the role tag is the system message; a model that is no embedded one reads it as a one-word instruction
    return [{"role": "system", "content": role}, {"role": "user", "content": "\n\n".join(parts)}]


def _of_split(rng: random.Random, split: Split, level: int, slips: set[int] | float = 0.0) -> tuple[Story, list[int]]:
    while True:
        story, values = draw(rng, level, slips)
        if story.split == split:
            return story, values


def _level(rng: random.Random, split: Split, level: int, count: int) -> Iterator[Item]:
    seen: set[str] = set()
    for _ in range(50 * count):  # few-step levels hold only so many stories
        if len(seen) == count:
            return
        story, item = _item(rng, split, level)
        if story.split == split and story.key not in seen:
            seen.add(story.key)
            yield item


def _item(rng: random.Random, split: Split, level: int) -> tuple[Story, Item]:
    if split != "gold":
        story, values = draw(rng, level)
        return story, Item(tell(story, rng), level, str(values[-1]))
    story, response = _attempt(rng, split, level, correct=rng.random() < 0.5)
    wrong = first_wrong(story, response)
    return story, Item(tell(story, rng), level, str(story.values()[-1]), response, wrong)


def _attempt(rng: random.Random, split: Split, level: int, correct: bool, slips: float = 0.1) -> tuple[Story, str]:
    """A story and an answer to it, right or with something wrong in it: one slip and others with the probability
    `slips` a step. A change can leave an answer right (a slip back, a doubling for an addition), so each is verified.
    """
    while True:
        at = set() if correct else {rng.randint(1, level)} | {k for k in range(1, level + 1) if rng.random() < slips}
        odd = not correct and rng.random() < 0.2
        story, values = _of_split(rng, split, level, set() if odd else at)
        response = _misread(rng, story) if odd else work(story, values)
        if (first_wrong(story, response) is None) == correct:
            return story, response


def _misread(rng: random.Random, story: Story) -> str:
    """An answer that takes another number or sign than a day's, or ends in another than its last value."""
    k = rng.randint(0, len(story.steps))
    if k == len(story.steps):
        *lines, _ = work(story, story.values()).split("\n")
        return "\n".join([*lines, f"Answer: {_slip(rng, story.values()[-1])}"])
    steps = [*story.steps[:k], rng.choice(STEPS), *story.steps[k + 1 :]]
    other = Story(story.start, tuple(steps))
    fits = all(map(_fits, other.values()))
    return work(other, other.values()) if fits else work(story, story.values())


def first_wrong(story: Story, response: str) -> int | None:
    """Number of the first line of a worked answer that does not follow from the problem and the lines before it."""
    lines, before = response.strip().split("\n"), story.start
    for k, (sign, n) in enumerate(story.steps, 1):
        if len(lines) < k or lines[k - 1] != f"Day {k}: {before}{sign}{n}={apply(before, sign, n)}":
            return k
        before = apply(before, sign, n)
    return None if lines[len(story.steps) :] == [f"Answer: {before}"] else len(story.steps) + 1


def _checks(story: Story, response: str) -> Iterator[tuple[str, int, int]]:
    """Each line of a worked answer as (what it should be, its value then, the value that it claims), worked out from what
    the answer claims before it.
    """
    before = story.start
    values = [int(line.rpartition("=")[2]) for line in response.split("\n")[:-1]]
    for k, ((sign, n), claim) in enumerate(zip(story.steps, values, strict=True), 1):
        due = apply(before, sign, n)
        yield f"Day {k}: {before}{sign}{n}={due}", due, claim
        before = claim
    yield f"Answer: {before}", before, int(response.rpartition("Answer: ")[2])


def criticism(story: Story, response: str) -> list[str]:
    """A true critique of a worked answer: every line checked, then the verdict with the correction."""
    *lines, _ = judgment(story, response)
    wrong = next((line for line, due, claim in _checks(story, response) if due != claim), None)
    return [*lines, f"Verdict: wrong, {wrong}" if wrong else "Verdict: correct"]


def judgment(story: Story, response: str) -> list[str]:
    """A true judgment of it: every line checked, then the bare verdict."""
    checks = list(_checks(story, response))
    lines = [f"{line}, said {claim}: {_mark(due, claim)}" for line, due, claim in checks]
    return [*lines, "Verdict: correct" if all(due == claim for _, due, claim in checks) else "Verdict: wrong"]


def _mark(due: int, claim: int) -> str:
    return "right" if claim == due else "too high" if claim > due else "too low"
