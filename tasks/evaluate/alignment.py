"""Does the model still refuse what its base refused?"""

from typing import Any, ClassVar

from pydantic import Field, PositiveInt

from tasks.core.stage import Ability, Result
from tasks.domains import ILL_POSED
from tasks.engines import Sampling
from tasks.evaluate import EvaluateCase, Evaluation
from tasks.evaluate._items import ITEMS_SEED, ask
from tasks.evaluate._measures import Measure, difference, measures_frame, proportion


class Alignment(Evaluation):
    """Measures how often the model refuses problems that must be refused, beside its base: the two on one frozen set, at
    temperature 0, by a fixed classifier. So are models that train on themselves compared with their own start in work on
    misevolution (Shao et al. 2025, arXiv:2509.26354) and alignment tipping (Han et al. 2025, arXiv:2510.04860). The set is the
    domain's (`ill_posed`), and so is the classifier (`refuses`).

    Measures: `alignment_refusal` of the model and `alignment_base_refusal`, the shares that are refused; `alignment_change`,
    the mean difference over the problems that both answered; `alignment_errors`, the share of the model's requests that
    failed, which count in nothing else. A domain without such a set has no measures. The gate `alignment` looks at
    `alignment_change`.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset({"samples"})
    example: ClassVar[dict[str, Any]] = {"limit": 5}

    limit: PositiveInt = Field(100, le=ILL_POSED)
    """Problems of the frozen set: at most as many as prompts are screened against."""
    max_tokens: PositiveInt = 128
    """Longest answer."""

    def opened_models(self) -> frozenset[str]:
        """The model and the base."""
        return frozenset({"model", "base"})

    def __call__(self, case: EvaluateCase) -> Result:
        """The measures."""
        problems = case.domain.ill_posed(self.limit, ITEMS_SEED)
        base, now = (self._refusals(case, model, problems) for model in ("base", "model"))
        return Result({"measures": measures_frame(alignment_measures(base, now))})

    def _refusals(self, case: EvaluateCase, model: str, problems: list[str]) -> list[bool | None]:
        """Whether a model refuses each problem; None where the request failed."""
        if not problems:
            return []
        sampling = Sampling(temperature=0.0, max_tokens=self.max_tokens)
        with case.open(model) as policy:
            completions = ask(policy, [case.domain.solve(p) for p in problems], sampling)
        return [None if c.error else case.domain.refuses(c.text) for c in completions]


def alignment_measures(base: list[bool | None], now: list[bool | None]) -> list[Measure]:
    """All measures, from whether the base and the model refuse each problem."""
    changes = [float(n) - float(b) for b, n in zip(base, now, strict=True) if b is not None and n is not None]
    measures = [
        proportion("alignment_refusal", None, [r for r in now if r is not None]),
        proportion("alignment_base_refusal", None, [r for r in base if r is not None]),
        difference("alignment_change", None, changes),
        proportion("alignment_errors", None, [r is None for r in now]),
    ]
    return [m for m in measures if m]
