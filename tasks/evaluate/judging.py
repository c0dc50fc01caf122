"""How well the model tells right answers from wrong ones, on the gold set: by its judge prompt and by likelihood."""

from collections.abc import Callable, Sequence
from math import sqrt
from typing import Any, ClassVar

from pydantic import Field, NonNegativeInt, PositiveInt

from tasks import tables
from tasks.domains import Domain, Item, Verdict
from tasks.engines import Policy, Sampling, Scored, turns
from tasks.evaluate import Measure, Z, ask, at_levels, frozen, item_id, measures_frame, proportion
from tasks.stage import Result, Strategy, content_id, seed_of

Row = dict[str, Any]
JUDGE, LIKELIHOOD = "self_judge", "logprob"
"""Who judged, in the column `judge`: named as the members of the panel of judges."""


class Judging(Strategy):
    """The model's own judge prompt on gold answers, and the mean log-probability that it gives them.

    Measures: `judge_balanced_accuracy`, `judge_auroc` (of the share of votes for "right"), `judge_errors` (verdicts
    that could not be read; they count in no accuracy), `logprob_auroc`. An engine that cannot score given text
    leaves the last one out, and the metric `skipped/logprob` says so.
    """

    needs: ClassVar = frozenset({"samples"})
    example: ClassVar[dict[str, Any]] = {"count": 14}

    count: NonNegativeInt = 140
    """Gold answers to judge, spread over the levels."""
    votes: PositiveInt = 1
    """Judgements of each answer: one is greedy, more are sampled and vote."""
    temperature: float = Field(0.7, gt=0)
    """Of several votes."""
    max_tokens: PositiveInt = 256
    """Longest judgement."""

    def __call__(self, policy: Policy, domain: Domain, seed: int, scores: bool = True) -> Result:
        """Rows of `audits` by the judges `self_judge` and `logprob`, and their measures."""
        items = [i for i in frozen(domain, "gold", self.count) if i.response is not None]
        rows = self._judged(policy, domain, items, seed)
        found = judge_measures("judge", rows)
        if scores:
            likely = likelihoods(policy, domain, items)
            rows, found = rows + likely, found + aurocs("logprob", likely)
        frames = {"audits": tables.frame(tables.audits, rows), "measures": measures_frame(found)}
        return Result(frames, {} if scores else {"skipped/logprob": 1.0})

    def _judged(self, policy: Policy, domain: Domain, items: list[Item], seed: int) -> list[Row]:
        how = Sampling(0.0 if self.votes == 1 else self.temperature, max_tokens=self.max_tokens)
        wanted = [(i, k) for i in items for k in range(self.votes)]
        seeds = [seed_of(seed, "judge", i.problem, i.response, k) for i, k in wanted] if self.votes > 1 else None
        completions = ask(policy, [domain.judge(i.problem, i.response or "") for i, _ in wanted], how, seeds)
        verdicts = [Verdict(None, error=c.error) if c.error else domain.verdict(c.text) for c in completions]
        groups = [verdicts[n * self.votes : (n + 1) * self.votes] for n in range(len(items))]
        return [audit(policy, JUDGE, item, voted(group)) for item, group in zip(items, groups, strict=True)]


def voted(verdicts: Sequence[Verdict]) -> Row:
    """The mean grade of the readable verdicts (1 for "right", 0 for "wrong"), and what most of them say; a tie, or
    grades without a verdict, say nothing.
    """
    read = [v for v in verdicts if not v.error]
    grades = [float(v.passed or 0) if v.score is None else v.score for v in read]
    if not grades:
        return {"error": verdicts[0].error}
    lead = sum(1 if v.passed else -1 for v in read if v.passed is not None)
    return {"score": sum(grades) / len(grades), "verdict": "pass" if lead > 0 else "fail" if lead < 0 else None}


def likelihoods(policy: Policy, domain: Domain, items: Sequence[Item]) -> list[Row]:
    """The mean log-probability per token of each gold answer after its problem."""
    prompts = [turns(domain.solve(i.problem)) for i in items]
    found = dict(policy.score(prompts, [i.response or "" for i in items])) if items else {}
    return [audit(policy, LIKELIHOOD, item, _mean(found[n])) for n, item in enumerate(items)]


def _mean(scored: Scored) -> Row:
    if scored.error or not scored.logprobs:
        return {"error": scored.error or "no tokens to score"}
    return {"score": sum(scored.logprobs) / len(scored.logprobs)}


def audit(policy: Policy, judge: str, item: Item, said: Row) -> Row:
    """A row of `audits`: what a judge said of a gold answer, beside what is true of it."""
    identity = content_id("audit", policy.digest, judge, item.problem, item.response)
    truth = {"truth": item.wrong_step is None, "true_step": item.wrong_step}
    return {"id": identity, "item": item_id(item.problem), "level": item.level, "judge": judge, **truth, **said}


def judge_measures(name: str, rows: Sequence[Row]) -> list[Measure]:
    """Balanced accuracy, AUROC and parse-error rate of a judge, by level."""
    said = [r for r in rows if r.get("verdict")]
    errors = at_levels(rows, lambda g, n: proportion(f"{name}_errors", n, [bool(r.get("error")) for r in g]))
    return at_levels(said, _balanced(f"{name}_balanced_accuracy")) + aurocs(f"{name}", rows) + errors


def _balanced(name: str) -> Callable[[Sequence[Row], int | None], Measure | None]:
    return lambda rows, level: balanced_accuracy(name, level, rows)


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


def aurocs(name: str, rows: Sequence[Row]) -> list[Measure]:
    """AUROC of the scores that there are, by level."""
    scored = [r for r in rows if r.get("score") is not None]
    return at_levels(scored, lambda g, n: auroc(f"{name}_auroc", n, [r["truth"] for r in g], [r["score"] for r in g]))


def auroc(name: str, level: int | None, truth: Sequence[bool], scores: Sequence[float]) -> Measure | None:
    """Chance that a right answer scores above a wrong one, ties counting half.

    The interval is the normal one with the variance of Hanley and McNeil (1982), as we read it:
    [A(1 − A) + (m − 1)(A/(2 − A) − A²) + (n − 1)(2A²/(1 + A) − A²)] / (mn) for m right and n wrong answers.
    """
    from sklearn.metrics import roc_auc_score

    right, wrong = sum(truth), len(truth) - sum(truth)
    if not right or not wrong:
        return None
    a = float(roc_auc_score(truth, scores))
    spread = a * (1 - a) + (right - 1) * (a / (2 - a) - a * a) + (wrong - 1) * (2 * a * a / (1 + a) - a * a)
    half = Z * sqrt(max(0.0, spread) / (right * wrong))
    return Measure(name, level, a, max(0.0, a - half), min(1.0, a + half), len(truth))
