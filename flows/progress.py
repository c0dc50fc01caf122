"""Progress of a flow: a line for each stage that ended and, on a terminal, a status line of what is running."""

import time
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.status import Status

from flows.reproduce import Reproduced
from tasks.core import store


class Progress:
    """Counts the stages of a flow run and prints a line for each: `[ 7/29] generate@r1  12.3 s  responses 5600`."""

    def __init__(self, root: Path, total: int) -> None:
        self.root, self.total, self.count = root, total, 0
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

    def finished(self, outcome: Reproduced) -> None:
        """A stage is up to date."""
        self._line(outcome.address, rows(self.root, outcome.address) if outcome.ran else "was up to date")
        for warning in manifest_of(self.root, outcome.address).warnings if outcome.ran else ():
            self.console.print(f"[yellow]warning: {outcome.address}: {warning}[/]")

    def failed(self, item: str) -> None:
        """A stage failed; the flow's error carries its message."""
        self._line(item, "[red]failed[/]")

    def _line(self, item: str, result: str) -> None:
        self.count += 1
        seconds = time.perf_counter() - self.running.pop(item)
        position = f"\\[{self.count:{len(str(self.total))}}/{self.total}]"
        self.console.print(f"{position} {item:<18}{seconds:7.1f} s  {result}")
        self.status.update(f"running {', '.join(self.running)}")


def rows(root: Path, address: str) -> str:
    """Names and row counts of the tables that a stage wrote, as in `responses 5600`."""
    outputs = manifest_of(root, address).outputs
    counts = {n: o.rows for n, o in outputs.items() if o.rows}
    return ", ".join(f"{n} {count}" for n, count in counts.items()) or ", ".join(outputs)


def manifest_of(root: Path, address: str) -> store.Manifest:
    """The manifest of a stage by its address."""
    group, _, name = address.partition("@")
    return store.manifests(root, name)[group.removesuffix("-base")]
