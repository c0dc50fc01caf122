"""Whether an answer stays the same option when the options change places."""

from collections.abc import Sequence
from string import ascii_uppercase
from typing import ClassVar

import polars as pl
from pydantic import PositiveInt

from tasks.core.errors import ParamsError
from tasks.core.ids import seed_of
from tasks.core.judging import JudgeCase, Opinion, failure
from tasks.core.stage import Ability
from tasks.domains import Domain, Message
from tasks.domains.choices import Choices, read
from tasks.engines import Completion, Sampling
from tasks.judge._asking import Asking, Key, by_content

Again = tuple[list[Message], str]
"""The chat that asks again, and the letter by which the same option goes there."""


class Shuffled(Asking):
    """1 where the model chooses the same option again after the options were shuffled, else ½: ACRE, answer-consistent
    reinforcement learning (Huang et al. 2025, arXiv:2510.10104). It answers again after the same reasoning trace.

    Our reading: the trace is what the response says before it announces its answer (`Choices.reasoning`), and the model
    goes on writing it; where there is none, it answers the shuffled problem anew. The option that was chosen gets
    another letter. The lower score is not 0, for an answer that its trace does not carry may still be right. Whether it
    is right, on which the paper's full reward hangs too, is for the verifier or the votes to say (`require` in the
    filter).
    """

    needs: ClassVar[frozenset[Ability]] = frozenset({"samples"})

    max_tokens: PositiveInt = 64
    """Longest continuation, in tokens."""

    def __call__(self, case: JudgeCase) -> pl.LazyFrame:
        """1 or ½, neither passed nor failed. A response without an option is an error, and so is one whose second answer
        cannot be read. `rationale` is the continuation.

        Raises:
            ParamsError: for a domain without options to shuffle.
        """
        domain = case.domain
        if not isinstance(domain, Choices):
            raise ParamsError(
                f"judge.shuffled shuffles the options of multiple-choice problems, which the domain "
                f"{domain.strategy_name()!r} has not; take the domain 'choices', or leave this judge out"
            )
        return by_content(case, ["problem", "response"], lambda keys: self._opinions(keys, case, domain))

    def _opinions(self, keys: Sequence[Key], case: JudgeCase, domain: Choices) -> list[Opinion]:
        asked = {key: again(*key, domain, case.seed) for key in keys}
        chats = {key: a[0] for key, a in asked.items() if not isinstance(a, str)}
        seeds = [seed_of(case.seed, "shuffled", *key) for key in chats]
        sampling = Sampling(0.0, max_tokens=self.max_tokens)
        replies = dict(zip(chats, self.completions(case, list(chats.values()), sampling, seeds), strict=True))
        return [failure(a) if isinstance(a, str) else opinion(replies[k], a[1], domain) for k, a in asked.items()]


def again(problem: str, response: str, domain: Choices, seed: int) -> Again | str:
    """How to ask again, or why that is not possible."""
    question, first = read(problem), domain.answer(response)
    if question is None:
        return "the problem has no options that can be read"
    if first is None or first not in ascii_uppercase[: len(question.options)]:
        return "no option is chosen at the end of the response"
    shuffled, same = question.shuffled(seed_of(seed, "shuffled order", problem, first), first)
    trace = domain.reasoning(response).strip()
    turn: list[Message] = [{"role": "assistant", "content": f"{trace}\n"}] if trace else []
    return [*domain.solve(shuffled.problem), *turn], same


def opinion(reply: Completion, same: str, domain: Domain) -> Opinion:
    """1 for the same option, ½ for another."""
    second = None if reply.error else domain.answer(reply.text)
    if second is None:
        return failure(reply.error or "no option is chosen in the second answer", reply.text or None)
    return {"score": 1.0 if second == same else 0.5, "verdict": None, "rationale": reply.text, "error": None}
