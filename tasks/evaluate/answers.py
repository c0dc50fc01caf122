"""Accuracy on the frozen sets: greedy, sampled, pass@k, majority@k, by level; diversity, lengths, errors."""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from math import comb
from typing import Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from tasks import tables
from tasks.domains import Domain, Item
from tasks.engines import Policy, Sampling
from tasks.evaluate import (
    Measure,
    ask,
    at_levels,
    checked,
    eval_row,
    frozen,
    graded,
    mean,
    measures_frame,
    proportion,
    spread,
)
from tasks.stage import Result, Strategy, seed_of

Row = dict[str, Any]


class Answers(Strategy):
    """Answers each problem greedily once and by sampling several times, and has the domain verify each answer.

    Measures on the held-out set (those of another set have its name in front, as in `validation_greedy`):
    `greedy`, `pass_at_<k>`, `majority_at_<samples>`; `greedy_answer` and `pass_at_1_answer`, which look at the final
    answer alone, where the right one is known; `answered`, `eval_errors`, `response_tokens`, `distinct_2`,
    `distinct_answers`.
    """

    needs: ClassVar = frozenset({"samples"})
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

    @model_validator(mode="after")
    def _enough_samples(self) -> "Answers":
        if self.ks and max(self.ks) > self.samples:
            raise ValueError(f"ks holds {max(self.ks)}, which is more than samples ({self.samples})")
        return self

    def __call__(self, policy: Policy, domain: Domain, seed: int, scores: bool = True) -> Result:
        """Rows of `evals` in the modes `greedy` and `sampled`, and their measures."""
        rows, found = [], []
        for split in self.splits:
            items = frozen(domain, split, max(self.greedy, self.sampled))
            prefix = "" if split == "heldout" else f"{split}_"
            greedy = self._greedy(policy, domain, split, spread(items, self.greedy))
            sampled = self._sampled(policy, domain, split, spread(items, self.sampled), seed)
            references = {i.problem: i.reference for i in items}
            found += greedy_measures(prefix, greedy, references)
            found += sampled_measures(prefix, sampled, references, self.ks, self.samples)
            found += common_measures(prefix, greedy + sampled)
            rows += greedy + sampled
        return Result({"evals": tables.frame(tables.evals, rows), "measures": measures_frame(found)})

    def _greedy(self, policy: Policy, domain: Domain, split: Any, items: list[Item]) -> list[Row]:
        how = Sampling(temperature=0.0, max_tokens=self.max_tokens)
        completions = ask(policy, [domain.solve(i.problem) for i in items], how)
        pairs = zip(items, completions, strict=True)
        return [eval_row(policy, split, "greedy", 0, graded(i, c, domain)) for i, c in pairs]

    def _sampled(self, policy: Policy, domain: Domain, split: Any, items: list[Item], seed: int) -> list[Row]:
        how = Sampling(self.temperature, self.top_p, max_tokens=self.max_tokens)
        wanted = [(item, k) for item in items for k in range(self.samples)]
        seeds = [seed_of(seed, "evaluate", item.problem, k) for item, k in wanted]
        completions = ask(policy, [domain.solve(item.problem) for item, _ in wanted], how, seeds)
        pairs = zip(wanted, completions, strict=True)
        return [eval_row(policy, split, "sampled", k, graded(i, c, domain)) for (i, k), c in pairs]


def greedy_measures(prefix: str, rows: Sequence[Row], references: dict[str, str | None]) -> list[Measure]:
    """Accuracy of greedy answers, with Wilson's interval."""
    whole = at_levels(checked(rows), lambda g, n: proportion(f"{prefix}greedy", n, [r["correct"] for r in g]))
    known = [r | {"hit": r["answer"] == ref} for r in checked(rows) if (ref := references[r["problem"]])]
    return whole + at_levels(known, lambda g, n: proportion(f"{prefix}greedy_answer", n, [r["hit"] for r in g]))


def sampled_measures(
    prefix: str, rows: Sequence[Row], references: dict[str, str | None], ks: Sequence[int], samples: int
) -> list[Measure]:
    """pass@k, majority@k and diversity: one value a problem, their mean with its interval over problems."""
    problems = [problem_values(list(g), references, ks, samples) for _, g in groupby(rows, key=lambda r: r["problem"])]
    names = sorted({name for p in problems for name in p} - {"level"})
    found = []
    for name in names:
        top = None if name == "distinct_answers" else 1.0
        having = [p for p in problems if p.get(name) is not None]
        found += at_levels(having, lambda g, n, k=name, t=top: mean(prefix + k, n, [p[k] for p in g], t))
    return found


def problem_values(rows: list[Row], references: dict[str, str | None], ks: Sequence[int], samples: int) -> Row:
    """Every sampled measure of one problem; what cannot be said of it is None."""
    checks, reference = [r["correct"] for r in checked(rows)], references[rows[0]["problem"]]
    answers = [r.get("answer") for r in rows if r.get("response") is not None]
    hits = [a == reference for a in answers] if reference else []
    return {
        "level": rows[0]["level"],
        **{f"pass_at_{k}": pass_at_k(len(checks), sum(checks), k) for k in ks},
        f"majority_at_{samples}": majority_right(checked(rows), reference),
        "pass_at_1_answer": sum(hits) / len(hits) if hits else None,
        "distinct_2": distinct_n([r["response"] for r in rows if r.get("response")], 2),
        "distinct_answers": float(len(set(answers) - {None})) if answers else None,
    }


def common_measures(prefix: str, rows: Sequence[Row]) -> list[Measure]:
    """How often there is an answer, how often it could not be checked, and how long the responses are."""
    given = [r for r in rows if r.get("response") is not None]
    lengths = [float(r["tokens"]) for r in given]
    found = [
        proportion(f"{prefix}answered", None, [r.get("answer") is not None for r in given]),
        proportion(f"{prefix}eval_errors", None, [r.get("correct") is None for r in rows]),
        mean(f"{prefix}response_tokens", None, lengths, None),
    ]
    return [m for m in found if m]


def pass_at_k(n: int, right: int, k: int) -> float | None:
    """The unbiased estimator 1 − C(n − c, k) / C(n, k) of the chance that one of k samples is right, from c right ones
    among n (Chen et al. 2021, arXiv:2107.03374). None when fewer than k were drawn.
    """
    return 1.0 - comb(n - right, k) / comb(n, k) if n >= k else None


def majority_right(rows: Sequence[Row], reference: str | None) -> float | None:
    """Whether the most frequent answer of a problem's samples is right (Wang et al. 2022, arXiv:2203.11171).

    It is about final answers: right is what equals the reference, or, where none is known, what a verified sample gave.
    Between answers with equally many votes the draw is fair: the share of them that is right. 0 where no sample
    answered, None where there is no checked sample.
    """
    if not rows:
        return None
    votes = Counter(r["answer"] for r in rows if r.get("answer") is not None)
    first = [a for a, n in votes.items() if n == max(votes.values())]
    proven = {reference} if reference else {r["answer"] for r in rows if r["correct"]}
    return sum(a in proven for a in first) / len(first) if first else 0.0


def distinct_n(texts: Sequence[str], n: int) -> float | None:
    """Distinct n-grams of words over all of them, in a problem's samples (Li et al. 2016, arXiv:1510.03055)."""
    grams = [tuple(w[i : i + n]) for t in texts for w in [t.split()] for i in range(len(w) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None
