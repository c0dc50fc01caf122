"""How well the round's judges tell right answers from wrong ones: each judges the gold set, as it judges a round."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from math import sqrt
from typing import Any, ClassVar

from pydantic import NonNegativeInt

from tasks.core import frames, tables
from tasks.core.ids import content_id
from tasks.core.judging import Judging
from tasks.core.stage import Ability, Result
from tasks.domains import Item
from tasks.evaluate import EvaluateCase, Evaluation
from tasks.evaluate._gold import auditable, judged
from tasks.evaluate._items import Row, eval_items, item_id
from tasks.evaluate._measures import Measure, Z, at_levels, auroc, measures_frame, proportion

EDGES = [n / 10 for n in range(1, 11)]
"""Upper ends of the bins of the calibration error."""


class Calibration(Evaluation):
    """The round's own judges on gold answers, with the model in the parent's place.

    Measures of each judge that can judge a single response: `<judge>_balanced_accuracy`, `<judge>_auroc`,
    `<judge>_calibration_error` (of scores in [0, 1]), `<judge>_errors` (what it could not judge; that counts in no
    accuracy). A judge that asks a model which the evaluation cannot open is left out with a warning, and the metric
    `skipped/<judge>` says so.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset({"samples"})
    example: ClassVar[dict[str, Any]] = {"count": 14}

    count: NonNegativeInt = 140
    """Gold answers to judge, spread over the levels."""

    def __call__(self, case: EvaluateCase) -> Result:
        """Rows of `audits` by judge, and their measures."""
        judges, skipped = auditable(case)
        items = [i for i in eval_items(case.domain, "gold", self.count) if i.response is not None]
        rows = audits(judges, items, case) if judges and items else []
        measures = [m for name in judges for m in judge_measures(name, [r for r in rows if r["judge"] == name])]
        outputs = {"audits": frames.frame(tables.audits, rows), "measures": measures_frame(measures)}
        warnings = tuple(f"judge {n} was not calibrated: no model {', '.join(m)} here" for n, m in skipped.items())
        return Result(outputs, {f"skipped/{name}": 1.0 for name in skipped}, warnings=warnings)


def audits(judges: dict[str, Judging], items: Sequence[Item], case: EvaluateCase) -> list[Row]:
    """Rows of `audits`: what each judge says of the gold answers, beside what is true of them."""
    digest, opinions = judged(judges, items, case)
    return [audit(digest, name, item, opinion) for name, item, opinion in opinions]


def audit(digest: str, judge: str, item: Item, opinion: Row) -> Row:
    """A row of `audits`: an opinion of a gold answer, beside what is true of it."""
    identity = content_id("audit", digest, judge, item.problem, item.response)
    truth = {"truth": item.wrong_step is None, "true_step": item.wrong_step}
    columns = {column: opinion[column] for column in ("score", "verdict", "error")}
    return {"id": identity, "item": item_id(item.problem), "level": item.level, "judge": judge, **truth, **columns}


def judge_measures(name: str, rows: Sequence[Row]) -> list[Measure]:
    """Balanced accuracy, AUROC, calibration error and share of errors of a judge, by level."""
    verdicts = [r for r in rows if r["verdict"]]
    scores = [r for r in rows if r["score"] is not None]
    measures = at_levels(verdicts, _over(balanced_accuracy, f"{name}_balanced_accuracy"))
    measures += at_levels(scores, _over(auroc, f"{name}_auroc"))
    if all(0 <= r["score"] <= 1 for r in scores):
        measures += at_levels(scores, _over(calibration_error, f"{name}_calibration_error"))
    return measures + at_levels(rows, lambda g, n: proportion(f"{name}_errors", n, [bool(r["error"]) for r in g]))


def _over(measure: Callable[..., Measure | None], name: str) -> Callable[[Sequence[Row], int | None], Measure | None]:
    return lambda rows, level: measure(name, level, rows)


def balanced_accuracy(name: str, level: int | None, rows: Sequence[Row]) -> Measure | None:
    """Mean of the shares of right answers passed and of wrong answers failed; 0.5 is chance whatever the mixture.

    The normal interval of a mean of two independent proportions. None where one of the two kinds is missing.
    """
    passed = [r["verdict"] == "pass" for r in rows if r["truth"]]
    failed = [r["verdict"] == "fail" for r in rows if not r["truth"]]
    if not passed or not failed:
        return None
    shares = [(sum(kind) / len(kind), len(kind)) for kind in (passed, failed)]
    value = sum(p for p, _ in shares) / 2
    half = Z * sqrt(sum(p * (1 - p) / n for p, n in shares)) / 2
    return Measure(name, level, value, max(0.0, value - half), min(1.0, value + half), len(rows))


def calibration_error(name: str, level: int | None, rows: Sequence[Row]) -> Measure | None:
    """Expected calibration error Σ_b n_b/n · |share of right answers in b − mean score in b| over ten bins of equal width,
    (0, 0.1] … (0.9, 1], 0 in the first (Guo et al. 2017, arXiv:1706.04599), a score being the probability that the answer
    is right. It has no interval: its estimate is biased upwards.
    """
    bins: dict[int, list[Row]] = {}
    for row in rows:
        bins.setdefault(bisect_left(EDGES, row["score"]), []).append(row)
    gaps = [abs(sum(r["truth"] - r["score"] for r in b)) for b in bins.values()]
    return Measure(name, level, sum(gaps) / len(rows), count=len(rows)) if rows else None
