"""How often an answer is preferred to the prompt's other answers."""

import re
from collections.abc import Collection, Iterable, Sequence
from statistics import fmean
from typing import ClassVar, Literal, NamedTuple

import polars as pl
from pydantic import NonNegativeFloat, PositiveInt

from tasks.core.ids import seed_of
from tasks.core.judging import JudgeCase, Opinion, failure
from tasks.core.stage import Ability
from tasks.core.verdicts import Verdict
from tasks.domains import PREFERENCE
from tasks.engines import Sampling
from tasks.judge._asking import Asking, Texts, by_prompt, verdict

COUNTS = re.compile(r"(\d+) won, (\d+) even, (\d+) lost; (\d+) changed with the order")
"""How a rationale begins."""
POINTS = {"A": 1.0, "tie": 0.5, "B": 0.0}
"""What a choice is worth to the answer that was shown first."""


class Pair(NamedTuple):
    """Two different answers to a problem, in the order in which they are shown."""

    problem: str
    first: str
    second: str

    @property
    def turned(self) -> "Pair":
        """The other order."""
        return Pair(self.problem, self.second, self.first)


class WinRate(Asking):
    """The share of pairwise comparisons that an answer wins against the prompt's other answers, a tie counting ½: the
    win rate of SPO (Swamy et al. 2024, arXiv:2401.04056). A model is the judge:

        score(y) = 1/|O| · Σ_{o ∈ O} ½ · (w(y, o) + 1 − w(o, y)),

    with O the answers that y met and w(a, b) 1, ½ or 0 where the judge, shown a before b, prefers a, neither or b.

    Our reading: equal answers are one, however often they were sampled; every pair is asked in both orders, so one
    whose orders disagree counts half for each; a pair of which either order cannot be read does not count, since what
    is left would have the judge's position bias. Without `opponents` n different answers cost n·(n − 1) comparisons.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset({"samples"})

    opponents: PositiveInt | None = None
    """Others that each answer draws to meet. A comparison counts for both, so an answer may meet more. Null has each meet
    all."""
    same: Literal["response", "answer"] = "response"
    """Samples that count as one: those of equal text, or those of an equal final answer, for which one text, drawn by seed,
    stands."""
    temperature: NonNegativeFloat = 0.0
    """0 is greedy."""
    max_tokens: PositiveInt = 256
    """Longest comparison, in tokens."""

    def __call__(self, case: JudgeCase) -> pl.LazyFrame:
        """Scores in [0, 1] that only rank, so no verdict; an answer of whose comparisons none counts, or that is the only
        one, is an error. `rationale` counts them, and those that changed with the order: the judge's position bias.
        """
        return by_prompt(case, lambda prompts: self._opinions(prompts, case), self.same)

    def _opinions(self, prompts: Sequence[Texts], case: JudgeCase) -> list[dict[str, Opinion]]:
        pairs = [self._pairs(*prompt, case.seed) for prompt in prompts]
        verdicts = self._compare(sorted(set().union(*pairs)), case)
        return [
            {text: opinion(text, of_prompt, verdicts) for text in texts}
            for (_, texts), of_prompt in zip(prompts, pairs, strict=True)
        ]

    def _pairs(self, problem: str, texts: Sequence[str], seed: int) -> set[Pair]:
        """Who meets whom. An answer draws the others by hashes of both, so that two draw each other where they can."""
        drawn: set[Pair] = set()
        for text in texts:
            matches = [Pair(problem, *sorted((text, other))) for other in texts if other != text]
            drawn.update(sorted(matches, key=lambda pair: seed_of(seed, "win_rate opponent", *pair))[: self.opponents])
        return drawn

    def _compare(self, pairs: Iterable[Pair], case: JudgeCase) -> dict[Pair, Verdict]:
        """What the judge says of each pair in each of its orders."""
        shown = [order for pair in pairs for order in (pair, pair.turned)]
        chats = [case.domain.compare(*order) for order in shown]
        sampling = Sampling(self.temperature, max_tokens=self.max_tokens, regex=PREFERENCE.regex)
        completions = self.completions(
            case, chats, sampling, [seed_of(case.seed, "win_rate", *order) for order in shown]
        )
        return {order: verdict(c, PREFERENCE, case.domain) for order, c in zip(shown, completions, strict=True)}


def opinion(text: str, pairs: Collection[Pair], verdicts: dict[Pair, Verdict]) -> Opinion:
    """The win rate of an answer over those of its pairs of which both orders can be read."""
    met = sorted(pair if pair.first == text else pair.turned for pair in pairs if text in pair[1:])
    said = [(verdicts[pair], verdicts[pair.turned]) for pair in met]
    points = [(POINTS[a.choice], 1 - POINTS[b.choice]) for a, b in said if a.choice and b.choice]
    if not points:
        return failure(next((v.error for both in said for v in both if v.error), "no other answer to compare it with"))
    shares = [fmean(both) for both in points]
    won, lost, changed = sum(s > 0.5 for s in shares), sum(s < 0.5 for s in shares), sum(a != b for a, b in points)
    counts = f"{won} won, {len(shares) - won - lost} even, {lost} lost; {changed} changed with the order"
    unread = f"; {len(met) - len(points)} could not be read" if len(points) < len(met) else ""
    return {"score": fmean(shares), "verdict": None, "rationale": counts + unread, "error": None}


def position_bias(rationales: Iterable[str]) -> float | None:
    """Share of comparisons whose choice changed with the order, from the rationales of win rates; None where there are none
    of these.
    """
    counts = [list(map(int, match.groups())) for text in rationales if (match := COUNTS.match(text))]
    comparisons = sum(won + even + lost for won, even, lost, _ in counts)
    return sum(changed for *_, changed in counts) / comparisons if comparisons else None
