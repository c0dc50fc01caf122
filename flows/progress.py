"""Progress of a flow: a line for each stage that ended; while stages run, a status line on a terminal, and in Prefect's UI a
line of log every `EVERY` seconds and the progress artifact `progress`.

How long a stage takes is guessed from its last run, in this round or the nearest ancestor that has one.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from rich.console import Console
from rich.markup import escape
from rich.status import Status

from flows.reproduce import Reproduced
from tasks.core import store
from tasks.core.errors import FlywheelError
from tasks.project.params import load_params

EVERY = 10.0
"""Seconds between two lines about stages that are still running."""
UNKNOWN = 30.0
"""Seconds that count for a stage that never ran."""
Report = Callable[[float, str], None]
"""Is told the share that is done, in [0, 1], and what is running."""


class Progress:
    """Counts the stages of a flow run and prints a line for each: `[ 7/29] generate@r1  12.3 s  responses 5600`."""

    def __init__(self, root: Path, items: Sequence[str], report: Report = lambda share, text: None) -> None:
        self.root, self.items, self.total, self.count = root, items, len(items), 0
        self.expected = expected_seconds(root, items)
        self.report, self.reported = report, time.perf_counter()
        self.done: set[str] = set()
        self.running: dict[str, float] = {}
        self.console = Console(highlight=False, soft_wrap=True)
        self.status = Status("", console=self.console)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.status.stop()

    def started(self, item: str) -> None:
        """A stage was started."""
        self.running[item] = time.perf_counter()
        self.status.update(f"running {', '.join(self.running)}")

    def tick(self) -> None:
        """Says what is running, every `EVERY` seconds."""
        if time.perf_counter() - self.reported >= EVERY:
            self.status.update(text := self._running())
            self._report(text)

    def _report(self, text: str) -> None:
        self.reported = time.perf_counter()
        self.report(self.share, text)

    @property
    def share(self) -> float:
        """The share of the expected seconds that is over; a running stage counts up to 95 % of its own."""
        weights = {item: self.expected.get(item, UNKNOWN) for item in self.items}
        over = sum(min(self._seconds(item), 0.95 * weights[item]) for item in self.running)
        return (over + sum(weights[item] for item in self.done)) / (sum(weights.values()) or 1)

    def _running(self) -> str:
        return f"running {', '.join(self._state(item) for item in self.running)}"

    def _state(self, item: str) -> str:
        expected = self.expected.get(item)
        return f"{item} for {self._seconds(item):.0f} s" + (f" of about {expected:.0f} s" if expected else "")

    def _seconds(self, item: str) -> float:
        return time.perf_counter() - self.running[item]

    def finished(self, outcome: Reproduced) -> None:
        """A stage is up to date."""
        result = rows(self.root, outcome.address) if outcome.ran else "was up to date"
        self._line(outcome.address, ", ".join(filter(None, (result, outcome.taken))))
        for warning in manifest_of(self.root, outcome.address).warnings if outcome.ran else ():
            self.console.print(f"[yellow]warning: {outcome.address}: {escape(warning)}[/]")

    def failed(self, item: str) -> None:
        """A stage failed; the flow's error carries its message."""
        self._line(item, "[red]failed[/]")

    def _line(self, item: str, result: str) -> None:
        self.count += 1
        seconds = time.perf_counter() - self.running.pop(item)
        position = f"\\[{self.count:{len(str(self.total))}}/{self.total}]"
        self.console.print(f"{position} {item:<18}{seconds:7.1f} s  {result}")
        self.done.add(item)
        self.status.update(text := self._running() if self.running else "")
        self._report(text)


def published(items: Sequence[str]) -> Report:
    """Reports to Prefect: a line of log where a stage has run for long, and an artifact with the share that is done."""
    log = get_run_logger()
    if not items:
        return lambda share, text: None
    artifact = create_progress_artifact(0.0, key="progress", description=f"{len(items)} stages")

    def report(share: float, text: str) -> None:
        if text:
            log.info(text)
        try:
            update_progress_artifact(
                artifact, progress=round(100 * share, 1), description=text or f"{len(items)} stages"
            )
        except Exception as error:  # the server may be away for a moment
            log.debug(f"progress is not shown: {error}")

    return report


def expected_seconds(root: Path, items: Sequence[str]) -> dict[str, float]:
    """Seconds that stages took when they ran last, in the same round or its nearest ancestor; without those that never ran."""
    found: dict[str, float] = {}
    with suppress(FlywheelError):  # of params.yaml, which whoever runs the stages reports
        params = load_params(root)
        for item in items:
            group, _, name = item.partition("@")
            for block in reversed(params.lineage(name)):
                if manifest := store.manifests(root, block.name).get(group.removesuffix("-base")):
                    found[item] = sum(manifest.seconds.values())
                    break
    return found


def rows(root: Path, address: str) -> str:
    """Names and row counts of the tables that a stage wrote, as in `responses 5600`."""
    outputs = manifest_of(root, address).outputs
    counts = {n: o.rows for n, o in outputs.items() if o.rows}
    return ", ".join(f"{n} {count}" for n, count in counts.items()) or ", ".join(outputs)


def manifest_of(root: Path, address: str) -> store.Manifest:
    """The manifest of a stage by its address."""
    group, _, name = address.partition("@")
    return store.manifests(root, name)[group.removesuffix("-base")]
