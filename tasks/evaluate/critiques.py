"""How well the model criticises: whether it finds the first wrong step, and what its critique does to its answers."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import NonNegativeInt, PositiveInt

from tasks.core import frames, tables
from tasks.core.ids import content_id
from tasks.core.judging import grade
from tasks.core.stage import Ability, Result
from tasks.domains import Domain, Item
from tasks.engines import Completion, Policy, Sampling
from tasks.evaluate import EvaluateCase, Evaluation
from tasks.evaluate._items import Row, answer_row, ask, eval_items, eval_row, item_id
from tasks.evaluate._measures import Measure, at_levels, measures_frame, proportion


class Critiques(Evaluation):
    """The critic on gold answers, then self-correction: greedy answer, greedy critique of it, greedy refinement.

    A critique that passes the answer leaves it as it is. Measures: `critique_location` (first wrong step named, among
    the wrong gold answers whose critique can be read), `critic_errors`; `refined` (accuracy after self-correction),
    `critique_cl`, `critique_cs`, `critique_rss` (Yang et al. 2024, arXiv:2412.19513).
    """

    needs: ClassVar[frozenset[Ability]] = frozenset({"samples"})
    example: ClassVar[dict[str, Any]] = {"count": 14, "problems": 14}

    count: NonNegativeInt = 140
    """Gold answers to criticise, spread over the levels."""
    split: Literal["heldout", "validation"] = "heldout"
    """The frozen set for self-correction."""
    problems: NonNegativeInt = 140
    """Its problems, spread over the levels."""
    max_tokens: PositiveInt = 256
    """Longest critique, answer or refinement."""

    def __call__(self, case: EvaluateCase) -> Result:
        """Rows of `audits` by the judge `critic`, rows of `evals` in the mode `refined`, and their measures."""
        sampling = Sampling(temperature=0.0, max_tokens=self.max_tokens)
        gold = [i for i in eval_items(case.domain, "gold", self.count) if i.response is not None]
        problems = eval_items(case.domain, self.split, self.problems)
        with case.open() as policy:
            audits = located(policy, case.domain, gold, sampling)
            before, after = corrected(policy, case.domain, problems, sampling)
            rows = [eval_row(policy.digest, self.split, "refined", 0, row) for row in after]
        measures = location_measures(audits) + correction_measures(before, after)
        outputs = {"audits": frames.frame(tables.audits, audits), "evals": frames.frame(tables.evals, rows)}
        return Result(outputs | {"measures": measures_frame(measures)})


def located(policy: Policy, domain: Domain, items: Sequence[Item], sampling: Sampling) -> list[Row]:
    """One row of `audits` for each gold answer: the critic's verdict, and the step that it calls the first wrong."""
    completions = ask(policy, [domain.criticise(i.problem, i.response or "") for i in items], sampling)
    return [_audit(policy, domain, i, c) for i, c in zip(items, completions, strict=True)]


def _audit(policy: Policy, domain: Domain, item: Item, completion: Completion) -> Row:
    verdict = domain.critic_verdict(completion.text)
    error = completion.error or verdict.error
    passed = None if error else verdict.passed
    return {
        "id": content_id("critic audit", policy.digest, item.problem, item.response),
        "item": item_id(item.problem),
        "level": item.level,
        "judge": "critic",
        "truth": item.wrong_step is None,
        "true_step": item.wrong_step,
        "score": None if error else grade(verdict),
        "verdict": None if passed is None else "pass" if passed else "fail",
        "wrong_step": None if error else verdict.wrong_step,
        "error": error,
    }


def location_measures(audits: Sequence[Row]) -> list[Measure]:
    """How often the critic names the first wrong step of a wrong answer, and how often it cannot be read."""
    errors = at_levels(audits, lambda g, n: proportion("critic_errors", n, [bool(r["error"]) for r in g]))
    wrong = [r for r in audits if not r["truth"] and not r["error"]]
    location = at_levels(wrong, lambda g, n: proportion("critique_location", n, [names_wrong_step(r) for r in g]))
    return location + errors


def names_wrong_step(row: Row) -> bool:
    """Whether a wrong answer was called wrong and at its first wrong step."""
    return row["verdict"] == "fail" and row["wrong_step"] == row["true_step"]


def corrected(policy: Policy, domain: Domain, items: Sequence[Item], sampling: Sampling) -> tuple[list[Row], list[Row]]:
    """What greedy answers are worth, before and after the model read its own critique of them.

    An answer stays where its critique passes it. Where answer or critique cannot be read, `after` is an error.
    """
    answers = ask(policy, [domain.solve(i.problem) for i in items], sampling)
    before = [answer_row(i, c, domain) for i, c in zip(items, answers, strict=True)]
    readable = [n for n, c in enumerate(answers) if not c.error]
    texts = ask(policy, [domain.criticise(items[n].problem, answers[n].text) for n in readable], sampling)
    critiques = {
        n: (c.text, domain.critic_verdict(c.text)) for n, c in zip(readable, texts, strict=True) if not c.error
    }
    wrong = [n for n, (_, v) in critiques.items() if v.passed is False]
    refine = [domain.refine(items[n].problem, answers[n].text, critiques[n][0]) for n in wrong]
    refinements = zip(wrong, ask(policy, refine, sampling), strict=True)
    after = {n: answer_row(items[n], c, domain) for n, c in refinements}
    after |= {n: before[n] for n, (_, v) in critiques.items() if v.passed}
    return before, [after.get(n) or _unreadable(row) for n, row in enumerate(before)]


def _unreadable(row: Row) -> Row:
    item = {k: row[k] for k in ("item", "level", "problem")}
    return item | {"error": "the answer or its critique cannot be read"}


def correction_measures(before: Sequence[Row], after: Sequence[Row]) -> list[Measure]:
    """Accuracy after self-correction, by level; CL, CS and RSS over all levels."""
    both = [
        {"level": a["level"], "before": b["correct"], "after": a["correct"]}
        for b, a in zip(before, after, strict=True)
        if b.get("correct") is not None and a.get("correct") is not None
    ]
    refined = at_levels(both, lambda g, n: proportion("refined", n, [r["after"] for r in g]))
    confidence = proportion("critique_cl", None, [r["after"] for r in both if r["before"]])
    critique = proportion("critique_cs", None, [r["after"] for r in both if not r["before"]])
    score = relative_score([r["before"] for r in both], [r["after"] for r in both])
    rest = [confidence, critique, None if score is None else Measure("critique_rss", None, score, count=len(both))]
    return refined + [m for m in rest if m]


def relative_score(before: Sequence[bool], after: Sequence[bool]) -> float | None:
    """RSS = (Acc₂ − Acc₁²) / (2·Acc₁·(1 − Acc₁)), Acc₁ and Acc₂ the accuracies before and after: 1/2 where correction
    keeps the accuracy, 1 where it is as good as having the better of two independent tries (Yang et al. 2024,
    arXiv:2412.19513). None where all or none were right before, for then it is not defined.
    """
    if not before or all(before) or not any(before):
        return None
    first, second = sum(before) / len(before), sum(after) / len(after)
    return (second - first**2) / (2 * first * (1 - first))
