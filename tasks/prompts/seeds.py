"""Problems that people wrote: the domain's own, or a file of JSON lines."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import polars as pl
from pydantic import PositiveInt

from tasks.core.errors import FlywheelError
from tasks.domains import Domain, Item
from tasks.domains._jsonl import json_lines
from tasks.prompts import FROZEN, PromptsCase, Screening

KEYS = ("problem", "prompt", "instruction")
LINE = 'a line is {"problem": "…"}, with "level" and "reference" where there are any'


class Seeds(Screening):
    """Takes problems that people wrote, the same in every round, as in STaR (Zelikman et al. 2022, arXiv:2203.14465) and RFT
    (Yuan et al. 2023, arXiv:2308.01825). Near-duplicates and evaluation items are rejected.
    """

    example: ClassVar[dict[str, Any]] = {"count": 12, "evaluation": {"heldout": 50}}

    path: Path | None = None
    """JSONL file of problems, gzipped or not; under `data/seeds` DVC sees its edits. Null takes the domain's own. A line
    is an object with the text as `problem`, `prompt` or `instruction`, and with `level` and `reference` where there are any;
    other keys are ignored."""
    split: Literal["seeds", "train"] = "seeds"
    """Which of the domain's sets, without a `path`."""
    count: PositiveInt = 1000
    """Most problems taken: a file's first ones."""

    def __call__(self, case: PromptsCase) -> pl.LazyFrame:
        """The problems, screened in their order."""
        intake = self.intake(case)
        for item, text in self._problems(case.domain):
            intake.add(item, text)
        return intake.table()

    def _problems(self, domain: Domain) -> Iterator[tuple[Item | None, str]]:
        if self.path is None:
            yield from ((item, item.problem) for item in domain.items(self.split, self.count, FROZEN))
            return
        for _, (where, line) in zip(range(self.count), json_lines(self.path, LINE), strict=False):
            yield read(where, line, domain)


def read(where: str, line: dict[str, Any], domain: Domain) -> tuple[Item | None, str]:
    """The problem of a line, and its text; None and the text for one that is not of the domain.

    Raises:
        FlywheelError: when the line has no text, or a level or reference of the wrong kind.
    """
    text = next((line[key] for key in KEYS if line.get(key)), None)
    level, reference = line.get("level"), line.get("reference")
    if not isinstance(text, str) or not text.strip():
        raise FlywheelError(f"{where}: no text in {' or '.join(map(repr, KEYS))}: {str(line)[:80]}; {LINE}")
    if level is not None and (not isinstance(level, int) or isinstance(level, bool) or level < 1):
        raise FlywheelError(
            f"{where}: 'level' is {level!r}, expected a whole number from 1; leave it out where there is none"
        )
    if reference is not None and not isinstance(reference, str | int | float):
        raise FlywheelError(
            f"{where}: 'reference' is {str(reference)[:80]!r}, expected text; leave it out where there is none"
        )
    parsed = domain.parse(text)
    if parsed is None:
        return None, text
    return Item(parsed.problem, level or parsed.level, None if reference is None else str(reference)), text
