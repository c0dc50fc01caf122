"""How well judges agree with people: each judge of a round on the answers that people labelled."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import sqrt
from pathlib import Path
from typing import Any

import duckdb

from tasks.core import labels
from tasks.core.errors import StoreError
from tasks.core.labels import Label
from tasks.evaluate._measures import Measure, Z, proportion, wilson
from tasks.evaluate.judging import judge_measures
from tasks.views import _statements
from tasks.views.catalog import connect

NAMES = ("agreement", "balanced_accuracy", "auroc", "calibration_error", "errors")
"""Measures of a judge, in the order in which they are shown."""
WORDS = {"agreement": "agreement", "auroc": "AUROC"}
"""Those that a table of rounds has room for, in its words."""


@dataclass(frozen=True)
class ByLabels:
    """A judge of a round, measured by people's labels."""

    round: str
    judge: str
    reward: bool
    """Whether its score is the round's reward."""
    right: int
    """Answers that people call right, among those with a row of this judge."""
    wrong: int
    measures: Mapping[str, Measure] = field(default_factory=dict)
    """By the names of `NAMES`; what could not be measured is missing: agreement and balanced accuracy where it gives no
    verdicts, AUROC and balanced accuracy while people labelled only right or only wrong answers."""


def truths(con: duckdb.DuckDBPyConnection, said: Iterable[Label]) -> dict[tuple[str, str], bool]:
    """(round, id of a response) → whether most people who labelled its text call it right. Left out: rows on which people are
    divided evenly, rows that are gone, and rows that were made again with another text.
    """
    said = list(said)
    votes = {digest: [e.label == "right" for e in people.values()] for digest, people in labels.of_texts(said).items()}
    verdicts = {digest: sum(v) * 2 > len(v) for digest, v in votes.items() if sum(v) * 2 != len(v)}
    ids = sorted({e.id for e in said if e.source == "responses"})
    if not ids or not verdicts:
        return {}
    prompts = sorted({e.prompt_id for e in said if e.prompt_id})
    rows = con.execute(
        f"""select r.round, r.id, p.problem, r.response from responses r
            left join prompts p on p.round = r.round and p.id = r.prompt_id and {_one_of("p.id", prompts)}
            where {_one_of("r.prompt_id", prompts)} and r.id in (select unnest($ids))""",
        {"ids": ids},
    ).fetchall()
    digests = {(round, id): labels.text_digest(problem, response) for round, id, problem, response in rows}
    return {key: verdicts[digest] for key, digest in digests.items() if digest in verdicts}


def by_labels(con: duckdb.DuckDBPyConnection, said: Iterable[Label]) -> list[ByLabels]:
    """Every judge of every round that has labelled answers, the reward's first: the share of its verdicts that are people's
    (Wilson's interval), balanced accuracy, AUROC and calibration error of its scores, and the share that it could not judge. The
    intervals hold for few labels, too. `con` has the SQL views over all rounds.
    """
    said = list(said)
    truth = truths(con, said)
    if not truth:
        return []
    prompts = sorted({e.prompt_id for e in said if e.prompt_id})
    found = con.execute(
        f"""select round, member, reward, response_id, score, verdict, error from judgments
            where {_one_of("prompt_id", prompts)} and response_id in (select unnest($ids)) order by all""",
        {"ids": sorted({id for _, id in truth})},
    ).fetchall()
    groups: dict[tuple[str, bool, str], list[dict[str, Any]]] = {}
    for round, judge, reward, id, score, verdict, error in found:
        if (round, id) in truth:
            row = {"truth": truth[round, id], "level": None, "score": score, "verdict": verdict, "error": error}
            groups.setdefault((round, not reward, judge), []).append(row)
    return [_measured(round, judge, not other, rows) for (round, other, judge), rows in sorted(groups.items())]


def by_round(root: Path) -> dict[str, dict[str, Measure]]:
    """What labels say of the judges of each round, in the words of a table: round → `votes: agreement` → measure. Empty without
    labels, and where a stored file is damaged, which a report says anyway.
    """
    said = labels.read(root / labels.FOLDER)
    found: dict[str, dict[str, Measure]] = {}
    with suppress(StoreError):
        for each in by_labels(connect(root), said) if said else ():
            named = {f"{each.judge}: {WORDS[n]}": each.measures[n] for n in WORDS if n in each.measures}
            found.setdefault(each.round, {}).update(named)
    return found


def _measured(round: str, judge: str, reward: bool, rows: list[dict[str, Any]]) -> ByLabels:
    agreement = proportion("agreement", None, [(r["verdict"] == "pass") == r["truth"] for r in rows if r["verdict"]])
    measures = {m.name.removeprefix(f"{judge}_"): m for m in judge_measures(judge, rows)}
    measures |= {"agreement": agreement} if agreement else {}
    if "balanced_accuracy" in measures:
        passed = [r["verdict"] == "pass" for r in rows if r["truth"] and r["verdict"]]
        failed = [r["verdict"] == "fail" for r in rows if not r["truth"] and r["verdict"]]
        low, high = balanced_interval(sum(passed), len(passed), sum(failed), len(failed))
        measures["balanced_accuracy"] = replace(measures["balanced_accuracy"], low=low, high=high)
    if "auroc" in measures:
        kinds = [r["truth"] for r in rows if r["score"] is not None]
        low, high = auroc_interval(measures["auroc"].value, sum(kinds), len(kinds) - sum(kinds))
        measures["auroc"] = replace(measures["auroc"], low=low, high=high)
    right = sum(r["truth"] for r in rows)
    return ByLabels(round, judge, reward, right, len(rows) - right, measures)


def balanced_interval(hits_a: int, count_a: int, hits_b: int, count_b: int) -> tuple[float, float]:
    """The 95 % interval of the mean of two independent proportions, from the Wilson interval of each (MOVER: Zou & Donner 2008,
    Statistics in Medicine 27): a ± ½ √(Σ (p − bound)²). Unlike the normal one it has a width where both are 1.
    """
    middle, below, above = 0.0, 0.0, 0.0
    for hits, count in ((hits_a, count_a), (hits_b, count_b)):
        share, (low, high) = hits / count, wilson(hits, count)
        middle, below, above = middle + share / 2, below + (share - low) ** 2, above + (high - share) ** 2
    return max(0.0, middle - sqrt(below) / 2), min(1.0, middle + sqrt(above) / 2)


def auroc_interval(value: float, positives: int, negatives: int) -> tuple[float, float]:
    """The 95 % interval of an AUROC after Newcombe (2006, Statistics in Medicine 25, part 2, method 5), as we read it: those θ
    with (θ − A)² ≤ z² θ(1 − θ)(1 + k(1 − θ)/(2 − θ) + kθ/(1 + θ)) / (mn), k = (m + n)/2 − 1, m positives and n negatives.
    The variance is taken at θ and not at the estimate, so few labels have a wide interval even where A is 1.
    """
    k = (positives + negatives) / 2 - 1

    def excess(theta: float) -> float:
        spread = theta * (1 - theta) * (1 + k * (1 - theta) / (2 - theta) + k * theta / (1 + theta))
        return (theta - value) ** 2 - Z**2 * spread / (positives * negatives)

    return _crossing(excess, 0.0, value), _crossing(excess, 1.0, value)


def _crossing(excess: Callable[[float], float], outside: float, inside: float) -> float:
    """Where a function that is positive outside and not positive inside changes its sign, by bisection."""
    if excess(outside) <= 0:
        return outside
    for _ in range(60):
        middle = (outside + inside) / 2
        outside, inside = (middle, inside) if excess(middle) > 0 else (outside, middle)
    return inside


def _one_of(column: str, ids: list[str]) -> str:
    """That a column is one of some ids, written out: DuckDB then reads only the parts of a sorted table that may have them."""
    return f"{column} in ({', '.join(map(_statements.quoted, ids))})" if ids else "true"
