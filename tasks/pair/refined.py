"""A refinement that succeeded against the failed answer that it refines."""

import polars as pl

from tasks.pair import PairCase, Pairing


class Refined(Pairing):
    """Pairs each failed response with the likeliest of its successful refinements, which is chosen.

    It is the wrong→right case of self-correction learning (SCL, He et al. 2024, arXiv:2410.04055): the pair's prompt is
    the original question, so the critique is needed only to make the data. A refinement has no reward of its own. It must
    have the target's answer, and its score is the best reward of a response with that answer (for a vote: the majority's).
    """

    def reads_logprobs_of(self) -> frozenset[str]:
        """The refinements."""
        return frozenset({"refinements"})

    def per_prompt_only(self) -> bool:
        """Always."""
        return True

    def __call__(self, case: PairCase) -> pl.LazyFrame:
        """One candidate a response that was refined with success."""
        likeliest = (
            case.refinements.filter(pl.col("success") & pl.col("error").is_null())
            .join(case.targets.select("prompt_id", answer="target"), on=["prompt_id", "answer"])
            .sort("mean_logprob", "id", descending=[True, False], nulls_last=True)
            .unique("response_id", keep="first", maintain_order=True)
            .select("response_id", "answer", chosen_id="id", chosen="response")
        )
        rejected = case.responses.select("prompt_id", response_id="id", rejected="response", rejected_score="score")
        scores = case.responses.group_by("prompt_id", "answer").agg(chosen_score=pl.col("score").max())
        pairs = likeliest.join(rejected, on="response_id").join(scores, on=["prompt_id", "answer"])
        return pairs.rename({"response_id": "rejected_id"}).with_columns(source=pl.lit("refinements"))
