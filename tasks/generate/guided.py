"""Where all own samples fail, some are replaced by the teachers' traces that the student understands best."""

from math import exp
from statistics import fmean
from typing import Annotated, Any, ClassVar

import polars as pl
from pydantic import Field, PositiveInt

from tasks.core import frames
from tasks.core.stage import Ability
from tasks.engines import Messages, Scored
from tasks.generate import GenerateCase
from tasks.generate._drawing import Drawing, failed, need_verifier, with_verdicts


class Guided(Drawing):
    """Replaces, where no own sample of a prompt is right, up to `replaced` random ones by the teachers' traces that the
    student understands best, one of each teacher: AMPO (Yuan et al. 2025, arXiv:2510.02227). A trace is understood by
    the student's mean token probability of the reference answer after it: 1/|y*| Σ_t π(y*_t | x, trace, y*_<t), the
    trace as far as its own final answer.

    Only traces that the verifier passes are taken: the paper's pool holds correct ones, while the published code gives a
    teacher's trace the reward 1 whether it is right or not. So fewer may be replaced than `replaced`, and none without a
    reference. That unchecked own samples are neither right nor wrong is our reading.

    Student and teachers are opened one after the other.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset({"samples", "scores"})
    example: ClassVar[dict[str, Any]] = {"teachers": ["base", "anchor"], "samples": 2}

    model: str = "parent"
    """The student."""
    teachers: Annotated[tuple[str, ...], Field(min_length=1)]
    """Who shows a trace: names of ancestors or of models of the roster."""
    replaced: PositiveInt = 2
    """Most own samples of a prompt that are replaced."""

    def opened_models(self) -> frozenset[str]:
        """Student and teachers."""
        return frozenset({self.model, *self.teachers})

    def __call__(self, case: GenerateCase) -> pl.LazyFrame:
        """`samples` rows a prompt; a teacher's trace is numbered after the student's. The domain must verify (FlywheelError)."""
        need_verifier(self, case.domain)
        own = self.draw(case, self.model, case.prompts)
        prompts = failed(with_verdicts(own, case), case).drop_nulls("reference")
        traces = self._best(case, self._traces(case, prompts))
        return pl.concat([self._kept(case, own, traces), traces]).sort("prompt_id", "sample", "author").lazy()

    def _traces(self, case: GenerateCase, prompts: pl.DataFrame) -> pl.DataFrame:
        """One right trace of each teacher that has one."""
        number = range(self.samples, self.samples + 1)
        rows = pl.concat([self.draw(case, t, prompts, number) for t in dict.fromkeys(self.teachers)])
        return with_verdicts(rows, case).filter("passed").drop("passed").sort("id")

    def _best(self, case: GenerateCase, traces: pl.DataFrame) -> pl.DataFrame:
        """The traces of each prompt after which the student finds the reference likeliest."""
        scores = pl.Series("score", self._scores(case, traces), dtype=pl.Float64)
        ranked = traces.with_columns(scores).drop_nulls("score").sort("score", "id", descending=[True, False])
        most = min(self.replaced, self.samples)
        return ranked.filter(pl.int_range(pl.len()).over("prompt_id") < most).drop("score")

    def _scores(self, case: GenerateCase, traces: pl.DataFrame) -> list[float | None]:
        if traces.is_empty():
            return []
        chats = dict(zip(case.prompts["id"], frames.chats(case.prompts["prompt"]), strict=True))
        references = dict(case.prompts.select("id", "reference").iter_rows())
        rows = traces.select("prompt_id", "response", "answer").iter_rows()
        texts = [continued(chats[prompt], text, answer, references[prompt]) for prompt, text, answer in rows]
        with case.models.open(self.model) as policy:
            scored = dict(policy.score([chat for chat, _ in texts], [reference for _, reference in texts]))
        return [probability(scored[n]) for n in range(len(texts))]

    def _kept(self, case: GenerateCase, own: pl.DataFrame, traces: pl.DataFrame) -> pl.DataFrame:
        """The own samples without as many as there are traces, drawn by seed."""
        lot = frames.seeds(pl.lit(f"{case.seed}\x1fguided\x1fplace"), "prompt_id", "sample").alias("lot")
        counts = traces.group_by("prompt_id").agg(traces=pl.len())
        rows = own.with_columns(lot).join(counts, on="prompt_id", how="left").sort("lot", "id")
        gone = pl.int_range(pl.len()).over("prompt_id") < pl.col("traces").fill_null(0)
        return rows.filter(~gone).drop("lot", "traces")


def continued(chat: Messages, trace: str, answer: str | None, reference: str) -> tuple[Messages, str]:
    """The chat with the trace up to its final answer, and the reference as it would go on; a trace that does not spell its
    answer out stays whole, with the reference on a line of its own.
    """
    head, spelled, _ = trace.rpartition(answer) if answer else ("", "", "")
    head = head if spelled else f"{trace}\n"
    begun = head.rstrip()
    return (*chat, ("assistant", begun)), head[len(begun) :] + reference


def probability(scored: Scored) -> float | None:
    """The mean of the tokens' probabilities, in [0, 1]; None where they could not be had."""
    return fmean(map(exp, scored.logprobs)) if scored.logprobs and not scored.error else None
