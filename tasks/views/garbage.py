"""What `flywheel gc` says before it deletes anything."""

from collections import Counter
from collections.abc import Iterator

from tasks.project.garbage import Garbage

SHOWN = 10
"""Names that are listed; the others are counted."""


def lines(garbage: Garbage) -> Iterator[str]:
    """What is kept, and what would be deleted."""
    kept = f"{garbage.place.url}: {garbage.kept:,} objects are named by a working tree or one of {garbage.revisions} versions of dvc.lock"
    yield f"{kept}; {garbage.young:,} that nothing names were made or taken within the last day and stay"
    if garbage.elsewhere:
        yield f"{garbage.elsewhere} manifests of older revisions are neither here nor in DVC's cache: their parts were never here"
    if not garbage.unnamed:
        yield "There is nothing to delete."
        return
    counts = Counter(entry.name.partition("/")[0] for entry in garbage.unnamed)
    total = sum(entry.bytes for entry in garbage.unnamed)
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items(), reverse=True))
    yield f"Nothing names {kinds}, {_size(total)} in all{_of(garbage.rounds)}:"
    yield "(What others have not pushed, or this clone has not fetched, is not seen: `git fetch --all` first.)"
    for entry in garbage.unnamed[:SHOWN]:
        yield f"  {entry.name}  {_size(entry.bytes)}"
    if (more := len(garbage.unnamed) - SHOWN) > 0:
        yield f"  and {more:,} more"


def _of(rounds: set[str]) -> str:
    return f", results of {', '.join(sorted(rounds))}" if rounds else ""


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if unit != "bytes" else f"{count:.0f} bytes"
        count /= 1000
    return f"{count:,.3g} TB"
