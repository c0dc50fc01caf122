"""Which texts of a round are near-duplicates of others, over all of its prompts."""

from typing import Literal

import polars as pl
from pydantic import Field, PositiveInt

from tasks.core.judging import COLUMNS, ORPHAN, JudgeCase, Judging
from tasks.judge import _minhash


class NearDuplicates(Judging):
    """Passes one of several near-duplicates among a round's problems, or its responses: those with a Jaccard similarity of
    word 5-grams of at least 0.8, as Lee et al. (2022, arXiv:2107.06499) remove from training data. With
    `require: {near_duplicates: 1}` a filter drops the others, whatever its reward.

    Candidates are found by MinHash (Broder 1997) in bands, as in datatrove, over any number of prompts; each is compared by
    its 5-grams, so none is dropped wrongly. Two texts of similarity s become candidates with probability 1 − (1 − s⁶)²⁰:
    99.8 % at 0.8. Where more than a thousand texts that stay share a band, as the fillings of one template do, later ones
    are compared with some of them only. Grams are of words in lower case, signs and ideographs; blanks do not count.

    Our reading of which of them stays: the first by id, whatever its reward, and each later one that is near none that
    stays. The paper drops all but one of a connected group, also where its ends are not alike, and confirms by edit
    similarity.
    """

    of: Literal["problem", "response"] = "problem"
    """What is compared: the problems of the prompts that have a response, or the responses."""
    min_similarity: float = Field(0.8, gt=0, le=1)
    """Least Jaccard similarity of near-duplicates. Below 0.7, bands miss more than a tenth of them."""
    ngram: PositiveInt = 5
    """Tokens in a run; a text of fewer is one run."""

    def needs_overview(self) -> bool:
        """Always: all texts of the round are compared."""
        return True

    def summary(self, case: JudgeCase) -> pl.LazyFrame:
        """Each text and its buckets."""
        if self.of == "response":
            texts = case.responses.select("id", "prompt_id", text="response")
        else:
            asked = case.responses.select(id="prompt_id").unique()
            texts = case.prompts.select("id", prompt_id="id", text="problem").join(asked, on="id", how="semi")
        return _minhash.sketch(texts.drop_nulls("text").collect(), self.ngram).lazy()

    def fold(self, summaries: pl.LazyFrame) -> pl.DataFrame:
        """The texts that are near one that stays."""
        return _minhash.near(summaries, self.ngram, self.min_similarity)

    def __call__(self, case: JudgeCase) -> pl.LazyFrame:
        """Scores are 1, or 0 for a near-duplicate, whose rationale names its twin."""
        found = self.overview(case).lazy().drop("prompt_id")
        key = "id" if self.of == "response" else "prompt_id"
        rows = case.with_problems().join(found, left_on=key, right_on="id", how="left")
        stays, there = pl.col("twin").is_null(), pl.col(self.of).is_not_null()
        near = pl.format(
            "near {}: {} of the runs of {} tokens", "twin", pl.col("similarity").round(3), pl.lit(self.ngram)
        )
        return rows.select(
            "prompt_id",
            response_id="id",
            score=pl.when(there).then(stays.cast(pl.Float64)),
            verdict=pl.when(there).then(pl.when(stays).then(pl.lit("pass")).otherwise(pl.lit("fail"))),
            rationale=near,
            error=pl.when(~there).then(pl.lit(ORPHAN["error"])),
        ).select(COLUMNS)
