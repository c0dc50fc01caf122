"""The exception tree.

    FlywheelError                     every error that is a user's to read: one message, exit code 1 (75: try again)
    ├── ParamsError                   params.yaml: every wrong key at once, with its path, value and fix
    ├── UnknownName                   a strategy, round, base, stage … that does not exist; did you mean …
    ├── BrokenPlugin                  a strategy, domain or engine whose file cannot be imported
    ├── StoreError                    a table or folder that is missing, cut short or changed
    │   └── CheckFailed               rows that break a table's checks; the old version stays
    ├── Busy                          another process is running this stage
    ├── ModelRefused                  a model folder that is incomplete, or wants to run code
    ├── EngineError                   an engine that cannot answer at all (down, garbage, out of memory); exit code 75
    ├── StageFailed                   (flows/reproduce.py) a stage's process failed; carries its message
    └── Diverged                      training met NaN, infinity or a loss that exploded; the last good weights stay

A bad *row* is no exception: a failed generation or an unparsable verdict is a row whose `error` column says why. It is
data, is counted, and is never a negative example.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches


class FlywheelError(Exception):
    """An error whose text says what was wrong, where, and what to do."""

    exit_code = 1
    """Of the process that it ends; 75 (EX_TEMPFAIL) where another try may help."""


class ParamsError(FlywheelError):
    """params.yaml does not describe a pipeline."""


class UnknownName(FlywheelError):
    """A name that does not exist; suggests the nearest known ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str], where: str = "") -> None:
        super().__init__(f"{where + ': ' if where else ''}there is no {kind} {name!r}; {suggest(name, known)}")


class BrokenPlugin(FlywheelError):
    """A plug-in's file that cannot be imported."""


class StoreError(FlywheelError):
    """What is on disk is not what its manifest says."""


class CheckFailed(StoreError):
    """Rows that break a table's checks were about to be written."""


class Busy(FlywheelError):
    """Another process holds the lock of this stage."""


class ModelRefused(FlywheelError):
    """A model folder that is not loaded: incomplete, not safetensors, or with code of its own."""


class EngineError(FlywheelError):
    """The engine as a whole cannot answer."""

    exit_code = 75


class Diverged(FlywheelError):
    """Training met a loss or gradient that is not finite, or that exploded."""


def suggest(name: str, known: Iterable[str]) -> str:
    """A hint for a mistyped `name`: the nearest known names, or all of them."""
    known = sorted(known)
    near = get_close_matches(name, known, n=2, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(repr(n) for n in near)}?"
    return f"known: {', '.join(known)}" if known else "none is known"


def printable(text: str) -> str:
    """A text whose control characters, invisible ones and lone surrogates are escaped, line breaks too: shown, it cannot move
    the cursor or pass for another.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def masked(text: str) -> str:
    """A text with users and passwords removed from its URIs. A secret key may have slashes; what looks like a port is none."""
    return re.sub(r"//(?:[^/\s]*|[^/\s@]*:(?!\d+(?:/|\s|$))[^\s@]*)@", "//", text)
