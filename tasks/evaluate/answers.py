"""Accuracy on the frozen sets: greedy, sampled, pass@k, majority@k, by level; grades, diversity, lengths, errors."""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from math import comb
from statistics import fmean
from typing import Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from tasks.core import frames, tables
from tasks.core.judging import failure, graded
from tasks.core.stage import ANCESTORS, Ability, Result
from tasks.domains import Domain, Item
from tasks.engines import Completion, Policy, Sampling
from tasks.evaluate import EvaluateCase, Evaluation
from tasks.evaluate._items import Row, ask, checked, eval_items, eval_row, greedily, sampled, stratify
from tasks.evaluate._measures import Measure, at_levels, mean, measures_frame, proportion

UNBOUNDED = ("distinct_answers", "entropy")
"""Measures that may be above 1."""


class Answers(Evaluation):
    """Answers each problem greedily once and by sampling several times, and has the domain verify each answer.

    Measures on the held-out set (those of another set have its name in front, as in `validation_greedy`):
    `greedy`, `pass_at_<k>`, `majority_at_<samples>`; `greedy_answer` and `pass_at_1_answer`, which look at the final
    answer alone, where the right one is known; `grade` and `grade_sampled`, the mean grades where there is an examiner;
    `answered`, `eval_errors`, `response_tokens`; of the samples `distinct_2`, `distinct_answers` and `entropy` (nats).
    """

    needs: ClassVar[frozenset[Ability]] = frozenset({"samples"})
    example: ClassVar[dict[str, Any]] = {"greedy": 14, "sampled": 7, "samples": 2, "ks": [1, 2]}

    splits: tuple[Literal["heldout", "validation"], ...] = ("heldout", "validation")
    """The frozen sets to answer: one to report, one for gates to look at."""
    greedy: NonNegativeInt = 350
    """Problems of each set that are answered greedily, spread over the levels."""
    sampled: NonNegativeInt = 350
    """Problems of each set that are answered by sampling; where it is fewer they are among the greedy ones."""
    samples: PositiveInt = 8
    """Answers a problem."""
    ks: tuple[PositiveInt, ...] = (1, 8)
    """The k of pass@k; none above `samples`."""
    temperature: float = Field(1.0, gt=0)
    """Of the samples. Pass rates are compared at one temperature, that of the base distribution."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus of the samples."""
    max_tokens: PositiveInt = 128
    """Longest answer."""
    examiner: str | None = None
    """Name of a model that grades, by the domain's judge prompt, what the domain cannot verify: `base` or a model of the
    roster, which are the same in all rounds. A base grades itself where it is `base`."""
    examiner_tokens: PositiveInt = 192
    """Longest judgment of the examiner."""

    @field_validator("examiner")
    @classmethod
    def _same_in_all_rounds(cls, name: str | None) -> str | None:
        if name in {"model", *ANCESTORS} - {"base"}:
            raise ValueError(f"{name} is another model in each round; name base, or a model of the roster")
        return name

    @model_validator(mode="after")
    def _enough_samples(self) -> "Answers":
        if self.ks and max(self.ks) > self.samples:
            raise ValueError(f"ks holds {max(self.ks)}, which is more than samples ({self.samples})")
        return self

    def opened_models(self) -> frozenset[str]:
        """The model to evaluate, and the examiner."""
        return frozenset({"model"} | ({self.examiner} if self.examiner else set()))

    def __call__(self, case: EvaluateCase) -> Result:
        """Rows of `evals` in the modes `greedy` and `sampled`, and their measures."""
        items = {s: eval_items(case.domain, s, max(self.greedy, self.sampled)) for s in self.splits}
        with case.open() as policy:
            rows = [row for split in self.splits for row in self._answers(policy, case, split, items[split])]
        if self.examiner:
            rows = examined(rows, case, self.examiner, self.examiner_tokens)
        measures = [m for split in self.splits for m in self._measures(split, items[split], rows)]
        return Result({"evals": frames.frame(tables.evals, rows), "measures": measures_frame(measures)})

    def _answers(self, policy: Policy, case: EvaluateCase, split: str, items: list[Item]) -> list[Row]:
        greedy = self._greedy(policy, case.domain, split, stratify(items, self.greedy))
        return greedy + self._sampled(policy, case, split, stratify(items, self.sampled))

    def _greedy(self, policy: Policy, domain: Domain, split: str, items: list[Item]) -> list[Row]:
        rows = greedily(policy, domain, items, self.max_tokens)
        return [eval_row(policy.digest, split, "greedy", 0, row) for row in rows]

    def _sampled(self, policy: Policy, case: EvaluateCase, split: str, items: list[Item]) -> list[Row]:
        sampling = Sampling(self.temperature, self.top_p, max_tokens=self.max_tokens)
        answers = sampled(policy, case.domain, items, self.samples, sampling, case.seed)
        return [eval_row(policy.digest, split, "sampled", k, row) for rows in answers for k, row in enumerate(rows)]

    def _measures(self, split: str, items: list[Item], rows: Sequence[Row]) -> list[Measure]:
        prefix = "" if split == "heldout" else f"{split}_"
        greedy, sampled = ([r for r in rows if (r["split"], r["mode"]) == (split, m)] for m in ("greedy", "sampled"))
        references = {i.problem: i.reference for i in items}
        measures = greedy_measures(prefix, greedy, references)
        measures += sampled_measures(prefix, sampled, references, self.ks, self.samples)
        if self.examiner:
            measures += grade_measures(f"{prefix}grade", greedy) + grade_measures(f"{prefix}grade_sampled", sampled)
        return measures + common_measures(prefix, greedy + sampled)


def examined(rows: Sequence[Row], case: EvaluateCase, examiner: str, max_tokens: int) -> list[Row]:
    """The rows, those without a score graded by the examiner. An answer that is missing from a response is worth 0; a
    judgment that cannot be read is an error, and so no grade.
    """
    grades = _grades({_pair(r) for r in rows if _ungraded(r) and r["answer"] is not None}, case, examiner, max_tokens)
    missing = {"score": 0.0}
    return [r | grades.get(_pair(r), missing) if _ungraded(r) else r for r in rows]


def _ungraded(row: Row) -> bool:
    return row.get("response") is not None and row["score"] is None


def _pair(row: Row) -> tuple[str, str]:
    return row["problem"], row["response"]


def _grades(
    responses: set[tuple[str, str]], case: EvaluateCase, examiner: str, max_tokens: int
) -> dict[tuple[str, str], Row]:
    """`score` and `error` by problem and response."""
    if not responses:
        return {}
    pairs = sorted(responses)
    sampling = Sampling(temperature=0.0, max_tokens=max_tokens, regex=case.domain.verdict_form)
    with case.open(examiner) as policy:
        completions = ask(policy, [case.domain.judge(*pair) for pair in pairs], sampling)
    return {pair: _grade(c, case.domain) for pair, c in zip(pairs, completions, strict=True)}


def _grade(completion: Completion, domain: Domain) -> Row:
    opinion = failure(completion.error) if completion.error else graded([domain.verdict(completion.text)])
    return {"score": opinion["score"], "error": opinion["error"] and f"examiner: {opinion['error']}"}


def greedy_measures(prefix: str, rows: Sequence[Row], references: dict[str, str | None]) -> list[Measure]:
    """Accuracy of greedy answers, with Wilson's interval."""
    accuracy = at_levels(checked(rows), lambda g, n: proportion(f"{prefix}greedy", n, [r["correct"] for r in g]))
    known = [r | {"hit": r["answer"] == ref} for r in checked(rows) if (ref := references[r["problem"]])]
    return accuracy + at_levels(known, lambda g, n: proportion(f"{prefix}greedy_answer", n, [r["hit"] for r in g]))


def sampled_measures(
    prefix: str, rows: Sequence[Row], references: dict[str, str | None], ks: Sequence[int], samples: int
) -> list[Measure]:
    """pass@k, majority@k, diversity and entropy: one value a problem, their mean with its interval over problems."""
    problems = [problem_values(list(g), references, ks, samples) for _, g in groupby(rows, key=lambda r: r["problem"])]
    measures = []
    for name in sorted({name for p in problems for name in p} - {"level"}):
        maximum = None if name in UNBOUNDED else 1.0
        complete = [p for p in problems if p.get(name) is not None]
        measures += at_levels(complete, lambda g, n, k=name, m=maximum: mean(prefix + k, n, [p[k] for p in g], m))
    return measures


def problem_values(rows: list[Row], references: dict[str, str | None], ks: Sequence[int], samples: int) -> Row:
    """Every sampled measure of one problem; a measure without data is None."""
    checks, reference = [r["correct"] for r in checked(rows)], references[rows[0]["problem"]]
    answers = [r.get("answer") for r in rows if r.get("response") is not None]
    hits = [a == reference for a in answers] if reference else []
    entropies = [r["entropy"] for r in rows if r.get("entropy") is not None]
    return {
        "level": rows[0]["level"],
        **{f"pass_at_{k}": pass_at_k(len(checks), sum(checks), k) for k in ks},
        f"majority_at_{samples}": majority_right(checked(rows), reference),
        "pass_at_1_answer": sum(hits) / len(hits) if hits else None,
        "distinct_2": distinct_n([r["response"] for r in rows if r.get("response")], 2),
        "distinct_answers": float(len(set(answers) - {None})) if answers else None,
        "entropy": fmean(entropies) if entropies else None,
    }


def grade_measures(name: str, rows: Sequence[Row]) -> list[Measure]:
    """The mean grade of a problem's answers, its mean over problems with its interval over them."""
    scored = [r for r in rows if r.get("score") is not None]
    by_problem = [list(g) for _, g in groupby(scored, key=lambda r: r["problem"])]
    problems = [{"level": g[0]["level"], "grade": fmean(r["score"] for r in g)} for g in by_problem]
    return at_levels(problems, lambda g, n: mean(name, n, [p["grade"] for p in g]))


def common_measures(prefix: str, rows: Sequence[Row]) -> list[Measure]:
    """How often there is an answer, how often it has no score, and how long the responses are."""
    responses = [r for r in rows if r.get("response") is not None]
    measures = [
        proportion(f"{prefix}answered", None, [r.get("answer") is not None for r in responses]),
        proportion(f"{prefix}eval_errors", None, [r.get("score") is None for r in rows]),
        mean(f"{prefix}response_tokens", None, [float(r["tokens"]) for r in responses], None),
    ]
    return [m for m in measures if m]


def pass_at_k(n: int, correct: int, k: int) -> float | None:
    """The unbiased estimator 1 − C(n − c, k) / C(n, k) of the chance that one of k samples is right, from c right ones
    among n (Chen et al. 2021, arXiv:2107.03374). None when fewer than k were drawn.
    """
    return 1.0 - comb(n - correct, k) / comb(n, k) if n >= k else None


def majority_right(rows: Sequence[Row], reference: str | None) -> float | None:
    """Whether the most frequent answer of a problem's samples is right (Wang et al. 2022, arXiv:2203.11171).

    It is about final answers: right is what equals the reference, or, where none is known, what a verified sample gave.
    Between answers with equally many votes the draw is fair: the share of them that is right. 0 where no sample
    answered, None where there is no checked sample.
    """
    if not rows:
        return None
    votes = Counter(r["answer"] for r in rows if r.get("answer") is not None)
    leaders = [a for a, n in votes.items() if n == max(votes.values())]
    proven = {reference} if reference else {r["answer"] for r in rows if r["correct"]}
    return sum(a in proven for a in leaders) / len(leaders) if leaders else 0.0


def distinct_n(texts: Sequence[str], n: int) -> float | None:
    """Distinct n-grams of words over all of them, in a problem's samples (Li et al. 2016, arXiv:1510.03055)."""
    grams = [tuple(w[i : i + n]) for t in texts for w in [t.split()] for i in range(len(w) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None
