"""How much likelier an answer is after its question than without it."""

from math import exp, isnan
from statistics import fmean
from typing import ClassVar

import polars as pl

from tasks.core.judging import JudgeCase, Judging, Opinion, failure
from tasks.core.stage import Ability
from tasks.engines import Messages, Scored
from tasks.judge._likelihood import after_prompts, log_probabilities, prompt_chats


class SelfAligned(Judging):
    """The relative fall of the response's perplexity when it is conditioned on the query: the self-aligned reward (Han
    et al. 2025, arXiv:2509.05489).

        (ppl(y) − ppl(y | x)) / ppl(y), with ppl(y | x) = exp(−1/n Σ log p(y_t | x, y_<t)).

    Our reading: ppl(y) is that after the prompt's own chat with every user turn emptied, so that the chat template, and
    a system message, which says nothing of the query, are the same on both sides; and the score is clipped to [−1, 1],
    which takes the sting out of answers that the query makes far less likely (above 1 it cannot be). The end token
    counts as one of the n where the model ended the response itself.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset({"scores"})
    auditable: ClassVar[bool] = True

    model: str = "parent"
    """Name of the model whose perplexities these are: an ancestor's, or one of the roster."""

    def opened_models(self) -> frozenset[str]:
        """The one `model`."""
        return frozenset({self.model})

    def per_prompt_only(self) -> bool:
        """Always."""
        return True

    def __call__(self, case: JudgeCase) -> pl.LazyFrame:
        """Scores in [−1, 1], 0 where the query changes nothing; only ranks, so no verdict."""
        return after_prompts(case, lambda rows: self._opinions(rows, case))

    def _opinions(self, rows: pl.DataFrame, case: JudgeCase) -> list[Opinion]:
        chats = prompt_chats(rows)
        # all in one call: a response that several prompts have is scored alone once
        scores = log_probabilities(case, self.model, [*chats, *map(emptied, chats)], pl.concat([rows, rows]))
        pairs = zip(scores[: len(rows)], scores[len(rows) :], strict=True)
        return [relative_fall(after, alone) for after, alone in pairs]


def emptied(chat: Messages) -> Messages:
    """The chat without what the user says in it."""
    return tuple([(role, "" if role == "user" else content) for role, content in chat])


def relative_fall(after: Scored, alone: Scored) -> Opinion:
    """(ppl(y) − ppl(y | x)) / ppl(y), at least −1."""
    if error := after.error or alone.error or _empty(after, alone):
        return failure(error)
    log_ratio = fmean(alone.logprobs) - fmean(after.logprobs)
    if isnan(log_ratio):
        return failure("a log-probability is not finite")  # min and max would take it for the worst score
    ratio = exp(min(log_ratio, 1.0))  # ppl(y | x) / ppl(y); above 2 it is clipped anyhow, and exp might overflow
    return {"score": max(-1.0, 1 - ratio), "verdict": None, "rationale": None, "error": None}


def _empty(*scores: Scored) -> str | None:
    return None if all(s.logprobs for s in scores) else "the response has no tokens"
