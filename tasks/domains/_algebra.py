r"""The value of LaTeX such as `3\sqrt{16}`, by math-verify in a process of its own: what a model writes can keep computer algebra
busy for ever and fill all memory.

One process serves a stage. It starts at the first expression, takes one at a time, from any thread, and is replaced when it
ends. An expression may take 2 s of the processor and 1 GiB. It is the processor's time, so other work of the machine decides
nothing; but a slower machine may give up where a faster one answers.
"""

import atexit
import os
import signal
import subprocess
import sys
import threading
from functools import lru_cache
from multiprocessing.connection import Pipe

from tasks.core.errors import FlywheelError
from tasks.domains import _compute

START = 120.0
"""Seconds until a process must be ready."""
STUCK = 60.0
"""Seconds by the clock after which a process that does not answer is ended, whatever it has computed."""


class Overrun(Exception):
    """An expression that takes more time or memory than it may."""


class Process:
    """A running process."""

    def __init__(self) -> None:
        self._pipe, theirs = Pipe()
        with theirs:  # -P: else `math.py` of this folder stands before Python's own
            self._process = subprocess.Popen(
                [sys.executable, "-P", _compute.__file__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONHASHSEED": "0"},
                pass_fds=[theirs.fileno()],
            )
        if self._answer(START) is None:
            code = self.end()
            raise FlywheelError(
                f"the process for computer algebra did not start (exit code {code}); what it printed stands above. "
                "`uv sync` installs math-verify, which it needs"
            )

    def value(self, latex: str) -> tuple[str | None, str | None]:
        """Value, and why there is none where it took too much; the process has ended then."""
        try:
            self._pipe.send_bytes(latex.encode("utf-8", "replace"))
            answer = self._answer(STUCK)
        except OSError:
            answer = None
        if answer is None or answer == _compute.MEMORY_SPENT:
            return None, _overrun(self.end(), answer)
        return (answer[1:].decode() if answer.startswith(_compute.VALUE) else None), None

    def _answer(self, seconds: float) -> bytes | None:
        try:
            return self._pipe.recv_bytes() if self._pipe.poll(seconds) else None
        except (EOFError, OSError):  # it has ended
            return None

    @property
    def running(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def end(self) -> int:
        """Ends it, and waits for that. Returns the exit code, its own where it had ended."""
        self._pipe.close()
        try:
            return self._process.wait(0.2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def _overrun(code: int, answer: bytes | None) -> str:
    if answer == _compute.MEMORY_SPENT:
        return f"takes more than {_compute.MEMORY >> 20} MiB of memory to compute"
    if code == -signal.SIGPROF:
        return f"takes more than {_compute.DEADLINE:g} s to compute"
    return f"takes more than it may to compute (exit code {code})"


class Service:
    """The process that serves this one, started and replaced as needed."""

    def __init__(self) -> None:
        self.forget()

    def value(self, latex: str) -> tuple[str | None, str | None]:
        """As `Process.value`."""
        with self._lock:
            if self._process is None or not self._process.running:
                self._process = Process()
            return self._process.value(latex)

    def close(self) -> None:
        """Ends the process; the next expression starts another."""
        with self._lock:
            if self._process is not None:
                self._process.end()
            self._process = None

    def forget(self) -> None:
        """In a fork: the process is its parent's."""
        self._lock, self._process = threading.Lock(), None


SERVICE = Service()
atexit.register(SERVICE.close)
os.register_at_fork(after_in_child=SERVICE.forget)
_value = lru_cache(maxsize=16_384)(SERVICE.value)


def algebraic(latex: str) -> str | None:
    r"""The number that math-verify reads in LaTeX, in canonical form (`sqrt(2)/2`); None where it reads none.

    Raises:
        Overrun: where that takes more time or memory than it may; again for the same text, as long as this process lives.
        FlywheelError: where the process does not start.
    """
    value, overrun = _value(latex)
    if overrun:
        raise Overrun(overrun)
    return value
