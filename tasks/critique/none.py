"""No critiques."""

from typing import Any

import polars as pl

from tasks import tables
from tasks.stage import Result, Strategy


class NoCritiques(Strategy):
    """Leaves criticism out: both tables are empty, the model is not loaded."""

    def __call__(self, *frames: pl.LazyFrame, **context: Any) -> Result:
        """Empty `critiques` and `refinements`."""
        return Result({t.name: tables.frame(t) for t in (tables.critiques, tables.refinements)})
