"""Are the model's answers to its round's prompts shorter, surer or more alike than its parent's?"""

from statistics import fmean
from typing import Any, ClassVar

from pydantic import Field, PositiveInt

from tasks.core.stage import Ability, Result
from tasks.domains import Item
from tasks.engines import Sampling
from tasks.evaluate import EvaluateCase, Evaluation
from tasks.evaluate._items import Row, round_items, sampled
from tasks.evaluate._measures import Measure, mean, measures_frame, ratio
from tasks.evaluate.answers import distinct_n

Profile = dict[str, float]


class Collapse(Evaluation):
    """Measures length, entropy and diversity of the model's answers to the round's own prompts, beside its parent's at equal
    seeds. Training works on these prompts and not on the exam's, so collapse shows here first. Distinct-2 is the number of
    different word pairs over that of all word pairs in a prompt's answers (Li et al. 2016, arXiv:1510.03055).

    Measures of the model's answers, means over the prompts: `collapse_tokens`, `collapse_entropy` (nats a token) and
    `collapse_distinct_2`; and `collapse_tokens_ratio` …, each sum over the prompts divided by the parent's. What an engine
    does not give is left out, and a base, which has no prompts, has no measures.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset({"samples"})
    example: ClassVar[dict[str, Any]] = {"limit": 2, "samples": 2}

    limit: PositiveInt = 50
    """Prompts of the round, the first by id."""
    samples: PositiveInt = 4
    """Answers of each model to a prompt."""
    temperature: float = Field(1.0, gt=0)
    """Of the samples."""
    max_tokens: PositiveInt = 128
    """Longest answer."""

    def opened_models(self) -> frozenset[str]:
        """The model and its parent."""
        return frozenset({"model", "parent"})

    def read_tables(self) -> frozenset[str]:
        """The round's prompts."""
        return frozenset({"prompts"})

    def __call__(self, case: EvaluateCase) -> Result:
        """The measures."""
        items = round_items(case.prompts, self.limit)
        if not items or "parent" not in case.models.names:
            return Result({"measures": measures_frame([])})
        before, now = (self._profiles(case, model, items) for model in ("parent", "model"))
        return Result({"measures": measures_frame(collapse_measures(before, now))})

    def _profiles(self, case: EvaluateCase, model: str, items: list[Item]) -> list[Profile]:
        sampling = Sampling(self.temperature, max_tokens=self.max_tokens)
        with case.open(model) as policy:
            answers = sampled(policy, case.domain, items, self.samples, sampling, case.seed)
        return [profile([r for r in rows if r.get("response") is not None]) for rows in answers]


def profile(rows: list[Row]) -> Profile:
    """Mean length and entropy of a prompt's answers, and their distinct-2; without what is not known."""
    values = {
        "tokens": [float(r["tokens"]) for r in rows],
        "entropy": [r["entropy"] for r in rows if r["entropy"] is not None],
        "distinct_2": [d for d in [distinct_n([r["response"] for r in rows], 2)] if d is not None],
    }
    return {name: fmean(of) for name, of in values.items() if of}


def collapse_measures(before: list[Profile], now: list[Profile]) -> list[Measure]:
    """The model's means and their ratios to the parent's, over the prompts of which both are known."""
    measures: list[Measure | None] = []
    for name in ("tokens", "entropy", "distinct_2"):
        pairs = [(n[name], b[name]) for b, n in zip(before, now, strict=True) if name in b and name in n]
        maximum = 1.0 if name == "distinct_2" else None
        measures += [
            mean(f"collapse_{name}", None, [n for n, _ in pairs], maximum),
            ratio(f"collapse_{name}_ratio", None, pairs),
        ]
    return [m for m in measures if m]
