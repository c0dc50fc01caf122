"""Domains: the problems, how they are put to a model in each role, and how an answer is verified.

A domain is one file beside this one, loaded by its name, with one `Domain` subclass. What a user must write is `items`,
`answer` and `verify`; the roles' prompts have plain-language defaults that any chat model follows.
"""

import random
from dataclasses import dataclass
from typing import ClassVar, Literal

from tasks.core.verdicts import Form, Pass, Verdict, shield
from tasks.domains._roles import FALSE, PREFERENCE, TRUE, Message, Roles

__all__ = [
    "FALSE",
    "ILL_POSED",
    "PREFERENCE",
    "TRUE",
    "Domain",
    "Item",
    "Message",
    "Roles",
    "Split",
    "Verdict",
    "shield",
]

Split = Literal["seeds", "train", "validation", "heldout", "gold"]
"""The disjoint sets of a domain: `seeds` start the pool of prompts, `train` may be learnt from by labelled baselines,
`validation` is for tuning, `heldout` for reporting, `gold` has answers whose correctness is known, to judge judges."""

ILL_POSED = 1000
"""How many of a domain's ill-posed problems no prompt may equal or overlap, and the most that an evaluation may use."""


@dataclass(frozen=True, slots=True)
class Item:
    """A problem of a domain. A `gold` item also carries a response and where that response first goes wrong."""

    problem: str
    """Its text, as the solver sees it."""
    level: int | None = None
    """Difficulty, 1 the easiest; None where the domain has no levels."""
    reference: str | None = None
    """The right final answer, where one is known without running a verifier."""
    response: str | None = None
    """For a gold item: an answer of known correctness."""
    wrong_step: int | None = None
    """For a gold item: number (from 1) of the first wrong step of `response`; None when it is all right."""


class Domain(Roles):
    """Problems and their verifier. Methods are pure functions of their arguments and of the domain's params.

    Files that a domain reads lie under `data/seeds`, where DVC sees their edits.
    """

    near_duplicates: ClassVar[Literal["structure", "rouge"]] = "rouge"
    """How near-duplicate problems are recognised: ROUGE-L F above 0.7 for free text, equal `structure` where templates share
    most words."""
    verdict_form: ClassVar[str | None] = Pass().regex
    """What the judge's text looks like that `verdict` can read, as a regular expression; an engine that can holds the judge
    to it. None leaves it free."""
    roles: ClassVar[tuple[str, ...]] = ()
    """Roles that `document` can write: those that an embedded model can be taught."""

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

    # What a hub's model lacks, and a domain may have

    def hint(self, problem: str, reference: str | None = None) -> str | None:
        """Help with a problem that does not give the answer away; None where the domain has none."""
        return None

    def ill_posed(self, count: int, seed: int) -> list[str]:
        """Up to `count` problems that have no answer, the same for equal arguments; a larger count gives a superset. A
        domain may have none.
        """
        return []

    def refuses(self, response: str) -> bool:
        """Whether a response says that the problem has no answer."""
        return False

    def document(
        self, rng: random.Random, role: str, level: int, noise: float, split: Split = "train"
    ) -> tuple[list[Message], str]:
        """A conversation in one of `roles` and its completion, to train an embedded model on, about a problem of the split.
        A solver slips at each step with probability `noise`.

        Raises:
            NotImplementedError: for a domain that writes none.
        """
        raise NotImplementedError

    def mark(self, role: str, prompt: str, expected: str, completion: str) -> Verdict:
        """Whether a completion does the work of a role; `prompt` and `expected` are what `document` wrote."""
        return Verdict(None, error="this domain marks no roles")

    def verdict(self, text: str) -> Verdict:
        """Reads what the judge wrote, by its closing line; a text that has none is an error, never a fail."""
        return Pass().read(text)

    def read(self, form: Form, text: str) -> Verdict:
        """Reads what a judge wrote that was asked to close with a form; as the form does, unless the domain's models close
        otherwise.
        """
        return form.read(text)

    def critic_verdict(self, text: str) -> Verdict:
        """Reads what the critic wrote; as `verdict`, unless a domain asks its judge for another form, such as a score."""
        return self.verdict(text)
