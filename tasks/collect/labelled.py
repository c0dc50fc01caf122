"""All judged answers, right and wrong, with a label."""

from tasks.collect import CollectCase, Collecting, Rows, after_prompt
from tasks.collect._verdicts import judged


class Labelled(Collecting):
    """Every answer that the round's judge scored, with a label that says whether it is right, the filter's dropped ones too:
    for trainers that learn from right and wrong answers, such as `kto` and `nft`. The group of a row is its prompt. An
    answer that failed, could not be read or was not judged is left out, and never a negative.
    """

    min_reward: float | None = None
    """Reward from which an answer is labelled true, in the reward's own units; null takes the reward judge's verdict, and
    leaves out answers of which it said neither pass nor fail."""

    kept_only: bool = False
    """Only answers that the filter kept, such as the balanced classes of `process_outcome`."""

    def __call__(self, case: CollectCase) -> Rows:
        """One row for each judged response."""
        answers = judged(case, self.min_reward)
        if self.kept_only:
            answers = answers.join(case.filtered.filter("kept").select(response_id="id"), on="response_id", how="semi")
        return Rows(after_prompt(case.prompts, answers, "responses"))
