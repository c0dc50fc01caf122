"""Faults that are tried many times. `make torture` makes all tries, the tests a tenth of them.

A test of the fault matrix in docs/reliability.md is marked `torture(fault, promise)` and takes the fixture `tries`:

    @pytest.mark.torture("`kill -9` while a table is written", "the old version or the new one, whole")
    def test_a_killed_writer(tries):
        for attempt in tries(40):
            ...

The rows of the matrix are printed when the tests end, with the number of tries and the command of each.
"""

import os
from collections.abc import Iterator

import pytest

ALL = "FLYWHEEL_TORTURE"
"""The variable that asks for all tries."""
SHARE = 10
"""Of how many tries one is made otherwise."""


class Tries:
    """Counts the tries that a test makes of a fault."""

    def __init__(self, record) -> None:
        self._record = record

    def __call__(self, most: int) -> Iterator[int]:
        """The numbers of the tries, out of `most`: all of them, or every tenth. The count stands in the matrix."""
        for made, attempt in enumerate(range(0, most, 1 if os.environ.get(ALL) else SHARE), start=1):
            self._record("tries", made)
            yield attempt


def marks(item: pytest.Item) -> list[tuple[str, object]]:
    """What the matrix says of a test's fault, kept with its result."""
    mark = item.get_closest_marker("torture")
    return [("fault", mark.args[0]), ("promise", mark.args[1])] if mark else []


def matrix(reports: list[pytest.TestReport]) -> list[str]:
    """The table's lines, a row a fault; empty where none was tried."""
    rows = []
    for report in reports:
        facts = dict(report.user_properties)  # of several counts the last
        if "fault" in facts and (report.when == "call" or report.failed):
            result = "as promised" if report.passed else "**broken**"
            rows.append(
                f"| {facts['fault']} | {facts['promise']} | {facts.get('tries', 1)} | {result} | `{report.nodeid}` |"
            )
    return ["| fault | promise | tries | result | test |", "|---|---|---|---|---|", *sorted(rows)] if rows else []
