"""Domains: the problems, how they are put to a model in each role, and how an answer is verified.

A domain is one file beside this one, loaded by its name, with one `Domain` subclass. What a user must write is `items`,
`answer` and `verify`; the roles' prompts have plain-language defaults that any chat model follows.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from tasks.core.plugin import Plugin
from tasks.domains._verdicts import Verdict, read_verdict, shield

__all__ = ["Domain", "Item", "Message", "Split", "Verdict", "shield"]

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


class Domain(Plugin):
    """Problems and their verifier. Methods are pure functions of their arguments and of the domain's params.

    Files that a domain reads lie under `data/seeds`, where DVC sees their edits.
    """

    near_duplicates: ClassVar[Literal["structure", "rouge"]] = "rouge"
    """How near-duplicate problems are recognised: ROUGE-L F above 0.7 for free text, equal `structure` where templates share
    most words."""
    verdict_form: ClassVar[str | None] = r"((.|\n)*\n)?Verdict: (correct|wrong)"
    """What the judge's text looks like that `verdict` can read, as a regular expression; an engine that can holds the judge
    to it. None leaves it free."""

    def items(self, split: Split, count: int, seed: int) -> list[Item]:
        """Up to `count` problems of a split, spread over its levels; equal arguments give equal items.

        The splits are disjoint whatever the counts and seeds are, and a larger count gives a superset: that is how
        the screen of prompts knows the evaluation items, which always have seed 0.
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
        problems = "\n\n".join(f"Problem {i}:\n{e}" for i, e in enumerate(examples, 1))
        task = "Write one new problem of the same kind and difficulty. Give only the problem."
        return [{"role": "user", "content": f"{problems}\n\n{task}"}]

    def solve(self, problem: str) -> list[Message]:
        """Solver: answer the problem."""
        return [{"role": "user", "content": problem}]

    def judge(self, problem: str, response: str) -> list[Message]:
        """Judge: is the response right? `verdict` reads what comes back."""
        task = "Is this answer correct? Check it step by step, then end with 'Verdict: correct' or 'Verdict: wrong'."
        return [{"role": "user", "content": f"{_proposal(problem, response)}\n\n{task}"}]

    def criticise(self, problem: str, response: str) -> list[Message]:
        """Critic: go through the steps, name the first wrong one, close with a verdict. `critic_verdict` reads it."""
        task = (
            "Go through the answer step by step. For each step say 'Step k: correct' or 'Step k: wrong' and why. "
            "End with 'Verdict: correct' or 'Verdict: wrong'."
        )
        return [{"role": "user", "content": f"{_proposal(problem, response)}\n\n{task}"}]

    def refine(self, problem: str, response: str, critique: str) -> list[Message]:
        """Refiner: answer again after reading the critique."""
        task = "Using the critique, write the corrected answer in full."
        text = f"{_proposal(problem, response)}\n\nA critique of it:\n{critique}\n\n{task}"
        return [{"role": "user", "content": text}]

    def verdict(self, text: str) -> Verdict:
        """Reads what the judge wrote, by its closing line; a text that has none is an error, never a fail."""
        return read_verdict(text)

    def critic_verdict(self, text: str) -> Verdict:
        """Reads what the critic wrote; as `verdict`, unless a domain asks its judge for another form, such as a score."""
        return self.verdict(text)


def _proposal(problem: str, response: str) -> str:
    return f"{shield(problem)}\n\nA proposed answer:\n{shield(response)}"
