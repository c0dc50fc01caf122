"""Workers that a native library takes down: their tests run once more.

pytest and tests set variables of the process, and where a thread of a library reads one meanwhile, glibc before 2.41 reads freed
memory; docs/log.md has what was found. pytest-xdist gives the rest of a lost worker's file, and the test that it was at, to another
one. Here that test's first crash is counted as `rerun` and told in the summary; a second one is a failure.
"""

from typing import Any

import pytest

CRASHED: list[str] = []
"""Tests at which a worker died."""


def rerun(test: str, report: pytest.TestReport, scheduler: Any) -> None:
    """Has a worker's death count as no failure of the test that it was at, the first time. xdist 3.8 also gives the files that
    the worker had ended to others, which have nothing to do then and wait for ever: these are taken away again.
    """
    queue = getattr(scheduler, "workqueue", {})  # `--dist load` has none, and no files
    for file in [file for file, tests in queue.items() if all(tests.values())]:
        del queue[file]
    if test not in CRASHED:
        CRASHED.append(test)
        report.outcome = "rerun"  # type: ignore[assignment]


def lines() -> list[str]:
    """What the summary says of them."""
    return [f"a worker died while it ran {test}, which was run again" for test in CRASHED]
