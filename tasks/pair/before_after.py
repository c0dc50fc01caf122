"""What the tuned model says against what the untuned one says."""

import polars as pl

from tasks.pair import PairCase, Pairing
from tasks.pair._choices import LIKELIEST, with_texts


class BeforeAfter(Pairing):
    """Prefers the answer of the tuned model to that of the model before tuning, on prompts without labels:
    self-reinforcement (Tong et al. 2024, arXiv:2405.04086).

    Our reading: a model's answer is its likeliest one (highest mean log-probability, then the first by id) of those
    written without a hint. The paper's self-filtering is the reward, which must prefer the tuned model's answer too, by
    `min_margin`. Both models answer in this round, as with `generate: {ensemble: {models: [parent, base]}}`.
    """

    after: str = "parent"
    """Author of the chosen answers: the tuned model."""
    before: str = "base"
    """Author of the rejected answers: the model before tuning."""

    def reads_logprobs_of(self) -> frozenset[str]:
        """The responses."""
        return frozenset({"responses"})

    def per_prompt_only(self) -> bool:
        """Always."""
        return True

    def __call__(self, case: PairCase) -> pl.LazyFrame:
        """One candidate a prompt that both models answered."""
        after, before = (self._likeliest(case, author) for author in (self.after, self.before))
        chosen = after.select("prompt_id", chosen_id="id", chosen_score="score")
        rejected = before.select("prompt_id", rejected_id="id", rejected_score="score")
        return with_texts(chosen.join(rejected, on="prompt_id"), case.responses)

    def _likeliest(self, case: PairCase, author: str) -> pl.LazyFrame:
        own = case.responses.filter(pl.col("author") == author, pl.col("hinted").ne_missing(True)).sort(**LIKELIEST)
        return own.unique("prompt_id", keep="first", maintain_order=True)
