"""The tag of a row, as it enters the text that is trained on."""

import polars as pl

SEPARATOR = " "
"""Between a tag and the text."""


def with_tags(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of `training` with their tag before the text of the completion's first turn; those without one as they are."""
    first = pl.col("completion").list.first()
    text = pl.concat_str("tag", first.struct.field("content"), separator=SEPARATOR)
    turn = pl.concat_list(pl.struct(role=first.struct.field("role"), content=text))
    tagged = pl.concat_list(turn, pl.col("completion").list.slice(1))
    return rows.with_columns(completion=pl.when(pl.col("tag").is_null()).then("completion").otherwise(tagged))


def tag_length(tag: str | None) -> int:
    """Characters that a tag puts before the text."""
    return 0 if tag is None else len(tag + SEPARATOR)
