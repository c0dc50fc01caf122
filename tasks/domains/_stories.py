"""Stories of the arithmetic domain: their text, their worked answers, right and wrong, and true checks of these."""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from itertools import accumulate

from tasks.domains import Split

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

_FIRST = re.compile(r"(\w+) has ([0-9]{1,2}) (\w+)\.")
_STEP = re.compile(r"Day ([0-9]{1,4}): (?:([1-9][0-9]?) (\w+)|(\w+))")
MOST_DAYS = 1000
"""Of a problem that is read. Its values grow with each day, and stay below 500 digits."""


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
    if not opening or not 0 < len(days) <= MOST_DAYS or last != "How many?":
        return None
    steps = [_read_step(k, line) for k, line in enumerate(days, 1)]
    if None in steps:
        return None
    return Story(int(opening[2]), tuple(step for step in steps if step))


def _read_step(k: int, line: str) -> tuple[str, int] | None:
    day = _STEP.fullmatch(line)
    if not day or int(day[1]) != k:
        return None
    if day[4]:
        return WHOLE.get(day[4])
    return next(((sign, int(day[2])) for sign, verbs in VERBS.items() if day[3] in verbs), None)


def tell(story: Story, rng: random.Random, thing: str | None = None) -> str:
    """Puts a story into words drawn at random; about `thing` where one is named."""
    words = {step: word for word, step in WHOLE.items()}
    days = [words.get((s, n)) or f"{n} {rng.choice(VERBS[s])}" for s, n in story.steps]
    lines = [f"{rng.choice(NAMES)} has {story.start} {thing or rng.choice(THINGS)}."]
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
            claim = slip(rng, claim)
        steps.append(step)
        claims.append(claim)
    return Story(start, tuple(steps)), claims


@cache
def _steps(truth: int, claim: int) -> tuple[list[tuple[str, int]], list[int]]:
    """The steps that keep both values in range, and their weights, summed up."""
    fits = [s for s in STEPS if in_range(apply(truth, *s)) and in_range(apply(claim, *s))]
    # additions fit five times as often as the rest: without weights few stories would multiply
    return fits, list(accumulate(1 if s[0] in "+-" else 3 for s in fits))


@cache
def owned(split: Split, level: int, most: int) -> int:
    """How many stories of a level a split owns, or `most` where they are surely more: a level of few steps has few, and whoever
    draws until there are so many would never stop.
    """
    share, ways = len(SHARES[split]) / 100, [1] * (LARGEST + 1)
    for _ in range(level):  # ways on from each value
        ways = [sum(ways[apply(value, *step)] for step in _steps(value, value)[0]) for value in range(LARGEST + 1)]
    if share * sum(ways[1:]) > 2 * most:  # by a hash's buckets, never that far from the share where there are many
        return most
    found = [((start, ()), start) for start in range(1, LARGEST + 1)]
    for _ in range(level):
        found = [
            ((start, (*steps, step)), apply(value, *step))
            for (start, steps), value in found
            for step in _steps(value, value)[0]
        ]
    return min(most, sum(Story(*story).split == split for story, _ in found))


def in_range(value: int) -> bool:
    """Whether a value is in range."""
    return 0 <= value <= LARGEST


def slip(rng: random.Random, value: int) -> int:
    """Another value in range, off by 1 to 3."""
    return rng.choice([v for by in (1, 2, 3) for v in (value - by, value + by) if in_range(v)])


def of_split(rng: random.Random, split: Split, level: int, slips: set[int] | float = 0.0) -> tuple[Story, list[int]]:
    while True:
        story, values = draw(rng, level, slips)
        if story.split == split:
            return story, values


def attempt(rng: random.Random, split: Split, level: int, correct: bool, slips: float = 0.1) -> tuple[Story, str]:
    """A story and an answer to it, right or with something wrong in it: one slip and others with the probability
    `slips` a step. A change can leave an answer right (a slip back, a doubling for an addition), so each is verified.
    """
    while True:
        at = set() if correct else {rng.randint(1, level)} | {k for k in range(1, level + 1) if rng.random() < slips}
        odd = not correct and rng.random() < 0.2
        story, values = of_split(rng, split, level, set() if odd else at)
        response = _misread(rng, story) if odd else work(story, values)
        if (first_wrong(story, response) is None) == correct:
            return story, response


def _misread(rng: random.Random, story: Story) -> str:
    """An answer that takes another number or sign than a day's, or ends in another than its last value."""
    k = rng.randint(0, len(story.steps))
    if k == len(story.steps):
        *lines, _ = work(story, story.values()).split("\n")
        return "\n".join([*lines, f"Answer: {slip(rng, story.values()[-1])}"])
    steps = [*story.steps[:k], rng.choice(STEPS), *story.steps[k + 1 :]]
    other = Story(story.start, tuple(steps))
    fits = all(map(in_range, other.values()))
    return work(other, other.values()) if fits else work(story, story.values())


def first_wrong(story: Story, response: str) -> int | None:
    """Number of the first line of a worked answer that does not follow from the problem and the lines before it."""
    lines, before = response.strip().split("\n"), story.start
    for k, (sign, n) in enumerate(story.steps, 1):
        if len(lines) < k or lines[k - 1] != f"Day {k}: {before}{sign}{n}={apply(before, sign, n)}":
            return k
        before = apply(before, sign, n)
    return None if lines[len(story.steps) :] == [f"Answer: {before}"] else len(story.steps) + 1


def checks(story: Story, response: str) -> Iterator[tuple[str, int, int]]:
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
    wrong = next((line for line, due, claim in checks(story, response) if due != claim), None)
    return [*lines, f"Verdict: wrong, {wrong}" if wrong else "Verdict: correct"]


def judgment(story: Story, response: str) -> list[str]:
    """A true judgment of it: every line checked, then the bare verdict."""
    checked = list(checks(story, response))
    lines = [f"{line}, said {claim}: {said_mark(due, claim)}" for line, due, claim in checked]
    return [*lines, "Verdict: correct" if all(due == claim for _, due, claim in checked) else "Verdict: wrong"]


def said_mark(due: int, claim: int) -> str:
    """How a claimed value compares with the due one."""
    return "right" if claim == due else "too high" if claim > due else "too low"
