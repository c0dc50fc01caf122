"""The page of `flywheel report --html` over live data: drawn in a thread, and again when a round changed."""

import threading
from pathlib import Path

from tasks.core import store
from tasks.core.errors import FlywheelError
from tasks.project import params

PATIENCE = 1.2
"""Seconds that a request waits for the page."""


class Report:
    """The last page that was drawn."""

    def __init__(self, root: Path) -> None:
        self.root, self.lock = root, threading.Lock()
        self.version: object = None
        self.html: str | None = None
        self.error: FlywheelError | None = None
        self.drawing: threading.Thread | None = None

    def page(self) -> str | None:
        """The page as the project is now; None while it is being drawn.

        Raises:
            FlywheelError: why it cannot be drawn.
        """
        with self.lock:
            version = self._version()
            if version != self.version and (self.drawing is None or not self.drawing.is_alive()):
                self.version, self.html, self.error = version, None, None
                self.drawing = threading.Thread(target=self._draw, daemon=True)
                self.drawing.start()
            drawing = self.drawing
        if drawing is not None:
            drawing.join(PATIENCE)
        if self.error is not None:
            raise self.error
        return self.html

    def _draw(self) -> None:
        from tasks.views import page

        try:
            self.html = page.html(self.root)
        except FlywheelError as error:
            self.error = error
        except Exception as error:  # of a thread nobody would hear
            self.error = FlywheelError(f"the page cannot be drawn: {type(error).__name__}: {error}")

    def _version(self) -> list[tuple[str, int, int]]:
        """Files that decide the page: the manifests of all rounds, params.yaml and people's labels."""
        data = self.root / "data"
        files = [self.root / params.FILE, *data.glob("round=*/manifests/*.json"), *data.glob("labels/*.jsonl")]
        for name in {path.parents[1].name.removeprefix("round=") for path in data.glob("round=*/manifests/*.json")}:
            store.recover(store.round_folder(self.root, name))
        return sorted((str(f), f.stat().st_ino, f.stat().st_mtime_ns) for f in files if f.is_file())
