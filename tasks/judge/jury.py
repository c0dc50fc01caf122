"""Other models as judges, one after the other."""

from collections.abc import Sequence
from itertools import chain
from typing import Annotated, Any, ClassVar

from pydantic import Field

from tasks.core.judging import JudgeCase
from tasks.engines import Completion
from tasks.judge.self_judge import Pair, SelfJudge


class Jury(SelfJudge):
    """The mean grade that a panel of other models gives the answer: PoLL (Verga et al. 2024, arXiv:2404.18796; with one
    juror, LLM-as-a-judge, Zheng et al. 2023, arXiv:2306.05685). Jurors are prompted and parsed like `self_judge`;
    scores are averaged and verdicts voted on over all jurors' judgments: average pooling, and majority voting without
    their tie-break.

    Jurors run one after the other, so no two models are in memory together.
    """

    example: ClassVar[dict[str, Any]] = {"models": ["parent", "base"]}

    models: Annotated[tuple[str, ...], Field(min_length=1)]
    """The jurors: names of models of the roster or of ancestors."""

    def opened_models(self) -> frozenset[str]:
        """The jurors."""
        return frozenset(self.models)

    def completions(self, pairs: Sequence[Pair], case: JudgeCase) -> list[list[Completion]]:
        """All jurors' judgments of each pair, in the jurors' order."""
        by_juror = [self.judgments(pairs, name, case) for name in self.models]
        return [list(chain.from_iterable(of_pair)) for of_pair in zip(*by_juror, strict=True)]
