"""What a check of `flywheel doctor` finds."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from tasks.project.params import Pipeline


@dataclass(frozen=True)
class Finding:
    """One result of a check."""

    status: Literal["ok", "warn", "broken"]
    subject: str
    text: str
    fix: str = ""


ok, warn, broken = (partial(Finding, status) for status in ("ok", "warn", "broken"))
Check = Callable[[Path, Pipeline | None], Iterator[Finding]]
