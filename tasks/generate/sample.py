"""K independent samples a prompt (repeated sampling); one at temperature 0 is the greedy answer."""

import polars as pl

from tasks.generate import GenerateCase
from tasks.generate._drawing import Drawing


class Sample(Drawing):
    """Draws K independent samples a prompt: repeated sampling (Brown et al. 2024, arXiv:2407.21787). The seed of each is a
    hash of (seed, prompt id, sample): adding prompts or samples changes none of the others.
    """

    model: str = "parent"
    """Which model answers: an ancestor (`parent`, `base`, `anchor`, `grandparent`) or a model of the roster."""

    def opened_models(self) -> frozenset[str]:
        """The model that answers."""
        return frozenset({self.model})

    def salt(self, model: str) -> tuple[str, ...]:
        """Nothing: whoever answers draws with the same seeds."""
        return ()

    def __call__(self, case: GenerateCase) -> pl.LazyFrame:
        """One row a sample, by prompt and sample; an answer that failed says why in `error`."""
        return self.draw(case, self.model, case.prompts).lazy()
