"""Generate: the parent's model answers the round's problems."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from tasks import tables
from tasks.domains import Domain
from tasks.engines import Engine
from tasks.stage import Result, Strategy, stage

PIECE = 16_384
"""Prompts that are answered at once: many for an engine to batch as it likes, few for memory to hold."""


@stage(outputs=[tables.responses])
def generate(
    params: Strategy, prompts: pl.LazyFrame, parent_model: Path, engine: Engine, domain: Domain, seed: int, cache: Path
) -> Result:
    """Answers to every usable prompt.

    A strategy is called as `params(prompts, policy, domain, seed)` with some of them as `pl.DataFrame` by id, and gives
    their responses; without any prompt the model is not even loaded.
    """

    def answered() -> Iterator[pl.LazyFrame]:
        usable = prompts.filter(pl.col("error").is_null())
        ids = usable.select("id").collect()["id"].sort()
        if ids.is_empty():
            return
        with engine.open(parent_model, cache) as policy:
            for start in range(0, len(ids), PIECE):
                piece = ids[start : start + PIECE]
                some = usable.filter(pl.col("id") >= piece[0], pl.col("id") <= piece[-1])
                yield params(some.sort("id").collect(), policy, domain, seed)

    return Result({"responses": answered()})
