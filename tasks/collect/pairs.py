"""Preference pairs."""

import polars as pl

from tasks.collect import CollectCase, Collecting, Rows
from tasks.core.frames import ids


class Pairs(Collecting):
    """The round's preference pairs, for trainers that learn from pairs. Members of `pair` that agree on a pair give it once:
    that of the first member, by the alphabet.
    """

    def __call__(self, case: CollectCase) -> Rows:
        """One row of `preferences` for each chosen and rejected answer."""
        answers = ["prompt_id", "chosen_id", "rejected_id"]
        pairs = case.pairs.sort("member", "id").unique(answers, keep="first", maintain_order=True)
        columns = [*answers, "source", "prompt", "chosen", "rejected", "weight", "smoothing"]
        rows = pairs.select(ids(pl.lit("preferences"), *answers), *columns)
        return Rows(preferences=rows)
