"""All judged answers, right and wrong, with a label."""

from tasks.collect import CollectCase, Collecting, Rows, after_prompt
from tasks.collect._verdicts import judged


class Labelled(Collecting):
    """Every answer that the round's judge scored, the filter's dropped ones too, as single labels: for trainers that learn
    from right and wrong answers, such as `kto` and `nft`. The group of a row is its prompt. An answer that failed, could
    not be read or was not judged is never one of them.
    """

    min_reward: float | None = None
    """Reward from which an answer is labelled true, in the reward's own units; null takes the reward judge's verdict, and
    leaves out answers of which it said neither pass nor fail."""

    def __call__(self, case: CollectCase) -> Rows:
        """One row for each judged response."""
        return Rows(after_prompt(case.prompts, judged(case, self.min_reward), "responses"))
