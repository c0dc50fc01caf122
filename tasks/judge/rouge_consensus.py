"""The answer that the others are most like: for text that is seldom equal word for word."""

import re
from itertools import combinations
from statistics import fmean

import polars as pl
from pydantic import Field
from rapidfuzz.distance import Indel

from tasks.core.judging import JudgeCase, Judging, opinion


class RougeConsensus(Judging):
    """How like a prompt's other answers an answer is, by matches or by ROUGE-L: the consensus of Ensemble-Instruct (Lee
    et al. 2023, arXiv:2310.13961). Where two answers match after normalisation (lower case, without punctuation, single
    spaces), the paper takes the one that matches. Else the least ROUGE-L F of any two must be above `min_rouge`, and it
    takes the answer with the highest sum of ROUGE-L to the others.

    The paper has three answers. Our reading for any number, which scores all: where two match, the answers of the largest
    group of matching ones have 1 (in a tie those of each), the others 0. Else the score of an answer is its mean
    ROUGE-L F to the others, or 0 for all where two of them have no more than `min_rouge` in common. Signs and operators
    are punctuation, so −5 matches 5: for numbers and formulas take `self_consistency`.
    """

    min_rouge: float = Field(0.01, ge=0, le=1)
    """ROUGE-L F that any two answers must exceed."""

    def per_prompt_only(self) -> bool:
        """Always."""
        return True

    def __call__(self, case: JudgeCase) -> pl.LazyFrame:
        """Scores in [0, 1]; only ranks, so no verdict. A response without an answer is an error, and so is a prompt's only
        one, which nothing can be compared with.
        """
        answers = pl.col("answer")
        scores = answers.map_batches(self._scores, return_dtype=pl.Float64).over("prompt_id")
        rows = case.responses.sort("prompt_id", "answer", "id").with_columns(consensus=scores)
        reason = pl.when(answers.is_null()).then(pl.lit("no answer in the response")).otherwise(
            pl.lit("no other answer to compare it with")
        )  # fmt: skip
        return opinion(rows, pl.col("consensus"), reason)

    def _scores(self, answers: pl.Series) -> pl.Series:
        """Scores of the answers to one prompt."""
        texts = answers.drop_nulls().to_list()
        scores = iter(consensus(texts, self.min_rouge) if len(texts) > 1 else [None] * len(texts))
        return pl.Series([None if a is None else next(scores) for a in answers], dtype=pl.Float64)


def consensus(answers: list[str], min_rouge: float) -> list[float]:
    """The scores of two answers or more."""
    normal = [" ".join(words(answer)) or answer.strip() for answer in answers]
    sizes = [normal.count(text) for text in normal]
    if max(sizes) > 1:
        return [float(size == max(sizes)) for size in sizes]
    rouge = {(a, b): rouge_l(answers[a], answers[b]) for a, b in combinations(range(len(answers)), 2)}
    if min(rouge.values()) <= min_rouge:
        return [0.0] * len(answers)
    # fmean rounds once: answers with the same overlaps are equal, whatever the order of these
    return [fmean(f for pair, f in rouge.items() if n in pair) for n in range(len(answers))]


def rouge_l(first: str, second: str) -> float:
    """ROUGE-L F over words, 2·LCS/(n + m): one less rapidfuzz's normalised Indel distance. 0 where a text has no words."""
    a, b = words(first), words(second)
    return float(Indel.normalized_similarity(a, b)) if a and b else 0.0


def words(text: str) -> list[str]:
    """Lower-case words: runs of letters and digits of any script."""
    return re.findall(r"[^\W_]+", text.lower())
