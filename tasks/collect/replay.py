"""Replayed rows of an ancestor."""

from typing import ClassVar, Literal

import polars as pl
from pydantic import NonNegativeFloat

from tasks.collect import CollectCase, Collecting, Rows
from tasks.core.errors import ParamsError
from tasks.core.frames import seeds


class Replay(Collecting):
    """Rows that an ancestor was trained on, mixed in against forgetting (Robins 1995; for language models Scialom et al.
    2022, arXiv:2205.12393). A row keeps its weight, times this member's.

    Replayed rows were screened against the exam of the ancestor's base and are not screened again, so the ancestor must be
    of the round's own base: an anchor of another one may hold items of this base's exam.
    """

    mixes_in: ClassVar[bool] = True

    share: NonNegativeFloat = 0.25
    """Rows mixed in, as a share of the new ones (0.25: one for four)."""
    of: Literal["parent", "anchor", "grandparent"] = "parent"
    """Whose training rows; the anchor must be of the same base."""

    def read_tables(self) -> frozenset[str]:
        """The ancestor's training rows; every round has its parent's."""
        return frozenset({f"{self.of}_training"} - {"parent_training"})

    def __call__(self, case: CollectCase) -> Rows:
        """`share` × the number of new rows, drawn by a hash of seed and row id; rows that are new again, or had an error,
        are not drawn. Warns when there are fewer.

        Raises:
            ParamsError: when the round has no such ancestor.
        """
        rows = {
            "parent": case.parent_training,
            "anchor": case.anchor_training,
            "grandparent": case.grandparent_training,
        }
        old = rows[self.of]
        if old is None:
            raise ParamsError(
                f"collect: replay has of: {self.of}, but this round has no {self.of}; name one, or take parent"
            )
        old = old.filter(pl.col("error").is_null()).join(case.new.lazy().select("id"), on="id", how="anti")
        order = seeds(pl.lit("replay"), pl.lit(str(case.seed)), "id").alias("order")
        count = round(self.share * len(case.new))
        drawn = old.with_columns(order).sort("order", "id").head(count).drop("order").collect()
        return Rows(drawn.lazy().with_columns(source=pl.lit("replay")), warnings=self._warnings(len(drawn), count))

    def _warnings(self, drawn: int, count: int) -> tuple[str, ...]:
        if drawn == count:
            return ()
        return (f"{drawn} of {count} rows replayed: the {self.of} has no more (share: {self.share:g})",)
