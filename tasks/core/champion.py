"""Champion: the best promoted round of a base, by paired tests that pay for the reuse of the validation set.

All rounds of a base sit one exam. Whoever takes the best of many results takes luck for progress: of twenty rounds
without any gain, one beats the base at level 0.05. So the rounds are looked at one after the other, each is tested on
the same items against the champion before it, and all tests together share one error rate (alpha spending): look
k = 1, 2, … is taken at level α_k = α·c / ((k + c − 1)(k + c)). The levels of all looks, however many follow, add up to
α, and by the union bound that is the largest chance that a round without a gain ever wins, whatever the rounds have in
common. Every round counts as a look, for its gate read the same answers. A look is spent for good, also where its
round was removed, or run again with another seed: `elect` is given the tests of the past, each of them keeps its k, and a
new test takes the next one. A gate compares a round with its parent; a branch that beats its own parent but not
the champion does not win by coming later.

c = 5 spends half of α on the first five looks and 80 % on the first twenty. It is chosen by simulation: campaigns of 20
rounds, 350 items of 8 samples, three points gained in round 1, 3 or 8 and kept by its descendants. The champion has them
in the end in 75, 70 and 56 % where item difficulties are Beta(2, 2), as the embedded base's are, and in 93, 91 and 81 %
where they are Beta(0.6, 0.5), if every second round is promoted; if a test against the parent promotes, in 72, 62 and
47 %, and 91, 83 and 71 %. There is a false champion in about 2 %. Sequences that fall from the first look on (1/k²,
1/(k(k + 1)), 1/(k·log²(k + 1))) find a gain of round 8 in 30 to 42 %, and 53 to 69 %; c = 20 finds one of round 1 in up to
15 points fewer.

The Ladder (Blum & Hardt 2015, arXiv:1502.04585) is the alternative: it shows a new best result only where it exceeds
the best so far by a step. It holds for more looks than can be tested, but its step is a bound for any data, wider than
what a paired test on 350 items needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

SPREAD = 5
"""c: the looks over which the first half of α is spent."""
DIGITS = 12
"""Decimals of a difference of rates: equal ones must be ties, which sums of grades miss."""


Test = tuple[str, str, str, str]
"""What was compared: name and digest of the round, name and digest of the champion before it."""


@dataclass(frozen=True)
class Candidate:
    """A base or an evaluated round, with how well it answered."""

    name: str
    promoted: bool
    """By its gates. Without meaning for a base."""
    rates: pl.DataFrame | None = None
    """None where `compare` of `elect` has them. item, rate: mean score of each item's answers, in [0, 1], null without one. An optional third column `unscored` is the
    share of its answers that have no score: the engine failed, or nobody could check or grade them."""
    digest: str = ""
    """Of the answers: the same round that is run again with other answers is another test."""


@dataclass(frozen=True)
class Compared:
    """A paired test of a round against a champion."""

    items: int
    """Answered by both."""
    delta: float
    """Mean difference of the rates; 0 without items."""
    p: float
    """One-sided, of the round being no better; 1 without items."""


@dataclass(frozen=True)
class Look:
    """A round's test against the champion before it."""

    name: str
    against: str
    items: int
    """Answered by both."""
    delta: float
    """Mean difference of the rates; 0 without items."""
    p: float
    """One-sided, of the round being no better; 1 without items."""
    alpha: float
    """Level of this look, which p must not exceed."""
    won: bool
    reason: str
    test: Test


@dataclass(frozen=True)
class Election:
    """The champion of a base, and the tests that elected it."""

    champion: str
    looks: tuple[Look, ...]
    """One for each round, in the order in which they were looked at."""
    earlier: int = 0
    """Looks of the past that were at other rounds, other answers or against another champion, and that are paid for."""


def compare(champion: Candidate, candidate: Candidate) -> Compared:
    """Tests a round against the champion before it on the items that both answered.

    Raises:
        ValueError: where one of them has no rates.
    """
    if champion.rates is None or candidate.rates is None:
        raise ValueError(f"{champion.name} and {candidate.name} need rates to be compared")
    rates = paired(champion.rates, candidate.rates)
    delta = float((rates["child"] - rates["parent"]).mean() or 0.0)  # type: ignore[arg-type]
    return Compared(len(rates), delta, signed_rank(rates, "greater"))


def elect(
    base: str,
    candidates: Sequence[Candidate],
    alpha: float = 0.05,
    earlier: Sequence[Test] = (),
    compare: Callable[[Candidate, Candidate], Compared] = compare,
) -> Election:
    """The champion among a base and its evaluated rounds; the base where no round wins.

    Args:
        base: Name of the base, which must be among the candidates.
        candidates: In an order that never changes, parents before their children (that of params.yaml). A round counts
            as a look whether it was promoted or not, but only a promoted one can win.
        alpha: Chance that any round without a gain ever wins.
        earlier: Every test of the past, in the order in which they were first made: the k-th of them is look k.
        compare: Tests a candidate (the second) against the champion before it.

    Raises:
        ValueError: when the base is not among the candidates.
    """
    champion = next((c for c in candidates if c.name == base), None)
    if champion is None:
        raise ValueError(f"the base {base!r} is not among the candidates {[c.name for c in candidates]}")
    numbers = {test: k for k, test in enumerate(dict.fromkeys(earlier), start=1)}
    past, looks = set(numbers), []
    for candidate in (c for c in candidates if c.name != base):
        test = (candidate.name, candidate.digest, champion.name, champion.digest)
        k = numbers.setdefault(test, len(numbers) + 1)
        looks.append(_look(candidate, champion, level(k, alpha), test, compare(champion, candidate)))
        champion = candidate if looks[-1].won else champion
    return Election(champion.name, tuple(looks), len(past - {look.test for look in looks}))


def level(k: int, alpha: float = 0.05) -> float:
    """α_k of the k-th look, k = 1, 2, …; they add up to α over all k, to α·n / (n + c) over the first n."""
    return alpha * SPREAD / ((k + SPREAD - 1) * (k + SPREAD))


def _look(candidate: Candidate, champion: Candidate, alpha: float, test: Test, result: Compared) -> Look:
    items, delta, p = result.items, result.delta, result.p
    obstacle = _obstacle(candidate, champion, result, by_chance=p > alpha)
    place = "above" if p > alpha else "within"
    gain = f"{points(delta)} against {champion.name}, p {p:.2g} {place} this look's level, {alpha:.2g}"
    reason = f"{obstacle}; {gain}" if obstacle else gain
    return Look(candidate.name, champion.name, items, delta, p, alpha, obstacle is None, reason, test)


def _obstacle(candidate: Candidate, champion: Candidate, result: Compared, by_chance: bool) -> str | None:
    if not candidate.promoted:
        return "not promoted by its gates"
    if not result.items:
        return f"no item was answered by both {candidate.name} and {champion.name}"
    if result.delta <= 0:  # ranks can say better where the mean says worse
        return "no gain"
    return "the gain may be chance" if by_chance else None


def points(delta: float) -> str:
    """A difference of rates in words: `+1.2 points`; a small one has more digits, and none has no sign."""
    value = 100 * delta
    tenths, rounded = f"{value:+.1f}", f"{value:+.2g}"
    return f"{tenths if abs(value) >= 0.05 else rounded if value else '0.0'} points"


def paired(parent: pl.DataFrame, child: pl.DataFrame) -> pl.DataFrame:
    """item, parent, child: the rates of the items that both have, by item. Frames are as `Candidate.rates`.

    Scores are missing on hard items more often than on easy ones. An answer of the child without a score counts as wrong,
    and one of the parent is left out, so that neither an engine that fails nor a text that cannot be graded makes a child
    look better.
    """
    import polars as pl

    unscored = pl.col("unscored") if "unscored" in child.columns else pl.lit(0.0)
    counted = child.lazy().select("item", child=pl.col("rate").fill_null(0.0) * (1 - unscored))
    both = parent.lazy().select("item", parent="rate").join(counted, on="item").drop_nulls().sort("item")
    return both.collect()


def signed_rank(rates: pl.DataFrame, alternative: str) -> float:
    """p of Wilcoxon's signed-rank test (1945) that `child` is not `alternative` than `parent`; unchanged items are left
    out; 1 when no item changed.
    """
    difference = (rates["child"] - rates["parent"]).round(DIGITS).to_numpy()
    if not difference.any():
        return 1.0
    from scipy.stats import wilcoxon

    return float(wilcoxon(difference, alternative=alternative).pvalue)
