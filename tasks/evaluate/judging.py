"""How well the round's judges tell right answers from wrong ones: each judges the gold set, as it judges a round."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from math import sqrt
from statistics import fmean
from typing import Any, ClassVar

from pydantic import NonNegativeInt

from tasks.core import frames, tables
from tasks.core.ids import content_id, member_seed
from tasks.core.judging import JudgeCase, Judging, finite
from tasks.core.stage import Ability, Result
from tasks.domains import Domain, Item
from tasks.engines import Policy, Scored, turns
from tasks.evaluate import EvaluateCase, Evaluation
from tasks.evaluate._items import Row, eval_items, item_id
from tasks.evaluate._measures import Measure, Z, at_levels, measures_frame, proportion

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
        missing = {name: missing_models(judge, case) for name, judge in case.judges.items() if judge.auditable}
        judges = {name: case.judges[name] for name in sorted(missing) if not missing[name]}
        items = [i for i in eval_items(case.domain, "gold", self.count) if i.response is not None]
        rows = audits(judges, items, case) if judges and items else []
        measures = [m for name in judges for m in judge_measures(name, [r for r in rows if r["judge"] == name])]
        outputs = {"audits": frames.frame(tables.audits, rows), "measures": measures_frame(measures)}
        skipped = {name: names for name, names in missing.items() if names}
        warnings = tuple(f"judge {n} was not calibrated: no model {', '.join(m)} here" for n, m in skipped.items())
        return Result(outputs, {f"skipped/{name}": 1.0 for name in skipped}, warnings=warnings)


def missing_models(judge: Judging, case: EvaluateCase) -> list[str]:
    """Models that a judge asks and the evaluation cannot open; the evaluated model stands in for the parent."""
    return sorted(judge.opened_models() - {"parent"} - case.models.names)


def audits(judges: dict[str, Judging], items: Sequence[Item], case: EvaluateCase) -> list[Row]:
    """Rows of `audits`: what each judge says of the gold answers, beside what is true of them."""
    with case.open() as policy:
        digest, logprobs = policy.digest, mean_logprobs(policy, items, case)
    responses = [gold_response(item, *mean, case.domain) for item, mean in zip(items, logprobs, strict=True)]
    prompts = [gold_prompt(item, case.domain) for item in items]
    gold = JudgeCase(
        frames.frame(tables.prompts, prompts), frames.frame(tables.responses, responses), case.models, case.domain,
        case.seed, model="model",
    )  # fmt: skip
    by_id = {row["id"]: item for row, item in zip(responses, items, strict=True)}
    rows = [(name, row) for name in by_model(judges) for row in opinions(name, judges[name], gold)]
    return [audit(digest, name, by_id[row["response_id"]], row) for name, row in rows]


def by_model(judges: dict[str, Judging]) -> list[str]:
    """Judges that ask the evaluated model alone come first: it is loaded once."""
    return sorted(judges, key=lambda name: (bool(judges[name].opened_models() - {"parent"}), name))


def mean_logprobs(policy: Policy, items: Sequence[Item], case: EvaluateCase) -> list[tuple[float | None, int | None]]:
    """Mean log-probability per token of each gold answer after its problem, the end token included as it is of a sampled
    one, and the number of tokens; None where the engine cannot score.
    """
    if not case.models.engine("model").scores:
        return [(None, None)] * len(items)
    chats = [turns(case.domain.solve(i.problem)) for i in items]
    scores = dict(policy.score(chats, [i.response or "" for i in items], closed=True))
    return [_mean(scores[n]) for n in range(len(items))]


def _mean(scored: Scored) -> tuple[float | None, int | None]:
    if scored.error or not scored.logprobs:
        return None, None
    return fmean(scored.logprobs), len(scored.logprobs)


def gold_prompt(item: Item, domain: Domain) -> Row:
    """A gold item's problem as a row of `prompts`."""
    prompt = {"id": item_id(item.problem), "problem": item.problem, "prompt": domain.solve(item.problem)}
    return prompt | {"level": item.level, "reference": item.reference}


def gold_response(item: Item, mean_logprob: float | None, tokens: int | None, domain: Domain) -> Row:
    """A gold item's answer as a row of `responses`."""
    text = item.response or ""
    row = {"id": content_id("gold", item.problem, text), "prompt_id": item_id(item.problem), "sample": 0}
    row |= {"response": text, "answer": domain.answer(text), "finish_reason": "stop"}
    return row | {"mean_logprob": mean_logprob, "tokens": tokens}


def opinions(name: str, judge: Judging, gold: JudgeCase) -> Iterable[Row]:
    """A judge's rows, drawn as in a round."""
    seed = member_seed(gold.seed, name, judge.strategy_name())
    return finite(judge(replace(gold, seed=seed))).collect().iter_rows(named=True)


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


def auroc(name: str, level: int | None, rows: Sequence[Row]) -> Measure | None:
    """Chance that a right answer scores above a wrong one, ties counting half. None where one of the two kinds is missing.

    The interval is the normal one with the variance of Hanley and McNeil (1982), as we read it:
    [A(1 − A) + (m − 1)(A/(2 − A) − A²) + (n − 1)(2A²/(1 + A) − A²)] / (mn) for m right and n wrong answers.
    """
    from sklearn.metrics import roc_auc_score

    truth = [r["truth"] for r in rows]
    positives, negatives = sum(truth), len(truth) - sum(truth)
    if not positives or not negatives:
        return None
    a = float(roc_auc_score(truth, [r["score"] for r in rows]))
    variance = a * (1 - a) + (positives - 1) * (a / (2 - a) - a * a) + (negatives - 1) * (2 * a * a / (1 + a) - a * a)
    half = Z * sqrt(max(0.0, variance) / (positives * negatives))
    return Measure(name, level, a, max(0.0, a - half), min(1.0, a + half), len(truth))


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
