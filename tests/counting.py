"""An engine that counts how many of its models are open."""

from contextlib import contextmanager

from tasks.engines.fake import Fake


def counting() -> tuple[type[Fake], list[tuple[str, int]]]:
    """The engine's class, and what its openings are written to: each model, and how many are open with it."""
    opened: list[str] = []
    openings: list[tuple[str, int]] = []

    class Counting(Fake):
        @contextmanager
        def open(self, model, cache=None):
            opened.append(str(model))
            openings.append((str(model), len(opened)))
            with super().open(model, cache) as policy:
                yield policy
            opened.remove(str(model))

    return Counting, openings
