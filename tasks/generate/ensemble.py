"""Several models answer every prompt."""

from typing import Annotated, Any, ClassVar, Self

import polars as pl
from pydantic import Field, model_validator

from tasks.generate import GenerateCase
from tasks.generate._drawing import Drawing


class Ensemble(Drawing):
    """Draws `samples` answers of each of several models to every prompt, as Ensemble-Instruct (Lee et al. 2023,
    arXiv:2310.13961) and RLCCF (Yuan et al. 2025, arXiv:2508.12338) do. `author` says whose answer a row is, so that a
    judge can weigh models against each other.

    The models answer one after the other; no two are in memory together.
    """

    example: ClassVar[dict[str, Any]] = {"models": ["parent", "base"], "samples": 2}

    models: Annotated[tuple[str, ...], Field(min_length=1)]
    """Who answers: names of ancestors or of models of the roster."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if twice := sorted({m for m in self.models if self.models.count(m) > 1}):
            raise ValueError(f"models names {', '.join(map(repr, twice))} twice; raise `samples` for more answers")
        return self

    def opened_models(self) -> frozenset[str]:
        """The models that answer."""
        return frozenset(self.models)

    def __call__(self, case: GenerateCase) -> pl.LazyFrame:
        """One row for each prompt, model and sample; samples are numbered by model."""
        rows = pl.concat([self.draw(case, model, case.prompts) for model in self.models])
        return rows.sort("prompt_id", maintain_order=True).lazy()
