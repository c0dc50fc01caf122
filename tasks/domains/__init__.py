"""Domains: what is asked, how it is put to the model in each role, and how an answer is verified.

A domain is one file beside this one, found by its name, with one `Domain` subclass. What a user must write is `items`,
`answer` and `verify`; the roles' prompts have plain-language defaults that any chat model follows. Code here is shared
by all domains: an edit of this file does not make stages stale, an edit of a domain's own file does.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from tasks.stage import Params

Message = dict[Literal["role", "content"], str]
"""One turn of a chat: `{"role": "user", "content": …}`; a conversation is a list of them."""

Split = Literal["seeds", "train", "validation", "heldout", "gold"]
"""The disjoint sets of a domain: `seeds` start the pool of prompts, `train` may be learnt from by labelled baselines,
`validation` is for tuning, `heldout` for reporting, `gold` has answers whose correctness is known, to judge judges."""


@dataclass(frozen=True, slots=True)
class Item:
    """A problem of a domain. A `gold` item also carries a response and where that response first goes wrong."""

    problem: str
    level: int | None = None
    """Difficulty, 1 the easiest; None where the domain has no levels."""
    reference: str | None = None
    """The right final answer, where one is known without running a verifier."""
    response: str | None = None
    wrong_step: int | None = None
    """For a gold item: number (from 1) of the first wrong step of `response`; None when it is all right."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check says of a response: passed, failed, or could not say (`passed` None and `error` why)."""

    passed: bool | None
    wrong_step: int | None = None
    """Number (from 1) of the first wrong step, where the check can locate it."""
    error: str | None = None
    score: float | None = field(default=None)
    """A grade in [0, 1] where the check gives one; else 1.0 for passed and 0.0 for failed."""


class Domain(Params):
    """What is asked and how it is verified. Methods are pure functions of their arguments and of the domain's params.

    Files that a domain reads lie under `data/seeds`, where DVC sees their edits.
    """

    near_duplicates: ClassVar[Literal["structure", "rouge"]] = "rouge"
    """How near-duplicate problems are told: ROUGE-L F above 0.7 for free text, equal `structure` where templates share
    most words."""
    verdict_form: ClassVar[str | None] = r"(.|\n)*Verdict: (correct|wrong)"
    """What a judge's text looks like that `verdict` can read, as a regular expression; an engine that can holds the judge
    to it. None leaves it free."""

    def items(self, split: Split, count: int, seed: int) -> list[Item]:
        """Up to `count` problems of a split, spread over its levels; equal arguments give equal items.

        The splits are disjoint whatever the counts and seeds are, and a larger count gives a superset: that is how
        evaluation items, always asked for with seed 0, are known to whoever must keep clear of them.
        """
        raise NotImplementedError

    def parse(self, text: str) -> Item | None:
        """The problem that a model wrote in its author role, tidied, with its level; None when it is not well-formed."""
        return Item(text.strip()) if text.strip() else None

    def structure(self, problem: str) -> str:
        """What makes two problems near-duplicates of each other when it is equal; by default the whole text."""
        return problem

    def answer(self, response: str) -> str | None:
        """The final answer of a response in canonical form (equal answers, equal strings); None when there is none."""
        return response.strip() or None

    def verify(self, problem: str, response: str, reference: str | None = None) -> Verdict:
        """Whether a response is right. A domain without a verifier answers with an error, never with a guess."""
        return Verdict(None, error="this domain has no verifier")

    # The roles. Each gives the conversation to which the model's completion is the role's work.

    def write(self, examples: list[str], level: int | None) -> list[Message]:
        """Author: write one new problem like `examples`, at `level` where the domain has levels."""
        shown = "\n\n".join(f"Problem {i}:\n{e}" for i, e in enumerate(examples, 1))
        ask = "Write one new problem of the same kind and difficulty. Give only the problem."
        return [{"role": "user", "content": f"{shown}\n\n{ask}"}]

    def solve(self, problem: str) -> list[Message]:
        """Solver: answer the problem."""
        return [{"role": "user", "content": problem}]

    def judge(self, problem: str, response: str) -> list[Message]:
        """Judge: is the response right? `verdict` reads what comes back."""
        ask = "Is this answer correct? Check it step by step, then end with 'Verdict: correct' or 'Verdict: wrong'."
        return [{"role": "user", "content": f"{problem}\n\nA proposed answer:\n{response}\n\n{ask}"}]

    def criticise(self, problem: str, response: str) -> list[Message]:
        """Critic: go through the steps, name the first wrong one, close with a verdict. `verdict` reads it."""
        ask = (
            "Go through the answer step by step. For each step say 'Step k: correct' or 'Step k: wrong' and why. "
            "End with 'Verdict: correct' or 'Verdict: wrong'."
        )
        return [{"role": "user", "content": f"{problem}\n\nA proposed answer:\n{response}\n\n{ask}"}]

    def refine(self, problem: str, response: str, critique: str) -> list[Message]:
        """Refiner: answer again after reading the critique."""
        ask = "Using the critique, write the corrected answer in full."
        text = f"{problem}\n\nA proposed answer:\n{response}\n\nA critique of it:\n{critique}\n\n{ask}"
        return [{"role": "user", "content": text}]

    def verdict(self, text: str) -> Verdict:
        """Reads what the judge or the critic wrote; text that cannot be read is an error, never a fail."""
        import re

        found = re.findall(r"verdict:\s*\**(correct|wrong)", text, re.IGNORECASE)
        if not found:
            return Verdict(None, error="no 'Verdict: correct' or 'Verdict: wrong' in the text")
        steps = re.findall(r"step\s+(\d+):\s*\**wrong", text, re.IGNORECASE)
        return Verdict(found[-1].lower() == "correct", int(steps[0]) if steps else None)
