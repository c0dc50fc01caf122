"""Several models vote, each as heavily as it agrees with itself."""

import polars as pl

from tasks.core.judging import JudgeCase, Judging
from tasks.judge._votes import DIGITS, elected, share, weighted_votes

VOTER = pl.coalesce("author", "model", pl.lit(""))


class Collective(Judging):
    """The answer's share of several models' votes, each model weighing as much as it agrees with itself: RLCCF,
    reinforcement learning from coevolutionary collective feedback (Yuan et al. 2025, arXiv:2508.12338).

    Our reading of its abstract, which says that the models vote and each is weighted by its own self-consistency:
    authors are the models that a round's `generate` opened, by the name by which it opened them. An author's weight is
    the mean, over the prompts that it answered, of the share that its own majority answer has among its answers to the
    prompt. The score of a response is the weighted share of the votes for its answer. One sample a prompt agrees with
    itself always, so such an author weighs 1: give every author several samples.
    """

    within: bool = False
    """True counts votes within each author first, so that each has one vote a prompt, which it splits as its answers do,
    however many samples it drew. False counts over all: each response has one vote of its author's weight."""

    def needs_overview(self) -> bool:
        """Always: the authors' weights."""
        return True

    def summary(self, case: JudgeCase) -> pl.LazyFrame:
        """How many prompts an author's majority answer has each share of."""
        votes = case.responses.drop_nulls("answer").with_columns(voter=VOTER)
        counts = votes.group_by("voter", "prompt_id", "answer").len("count").group_by("voter", "prompt_id")
        shares = counts.agg(share=pl.col("count").max() / pl.col("count").sum())
        return shares.group_by("voter", "share").len("prompts")

    def fold(self, summaries: pl.LazyFrame) -> pl.DataFrame:
        """`consistency` of each `voter`."""
        shares = pl.col("share").repeat_by("prompts").explode().sort()  # float sums depend on the order
        return summaries.group_by("voter").agg(consistency=shares.mean().round(DIGITS)).collect()

    def __call__(self, case: JudgeCase) -> pl.LazyFrame:
        """Scores in [0, 1]; a response without an answer is an error. Verdicts as of a vote."""
        weights = self.overview(case).lazy()
        rows = case.responses.with_columns(voter=VOTER).join(weights, on="voter", how="left")
        answered = pl.col("answer").count().over("prompt_id", "voter")
        vote = pl.col("consistency") / answered if self.within else pl.col("consistency")
        return elected(weighted_votes(rows, vote), share(), "its author has no vote")
