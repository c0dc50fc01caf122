"""Kept critiques."""

from tasks.collect import CollectCase, Collecting, Rows, with_completion


class Critiques(Collecting):
    """Critiques that were kept, after the critic's own prompt, so that the model learns to criticise. Their group is the
    criticised response: critiques of one prompt's several answers have different prompts.
    """

    def __call__(self, case: CollectCase) -> Rows:
        """One row for each kept critique."""
        rows = case.critiques.filter("kept")
        rows = rows.select("prompt_id", "model", "prompt", response_id="id", text="critique", group="response_id")
        return Rows(with_completion(rows, "critiques"))
