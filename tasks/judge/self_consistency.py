"""The share of a prompt's votes that a response's final answer has."""

import polars as pl

from tasks.judge import Case, opinion
from tasks.stage import Strategy


class SelfConsistency(Strategy):
    """Vote share of the extracted answer (Wang et al. 2022, arXiv:2203.11171): equal answers over all responses that
    came back, so one without an answer votes for nobody. Verdict: pass with strictly the most votes, fail with fewer
    than another, none in a tie at the top.
    """

    def apart(self) -> bool:
        """Always."""
        return True

    def __call__(self, case: Case) -> pl.LazyFrame:
        """Scores in (0, 1]; a response without an answer is an error."""
        counted = (
            # rows are gathered by hashes of 64 bits: twice as fast as by texts
            case.responses.with_columns(prompt=pl.col("prompt_id").hash())
            .with_columns(voters=pl.len().over("prompt"), votes=pl.len().over(pl.struct("prompt", "answer").hash()))
            .with_columns(votes=pl.when(pl.col("answer").is_not_null()).then("votes"))
            .with_columns(most=pl.col("votes").max().over("prompt"))
            # every vote of a leading answer has `most` votes: more of these than `most` means several leaders
            .with_columns(leading=(pl.col("votes") == pl.col("most")).sum().over("prompt"))
        )
        behind, alone = pl.col("votes") < pl.col("most"), pl.col("leading") == pl.col("most")
        verdict = pl.when(behind).then(pl.lit("fail")).when(alone).then(pl.lit("pass"))
        return opinion(counted, pl.col("votes") / pl.col("voters"), "no answer in the response", verdict)
