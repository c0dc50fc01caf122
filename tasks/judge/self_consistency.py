"""The share of a prompt's votes that a response's final answer has."""

import polars as pl

from tasks.core.judging import JudgeCase, Judging, opinion


class SelfConsistency(Judging):
    """The share of the prompt's responses that have the same final answer: self-consistency (Wang et al. 2022,
    arXiv:2203.11171). All responses that succeeded count, so one without an answer votes for nobody. Verdict: pass with
    strictly the most votes, fail with fewer than another, none in a tie at the top.
    """

    def per_prompt_only(self) -> bool:
        """Always."""
        return True

    def __call__(self, case: JudgeCase) -> pl.LazyFrame:
        """Scores in (0, 1]; a response without an answer is an error."""
        votes = (
            # rows are gathered by hashes of 64 bits: twice as fast as by texts
            case.responses.with_columns(prompt=pl.col("prompt_id").hash())
            .with_columns(voters=pl.len().over("prompt"), votes=pl.len().over(pl.struct("prompt", "answer").hash()))
            .with_columns(votes=pl.when(pl.col("answer").is_not_null()).then("votes"))
            .with_columns(top_votes=pl.col("votes").max().over("prompt"))
            # every response with a leading answer has `top_votes` votes: more of them than `top_votes` means several leaders
            .with_columns(leading=(pl.col("votes") == pl.col("top_votes")).sum().over("prompt"))
        )
        behind, unique = pl.col("votes") < pl.col("top_votes"), pl.col("leading") == pl.col("top_votes")
        verdict = pl.when(behind).then(pl.lit("fail")).when(unique).then(pl.lit("pass"))
        return opinion(votes, pl.col("votes") / pl.col("voters"), "no answer in the response", verdict)
