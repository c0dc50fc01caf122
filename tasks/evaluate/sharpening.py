"""Did the round make likelier what its base could do already, or learn something new?"""

from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from tasks.core.stage import Ability, Result
from tasks.domains import Item
from tasks.engines import Sampling
from tasks.evaluate import EvaluateCase, Evaluation
from tasks.evaluate._items import Row, checked, eval_items, sampled
from tasks.evaluate._measures import Measure, difference, measures_frame, proportion, ratio


class Sharpening(Evaluation):
    """Measures how much of the model's gain over its base lies on problems that the base covers already, from samples of both
    over the same problems. Sharpening makes likelier what the base covers (Yue et al. 2025, arXiv:2504.13837; Huang et al.
    2024, arXiv:2412.01951). Our reading of it: with p and p₀ the shares of right samples of the model and of the base, and a problem covered where one of the base's k
    samples is right, the part of the gain that sharpening explains is Σ_covered max(p − p₀, 0) / Σ max(p − p₀, 0).

    Measures: `sharpening_gain` (mean p − p₀) and `sharpening_coverage_gain` (the same of pass@k); `sharpening_explained`,
    that part; `sharpening_lost`, the share of the covered problems that no sample of the model solves; `sharpening_new`,
    the share of the others that one of them does. Problems of which one of the two has no checked sample are left out.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset({"samples"})
    example: ClassVar[dict[str, Any]] = {"problems": 7, "samples": 2}

    split: Literal["heldout", "validation"] = "validation"
    """The frozen set."""
    problems: PositiveInt = 70
    """Its problems, spread over the levels."""
    samples: PositiveInt = 8
    """k: answers of each model to a problem. As in `answers`, a model is asked for them once."""
    temperature: float = Field(1.0, gt=0)
    """Of the samples."""
    max_tokens: PositiveInt = 128
    """Longest answer."""

    def opened_models(self) -> frozenset[str]:
        """The model and the base."""
        return frozenset({"model", "base"})

    def __call__(self, case: EvaluateCase) -> Result:
        """The measures."""
        items = eval_items(case.domain, self.split, self.problems)
        both = zip(self._shares(case, "base", items), self._shares(case, "model", items), strict=True)
        measures = sharpening_measures([(b, m) for b, m in both if b is not None and m is not None])
        return Result({"measures": measures_frame(measures)})

    def _shares(self, case: EvaluateCase, model: str, items: list[Item]) -> list[float | None]:
        """The share of right samples of each problem."""
        sampling = Sampling(self.temperature, max_tokens=self.max_tokens)
        with case.open(model) as policy:
            answers = sampled(policy, case.domain, items, self.samples, sampling, case.seed)
        return [_share(checked(rows)) for rows in answers]


def _share(rows: list[Row]) -> float | None:
    return sum(r["correct"] for r in rows) / len(rows) if rows else None


def sharpening_measures(shares: list[tuple[float, float]]) -> list[Measure]:
    """All measures from (share of the base's samples, share of the model's) of each problem."""
    gains = [max(now - base, 0.0) for base, now in shares]
    explained = [(gain if base > 0 else 0.0, gain) for gain, (base, _) in zip(gains, shares, strict=True)]
    measures = [
        difference("sharpening_gain", None, [now - base for base, now in shares]),
        difference("sharpening_coverage_gain", None, [float(now > 0) - float(base > 0) for base, now in shares]),
        ratio("sharpening_explained", None, explained),
        proportion("sharpening_lost", None, [now == 0 for base, now in shares if base > 0]),
        proportion("sharpening_new", None, [now > 0 for base, now in shares if base == 0]),
    ]
    return [m for m in measures if m]
