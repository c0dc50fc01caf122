"""Critique: the parent's critiques of its own wrong answers, and the answers that it gives after reading them.

A strategy is called as `params(prompts, responses, judgments, engine=…, model=…, domain=…, seed=…, cache=…)` with lazy
frames and gives a `Result` with the frames `critiques` and `refinements`. It opens the engine itself: one that asks
nothing of the model does not load it.
"""

from pathlib import Path

import polars as pl

from tasks import tables
from tasks.domains import Domain
from tasks.engines import Engine
from tasks.stage import Result, Strategy, stage


@stage(outputs=[tables.critiques, tables.refinements])
def critique(
    params: Strategy,
    prompts: pl.LazyFrame,
    responses: pl.LazyFrame,
    judgments: pl.LazyFrame,
    parent_model: Path,
    engine: Engine,
    domain: Domain,
    seed: int,
    cache: Path,
) -> Result:
    """Criticises wrong answers of the round, and refines them by these critiques."""
    context = {"engine": engine, "model": parent_model, "domain": domain, "seed": seed, "cache": cache}
    return params(prompts, responses, judgments, **context)
