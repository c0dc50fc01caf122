"""The champion against hand-worked elections and simulated campaigns."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from scipy.stats import wilcoxon

from tasks.core.champion import Candidate, elect, level, paired, points, signed_rank

ITEMS, SAMPLES, ROUNDS, CAMPAIGNS = 350, 8, 20, 200
NAMES = pl.Series("item", [f"i{n:03}" for n in range(ITEMS)])


def candidate(name, rates, promoted=True, **columns):
    items = [f"i{n}" for n in range(len(rates))]
    return Candidate(
        name,
        promoted,
        pl.DataFrame(
            {"item": items, "rate": rates, **columns}, schema_overrides={"item": pl.String, "rate": pl.Float64}
        ),
    )


BASE = candidate("r0", [0.25] * 40)


# Elections by hand


def test_a_clear_gain_wins_and_its_look_says_by_what():
    election = elect("r0", [BASE, candidate("r1", [0.5] * 40)])
    assert election.champion == "r1"
    (look,) = election.looks
    assert (look.name, look.against, look.items, look.delta, look.won) == ("r1", "r0", 40, 0.25, True)
    assert look.p == wilcoxon([0.25] * 40, alternative="greater").pvalue < look.alpha
    assert look.alpha == pytest.approx(0.05 * 5 / (5 * 6))


@pytest.mark.parametrize(
    ("delta", "text"),
    [
        (0.248, "+24.8 points"),
        (-0.01, "-1.0 points"),
        (0.0, "0.0 points"),
        (-0.0, "0.0 points"),
        (0.0003, "+0.03 points"),
    ],
)
def test_a_difference_is_never_shown_as_a_signed_zero(delta, text):
    assert points(delta) == text


def test_without_rounds_the_base_is_the_champion():
    assert elect("r0", [BASE]) == elect("r0", [BASE])
    assert elect("r0", [BASE]).champion == "r0"
    assert elect("r0", [BASE]).looks == ()


def test_a_base_that_is_no_candidate_is_an_error():
    with pytest.raises(ValueError, match="r9"):
        elect("r9", [BASE])


def test_only_a_promoted_round_wins_but_every_round_is_a_look():
    refused, later = candidate("r1", [0.5] * 40, promoted=False), candidate("r2", [0.5] * 40)
    election = elect("r0", [BASE, refused, later])
    assert election.champion == "r2"
    assert [look.won for look in election.looks] == [False, True]
    assert [look.alpha for look in election.looks] == [level(1), level(2)]
    assert election.looks[0].p == election.looks[1].p  # it was tested, too
    assert election.looks[1].against == "r0"


def test_a_branch_that_is_worse_than_an_earlier_champion_does_not_win_by_coming_later():
    election = elect("r0", [BASE, candidate("r1", [0.75] * 40), candidate("r2", [0.5] * 40)])
    assert election.champion == "r1"
    assert (election.looks[1].against, election.looks[1].delta) == ("r1", -0.25)
    assert elect("r0", [BASE, candidate("r2", [0.5] * 40)]).champion == "r2"  # alone it would


def test_a_gain_that_an_early_look_believes_a_late_one_does_not():
    """A sign test's worth of evidence: 9 of 9 items better is p = 2⁻⁹ = 0.00195."""
    better = candidate("late", [0.5] * 9 + [0.25] * 31)
    p = signed_rank(paired(BASE.rates, better.rates), "greater")
    assert level(20) < p < level(1)
    idle = [candidate(f"r{n}", [0.25] * 40) for n in range(1, 20)]
    assert elect("r0", [BASE, better]).champion == "late"
    assert elect("r0", [BASE, *idle, better]).champion == "r0"


# Looks of the past


def test_a_round_that_is_gone_or_was_run_again_has_spent_its_look():
    """A round of luck is tried again with other seeds: each try is a look, and none of them is given back."""
    lucky = candidate("r1", [0.5] * 9 + [0.25] * 31)
    tries = [("r1", f"seed {n}", "r0", "") for n in range(19)]
    election = elect("r0", [BASE, lucky], earlier=[*tries, *tries])
    assert (election.champion, election.looks[0].alpha, election.earlier) == ("r0", level(20), 19)
    assert elect("r0", [BASE, lucky]).champion == "r1"


def test_a_test_keeps_its_level_whatever_happens_to_others():
    first, second = candidate("r1", [0.25] * 40), candidate("r2", [0.5] * 40)
    tests = [look.test for look in elect("r0", [BASE, first, second]).looks]
    assert tests == [("r1", "", "r0", ""), ("r2", "", "r0", "")]
    assert [look.alpha for look in elect("r0", [BASE, second], earlier=tests).looks] == [level(2)]
    again = replace(first, digest="another seed")
    election = elect("r0", [BASE, again, second], earlier=tests)
    assert [look.alpha for look in election.looks] == [level(3), level(2)]
    assert election.earlier == 1


def test_a_test_against_another_champion_is_another_look():
    second = candidate("r2", [0.75] * 40)
    tests = [look.test for look in elect("r0", [BASE, second]).looks]
    election = elect("r0", [BASE, candidate("r1", [0.5] * 40), second], earlier=tests)
    assert [(look.against, look.alpha) for look in election.looks] == [("r0", level(2)), ("r1", level(3))]


def test_ranks_that_say_better_where_the_mean_says_worse_do_not_win():
    worse = candidate("r1", [0.375] * 400 + [0.0] * 60)  # 400·0.125 gained, 60·0.9 lost
    election = elect("r0", [candidate("r0", [0.25] * 400 + [0.9] * 60), worse])
    assert election.looks[0].delta < 0
    assert election.looks[0].p < election.looks[0].alpha
    assert election.champion == "r0"


def test_rounds_are_compared_on_the_items_that_both_answered():
    election = elect("r0", [BASE, candidate("r1", [0.5] * 50), candidate("r2", [])])
    assert [look.items for look in election.looks] == [40, 0]
    assert (election.champion, election.looks[1].p, election.looks[1].won) == ("r1", 1.0, False)


def test_answers_without_a_score_count_as_wrong_for_the_round_and_not_for_the_champion():
    parent = pl.DataFrame({"item": ["a", "b", "c"], "rate": [0.5, None, 0.5], "unscored": [0.5, 1.0, 0.0]})
    child = pl.DataFrame(
        {"item": ["a", "b", "c", "d"], "rate": [0.5, 1.0, None, 1.0], "unscored": [0.5, 0.0, 1.0, 0.0]}
    )
    # a: half of the answers failed, so 0.5 · 0.5; b: the parent has no answer; c: all failed; d: the parent lacks it
    assert paired(parent, child).rows() == [("a", 0.5, 0.25), ("c", 0.5, 0.0)]
    unknown = pl.DataFrame({"item": ["a"], "rate": [None]}, schema_overrides={"rate": pl.Float64})
    assert paired(parent, unknown).rows() == [("a", 0.5, 0.0)]
    assert paired(unknown, parent).is_empty()


def test_a_round_whose_engine_fails_on_hard_items_does_not_win():
    easy, hard = [0.9] * 20, [0.1] * 20
    base = candidate("r0", [0.8] * 20 + [0.1] * 20)
    honest = candidate("r1", easy + hard)
    failing = candidate("r1", easy + [None] * 20, unscored=[0.0] * 20 + [1.0] * 20)
    assert elect("r0", [base, honest]).champion == "r1"
    assert elect("r0", [base, failing]).champion == "r0"


def test_equal_rates_are_ties_though_sums_of_grades_differ_in_their_last_digit():
    frame = pl.DataFrame({"parent": [0.3, 0.1, 0.7], "child": [0.1 + 0.2, 0.1, 0.7]})
    assert frame["parent"][0] != frame["child"][0]
    assert signed_rank(frame, "greater") == 1.0


def test_levels_add_up_to_alpha_and_no_further():
    spent = np.cumsum([level(k, 0.05) for k in range(1, 100_001)])
    assert spent[4] == pytest.approx(0.025)  # half over the first five
    assert spent[19] == pytest.approx(0.04)  # 20 / (20 + 5)
    assert 0.0499 < spent[-1] < 0.05


# Simulated campaigns


def gained(p, gain):
    """Chances of being right that are `gain` higher on average, most where an item is neither easy nor hard."""
    spread = p * (1 - p)
    return np.clip(p + gain * spread / spread.mean(), 0, 1)


def campaign(seed, difficulty, promote, gain=0.0, first=1):
    """The champion has the gain (or, where there is none, is not the base): one campaign of rounds.

    Each round starts from the last promoted one. From round `first` on a round has the gain; one that starts from a round
    with it has it, too.
    """
    rng = np.random.default_rng(seed)
    p = rng.beta(*difficulty, ITEMS)
    rates = {"r0": rng.binomial(SAMPLES, p) / SAMPLES}
    candidates, better, parent = [simulated("r0", rates["r0"], True)], set(), "r0"
    for n in range(1, ROUNDS + 1):
        name = f"r{n}"
        if gain and (n >= first or parent in better):
            better.add(name)
        rates[name] = rng.binomial(SAMPLES, gained(p, gain) if name in better else p) / SAMPLES
        promoted = promote(rng, rates[parent], rates[name])
        candidates.append(simulated(name, rates[name], promoted))
        parent = name if promoted else parent
    champion = elect("r0", candidates).champion
    return champion in better if gain else champion != "r0"


def simulated(name, rates, promoted):
    return Candidate(name, promoted, pl.DataFrame({"item": NAMES, "rate": rates}))


def at_random(rng, parent, child):
    return rng.random() < 0.5


def by_its_own_test(rng, parent, child):
    return signed_rank(pl.DataFrame({"parent": parent, "child": child}), "greater") < 0.05


def share(difficulty, promote, campaigns=CAMPAIGNS, **more):
    return sum(campaign(seed, difficulty, promote, **more) for seed in range(campaigns)) / campaigns


EMBEDDED, DIVIDED = (2.0, 2.0), (0.6, 0.5)
"""Of the items' chances: fitted to the embedded base's answers; and most items easy or hopeless."""


@pytest.mark.parametrize("promote", [at_random, by_its_own_test])
def test_without_any_gain_a_false_champion_is_rare(promote):
    assert share(EMBEDDED, promote) <= 0.05


def test_choosing_the_best_of_many_without_paying_would_crown_a_false_one(monkeypatch):
    """The simulation can fail: every look at the whole of alpha."""
    monkeypatch.setattr("tasks.core.champion.level", lambda k, alpha: alpha)
    assert share(EMBEDDED, at_random, campaigns=50) > 0.1


@pytest.mark.parametrize(
    ("difficulty", "promote", "power"),
    [(EMBEDDED, at_random, 0.65), (DIVIDED, at_random, 0.8), (DIVIDED, by_its_own_test, 0.75)],
)
def test_a_gain_of_three_points_is_found(difficulty, promote, power):
    assert share(difficulty, promote, gain=0.03, first=3) >= power
