"""Further samples with a hint, where all of a prompt's own samples fail."""

from typing import Any, ClassVar

import polars as pl

from tasks.core.errors import FlywheelError
from tasks.domains import Domain
from tasks.generate import GenerateCase
from tasks.generate._drawing import Drawing, failed, need_verifier, with_verdicts


class Hint(Drawing):
    """Draws `samples` further samples, with the domain's hint in the context, to each prompt of which no sample is
    right and at least one is wrong, as Guide does (Nath et al. 2025, arXiv:2506.13923). They say `hinted`; what is
    trained on is the answer after the bare prompt. Guide corrects the importance ratio towards the hint-free policy:
    that is the trainer's.

    An answer that failed or cannot be checked is neither right nor wrong (our reading). A prompt for which the domain has
    no hint gets no further samples.
    """

    example: ClassVar[dict[str, Any]] = {"samples": 2}

    model: str = "parent"
    """Which model answers, with and without a hint."""

    def opened_models(self) -> frozenset[str]:
        """The model that answers."""
        return frozenset({self.model})

    def __call__(self, case: GenerateCase) -> pl.LazyFrame:
        """The own samples, and the hinted ones numbered after them.

        Raises:
            FlywheelError: for a domain without hints or without a verifier.
        """
        self._need_hints(case.domain)
        need_verifier(self, case.domain)
        own = self.draw(case, self.model, case.prompts)
        return (
            pl.concat([own, self._hinted(case, failed(with_verdicts(own, case), case))])
            .sort("prompt_id", "sample")
            .lazy()
        )

    def _hinted(self, case: GenerateCase, prompts: pl.DataFrame) -> pl.DataFrame:
        rows = prompts.select("id", "problem", "reference").iter_rows()
        hints = {(id, problem): case.domain.hint(problem, reference) for id, problem, reference in rows}
        known = {key: hint for key, hint in hints.items() if hint is not None}
        ids = pl.Series([id for id, _ in known], dtype=pl.String)
        hinted = [list(case.domain.solve_with(problem, hint)) for (_, problem), hint in known.items()]
        chats = pl.Series(hinted, dtype=prompts.schema["prompt"])
        numbers = range(self.samples, 2 * self.samples)
        return self.draw_after(case, self.model, ids, chats, numbers, hinted=True)

    def _need_hints(self, domain: Domain) -> None:
        if type(domain).hint is Domain.hint:
            raise FlywheelError(
                f"generate: 'hint' asks the domain {domain.strategy_name()!r} for hints, and it has none; write its "
                "`hint`, or take `sample`"
            )
