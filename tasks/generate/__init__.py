"""Generate: the parent's model answers the round's problems."""

from pathlib import Path

import polars as pl

from tasks import tables
from tasks.domains import Domain
from tasks.engines import Engine
from tasks.stage import Strategy, stage


@stage(outputs=[tables.responses])
def generate(
    params: Strategy, prompts: pl.LazyFrame, parent_model: Path, engine: Engine, domain: Domain, seed: int, cache: Path
) -> pl.LazyFrame:
    """Answers to every usable prompt. A strategy is called as `params(prompts, policy, domain, seed)` with the usable
    prompts as `pl.DataFrame` by id; without any the model is not even loaded.
    """
    usable = prompts.filter(pl.col("error").is_null()).sort("id").collect()
    if usable.is_empty():
        return tables.frame(tables.responses)
    with engine.open(parent_model, cache) as policy:
        return params(usable, policy, domain, seed)
