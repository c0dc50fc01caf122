"""People's labels are the verdict."""

from pathlib import Path

import polars as pl

from tasks.core import frames, labels
from tasks.core.judging import OPINION, JudgeCase, Judging, Opinion, failure

UNLABELLED = failure("nobody has labelled it")


class Labels(Judging):
    """The share of the people who labelled the answer that call it right, from `data/labels`, where `flywheel browse` keeps
    labels; pass or fail as most of them say.

    A label belongs to a text: it holds for the same answer to the same problem in every round, and no longer for a row that
    was made again with another text. An answer that nobody labelled, or on which people are divided evenly, is an error and
    no verdict, so nothing follows from it. As the reward it trains on what people have seen; beside another reward it shows
    how good that one is, and filters can ask for it.
    """

    path: Path = labels.FOLDER
    """The folder of all labels, or the file of one person in it."""

    def per_prompt_only(self) -> bool:
        """Always."""
        return True

    def __call__(self, case: JudgeCase) -> pl.LazyFrame:
        """Scores in [0, 1] of the labelled answers."""
        opinions = {text: _opinion(people) for text, people in labels.of_texts(labels.read(self.path)).items()}

        def look_up(digests: pl.Series) -> pl.Series:
            return pl.Series([opinions.get(digest, UNLABELLED) for digest in digests], dtype=OPINION)

        digest = frames.ids("problem", "response")
        said = digest.map_batches(look_up, return_dtype=OPINION, is_elementwise=True).alias("opinion")
        return case.with_problems().select(pl.col("id").alias("response_id"), "prompt_id", said).unnest("opinion")


def _opinion(people: dict[str, labels.Label]) -> Opinion:
    """What people say of one answer."""
    right = sum(label.label == "right" for label in people.values())
    wrong = len(people) - right
    if right == wrong:
        return failure(f"people are divided: {right} right, {wrong} wrong")
    notes = "\n".join(label.note for _, label in sorted(people.items()) if label.note)
    verdict = "pass" if right > wrong else "fail"
    return {"score": right / len(people), "verdict": verdict, "rationale": notes or None, "error": None}
