"""What strategies that learn from single labels share."""

import polars as pl

from tasks.core.errors import ParamsError


def check_labels(strategy: str, rows: pl.DataFrame, *columns: str) -> None:
    """Raises ParamsError where a row of `training` lacks one of these columns, with the source that gave it."""
    for column in columns:
        bare = rows.filter(pl.col(column).is_null())
        if len(bare):
            raise ParamsError(
                f"train: {len(bare)} rows of training from collect.{bare['member'][0]} have no {column}, which "
                f"train.{strategy} learns from; take that source away, or one that gives a {column}, such as collect.labelled"
            )
