"""Stories of one to three days, checked by their final answer alone: a domain of a user's own, in one file."""

import random
import re
from typing import ClassVar, Literal

from tasks.domains import Domain, Item, Message, Split, Verdict

OPENING = re.compile(r"(\w+) has (\d+) (\w+)\.")
DAY = re.compile(r"Day \d+: (?:(\d+) (found|lost)|(doubled|halved))")
SPLITS: dict[Split, range] = {
    "seeds": range(0, 20),
    "train": range(20, 50),
    "validation": range(50, 65),
    "heldout": range(65, 90),
    "gold": range(90, 100),
}


def total(problem: str) -> int | None:
    """How many there are in the end; None when the story cannot be read."""
    first, *days, last = problem.split("\n") if "\n" in problem else ("", "")
    opening = OPENING.fullmatch(first)
    steps = [DAY.fullmatch(day) for day in days]
    if not opening or not days or None in steps or last != "How many?":
        return None
    value = int(opening[2])
    for step in steps:
        value = after(value, step)
    return value


def after(value: int, step: re.Match[str]) -> int:
    """The number after one day."""
    match step[2] or step[3]:
        case "found":
            return value + int(step[1])
        case "lost":
            return value - int(step[1])
        case "doubled":
            return value * 2
        case _:
            return value // 2


class Stories(Domain):
    """Stories of one to three days; right is what ends in the right number."""

    near_duplicates: ClassVar[Literal["structure", "rouge"]] = "structure"

    def items(self, split: Split, count: int, seed: int) -> list[Item]:
        rng, items = random.Random(f"{split} {seed}"), {}
        for _ in range(200 * count):
            start, level = rng.randint(1, 20), rng.randint(1, 3)
            days = [
                rng.choice([f"{rng.randint(1, 5)} found", f"{rng.randint(1, 5)} lost", "halved"]) for _ in range(level)
            ]
            lines = [f"Day {k}: {day}" for k, day in enumerate(days, 1)]
            text = "\n".join([f"Tom has {start} pens.", *lines, "How many?"])
            if sum(map(ord, text)) % 100 in SPLITS[split] and total(text) >= 0 and len(items) < count:
                items[text] = self.gold(text, rng, level) if split == "gold" else Item(text, level, str(total(text)))
        return list(items.values())

    def gold(self, text: str, rng: random.Random, level: int) -> Item:
        """An item with an answer that is known to be right or wrong."""
        slip = rng.choice([0, 1])
        return Item(text, level, response=f"Answer: {total(text) + slip}", wrong_step=1 if slip else None)

    def parse(self, text: str) -> Item | None:
        value = total(text.strip())
        return None if value is None or value < 0 else Item(text.strip(), text.count("Day "))

    def answer(self, response: str) -> str | None:
        last = re.search(r"Answer: (\d+)\s*$", response)
        return last[1] if last else None

    def verify(self, problem: str, response: str, reference: str | None = None) -> Verdict:
        value, answer = total(problem), self.answer(response)
        return Verdict(None, error="the story cannot be read") if value is None else Verdict(answer == str(value))

    def solve(self, problem: str) -> list[Message]:
        return [{"role": "system", "content": "solve"}, {"role": "user", "content": problem}]
