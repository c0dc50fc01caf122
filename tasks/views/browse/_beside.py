"""What takes longer than a person waits: made in a thread, kept, and made again when a file of the project changed."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from tasks.core import labels, store
from tasks.core.errors import FlywheelError
from tasks.project import champion, params

T = TypeVar("T")
PATIENCE = 1.0
"""Seconds that a request waits for it."""


class Beside(Generic[T]):
    """The last value of a function of the project."""

    def __init__(self, root: Path, make: Callable[[], T]) -> None:
        self.root, self.make, self.lock = root, make, threading.Lock()
        self.version: object = None
        self.value: T | None = None
        self.error: FlywheelError | None = None
        self.thread: threading.Thread | None = None

    def get(self) -> T | None:
        """The value for the project as it is now; None while it is being made.

        Raises:
            FlywheelError: why it cannot be made.
        """
        with self.lock:
            version = _version(self.root)
            if version != self.version and (self.thread is None or not self.thread.is_alive()):
                self.version, self.value, self.error = version, None, None
                self.thread = threading.Thread(target=self._run, daemon=True)
                self.thread.start()
            thread = self.thread
        if thread is not None:
            thread.join(PATIENCE)
        if self.error is not None:
            raise self.error
        return self.value

    def _run(self) -> None:
        try:
            self.value = self.make()
        except FlywheelError as error:
            self.error = error
        except Exception as error:  # of a thread nobody would hear
            self.error = FlywheelError(f"{type(error).__name__}: {error}")


def _version(root: Path) -> list[tuple[str, int, int]]:
    """The files that decide what is shown: the manifests of all rounds, params.yaml, people's labels and decisions."""
    manifests = list((root / "data").glob("round=*/manifests/*.json"))
    for place in {path.parents[1] for path in manifests}:
        store.recover(place)
    files = [root / params.FILE, *manifests, *(root / labels.FOLDER).glob(f"*{labels.SUFFIX}")]
    files += (root / champion.DECISION).parent.glob("*")
    return sorted((str(f), f.stat().st_ino, f.stat().st_mtime_ns) for f in files if f.is_file())
