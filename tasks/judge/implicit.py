"""The reward that a model implies by how far it moved from a reference."""

from statistics import fmean
from typing import Any, ClassVar, Self

import polars as pl
from pydantic import PositiveFloat, model_validator

from tasks.core.judging import JudgeCase, Judging, Opinion, failure
from tasks.core.stage import Ability
from tasks.engines import Scored
from tasks.judge._likelihood import after_prompts, log_probabilities, prompt_chats


class Implicit(Judging):
    """How much likelier the response is under a model than under its reference: the implicit reward β·log(π(y |
    x)/π_ref(y | x)), up to a constant of the prompt (DPO, Rafailov et al. 2023, arXiv:2305.18290; as a judge of new
    responses in DICE, Chen et al. 2024, arXiv:2406.09760).

    Without a reference it is constant, and the reward β·log π(y | x). The end token counts where the model ended the
    response itself. The two models are asked one after the other, so that one alone is in memory.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset({"scores"})
    auditable: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {"reference": "base"}

    model: str = "parent"
    """Name of π: an ancestor's, or one of the roster."""
    reference: str | None
    """Name of π_ref: another ancestor's, or another one of the roster. Null is the constant reference. It has no default:
    results depend on it, and a round says which it is."""
    beta: PositiveFloat = 0.1
    """β: the scale of the reward."""
    mean: bool = False
    """True takes means over tokens in the place of sums, each model's over its own tokens: length then counts for nothing."""

    @model_validator(mode="after")
    def _two_models(self) -> Self:
        if self.model == self.reference:
            raise ValueError(f"model and reference are both {self.model!r}, so that all rewards are 0; name two models")
        return self

    def opened_models(self) -> frozenset[str]:
        """The model and its reference."""
        return frozenset({self.model, self.reference} - {None})  # type: ignore[arg-type]

    def per_prompt_only(self) -> bool:
        """Always."""
        return True

    def __call__(self, case: JudgeCase) -> pl.LazyFrame:
        """Scores of any sign; only ranks within a prompt, so no verdict."""
        return after_prompts(case, lambda rows: self._opinions(rows, case))

    def _opinions(self, rows: pl.DataFrame, case: JudgeCase) -> list[Opinion]:
        chats = prompt_chats(rows)
        policy = log_probabilities(case, self.model, chats, rows)
        if self.reference is None:
            return [self._reward(scored) for scored in policy]
        reference = log_probabilities(case, self.reference, chats, rows)
        return [self._reward(*scores) for scores in zip(policy, reference, strict=True)]

    def _reward(self, policy: Scored, reference: Scored | None = None) -> Opinion:
        scores = [policy] if reference is None else [policy, reference]
        if error := next((s.error for s in scores if s.error), None):
            return failure(error)
        if not all(s.logprobs for s in scores):
            return failure("the response has no tokens")
        total, *subtracted = [fmean(s.logprobs) if self.mean else sum(s.logprobs) for s in scores]
        return {"score": self.beta * (total - sum(subtracted)), "verdict": None, "rationale": None, "error": None}
