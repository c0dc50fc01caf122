"""Instructions that no program can verify: the model's own judge says what a good answer is.

A file holds one JSON object a line: `{"prompt": …}`, or self-instruct's seed tasks (Wang et al. 2022, arXiv:2212.10560),
`{"instruction": …, "instances": [{"input": …}, …]}`, of which the first instance is taken. A hash of the prompt decides
its split, so a prompt stays in its split when others are added. There is no gold set, for nobody knows the verdicts.
"""

import re
from pathlib import Path
from typing import Any, ClassVar

from tasks.core.errors import FlywheelError
from tasks.core.ids import seed_of
from tasks.core.verdicts import Pass, Score, shield
from tasks.domains import Domain, Item, Message, Split, Verdict
from tasks.domains._jsonl import json_lines, text_of

SCORE = Score(0, 5)
"""Points of the rubric."""
LINE = 'a line is {"prompt": "…"} or {"instruction": "…", "instances": [{"input": "…"}]}'
SHARES = {"seeds": range(50), "heldout": range(50, 75), "validation": range(75, 90), "train": range(90, 100)}
"""Percentiles of the prompt's hash that make up each split."""

NEEDS_MORE = re.compile(
    r"\b(images?|graphs?|pictures?|files?|maps?|draw|plot|go to|video|audio|music|diagrams?)\b", re.IGNORECASE
)
"""What a text-only model cannot see or make: such instructions are dropped, as self-instruct drops them."""

HEADING = re.compile(r"^(?:(?:problem|instruction|task)\s*(?:\d+\s*)?:|\d+[.)])\s*", re.IGNORECASE)
WRITE = "Write one new instruction, of another kind than these but as clear. Give only the instruction."
RUBRIC = """Review the user's instruction and the response with the additive 5-point scoring system below. Points add up:
- Add 1 point if the response is relevant and says something on the matter, even if it is incomplete.
- Add 1 point if it addresses a substantial part of the instruction, without resolving it wholly.
- Add 1 point if it answers the basic elements of the instruction in a useful way, whoever may have written it.
- Add 1 point if it is clearly written by an AI assistant, direct, comprehensive, well organised and helpful.
- Add 1 point if it is impeccably tailored to the instruction, expert, engaging, and without superfluous words.

<instruction>
{problem}
</instruction>
<response>
{response}
</response>

Justify your total in at most 100 words, then end with a line "Score: n", n being the total from 0 to 5."""


class Chat(Domain):
    """Open instructions; `judge` is the additive rubric of self-rewarding (Yuan et al. 2024, arXiv:2401.10020)."""

    verdict_form: ClassVar[str | None] = SCORE.regex

    path: Path
    """JSONL file of prompts, gzipped or not."""
    system: str = ""
    """System message of every conversation with the solver; none when empty."""
    words: tuple[int, int] = (3, 150)
    """Fewest and most words of an instruction that the model wrote (self-instruct's limits)."""

    def items(self, split: Split, count: int, seed: int) -> list[Item]:
        """Up to `count` prompts of a split in an order drawn by `seed`. Raises FlywheelError for a broken file."""
        prompts = {prompt(where, line) for where, line in json_lines(self.path, LINE)}
        chosen = [p for p in prompts if seed_of(" ".join(p.casefold().split())) % 100 in SHARES.get(split, ())]
        return [Item(p) for p in sorted(chosen, key=lambda p: (seed_of(seed, p), p))[:count]]

    def parse(self, text: str) -> Item | None:
        """The instruction that the model wrote; None when too short, too long, unprintable or not for text alone."""
        tidy = HEADING.sub("", text.strip())
        shortest, longest = self.words
        fits = shortest <= len(tidy.split()) <= longest and tidy.replace("\n", " ").replace("\t", " ").isprintable()
        return Item(tidy) if fits and not NEEDS_MORE.search(tidy) else None

    def write(self, examples: list[str], level: int | None) -> list[Message]:
        """Author: one new instruction after some of the pool's."""
        instructions = "\n\n".join(f"Instruction {i}:\n{e}" for i, e in enumerate(examples, 1))
        return [{"role": "user", "content": f"{instructions}\n\n{WRITE}"}]

    def solve(self, problem: str) -> list[Message]:
        """Solver: the instruction as the user's turn, after the system message where there is one."""
        system: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": problem}]

    def judge(self, problem: str, response: str) -> list[Message]:
        """Judge: the 0–5 additive rubric, a short justification, a closing `Score: n`."""
        return [{"role": "user", "content": RUBRIC.format(problem=shield(problem), response=shield(response))}]

    def verdict(self, text: str) -> Verdict:
        """The closing line `Score: n` as n/5, a grade that neither passes nor fails. A score off the scale of whole points
        0–5, or none, is an error, never a fail; so is a `Verdict: …`, for which the judge was not asked.
        """
        return SCORE.read(text)

    def critic_verdict(self, text: str) -> Verdict:
        """The critic's closing line `Verdict: correct` or `Verdict: wrong`."""
        return Pass().read(text)


def prompt(where: str, line: dict[str, Any]) -> str:
    """The prompt of a line of either format. Raises FlywheelError that names the line when it has none."""
    if "prompt" in line:
        return text_of(line, "prompt", where, LINE)
    instruction, instances = text_of(line, "instruction", where, LINE), line.get("instances") or [{}]
    if not isinstance(instances, list) or not isinstance(instances[0], dict):
        raise FlywheelError(f"{where}: 'instances' is {str(instances)[:60]!r}, expected a list of objects; {LINE}")
    context = instances[0].get("input") or ""
    return f"{instruction}\n\n{context}".strip() if isinstance(context, str) else instruction
