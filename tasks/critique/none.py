"""No critiques."""

from typing import Any

import polars as pl

from tasks.critique import CRITIQUES, REFINEMENTS
from tasks.stage import Result, Strategy


class NoCritiques(Strategy):
    """Leaves criticism out: both tables are empty, the model is not loaded."""

    def __call__(self, *tables: pl.LazyFrame, **context: Any) -> Result:
        """Empty `critiques` and `refinements`."""
        return Result({"critiques": pl.DataFrame(schema=CRITIQUES), "refinements": pl.DataFrame(schema=REFINEMENTS)})
