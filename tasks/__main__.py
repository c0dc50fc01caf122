"""`flywheel`: the commands of `tasks/commands`, their errors and signals."""

import _thread
import atexit
import errno
import marshal
import os
import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import typer
from typer.core import TyperGroup

from tasks.commands import again, bucket, compare, files, look, rounds, serve, services

HEADER = 16
"""Bytes of a compiled file before its code."""
AGAIN = 0.1
"""Seconds between two tries of a signal to end the process."""
IMPORTS = "<frozen importlib._bootstrap>"
"""The file of Python's import system."""


class Commands(TyperGroup):
    """All commands. Where one cannot import a module of which a full disk left a part, that is removed."""

    def invoke(self, ctx: Any) -> Any:
        """Runs a command; raises a FlywheelError where it should run again."""
        from tasks.core.errors import BrokenPlugin, EngineError, FlywheelError

        try:
            return super().invoke(ctx)
        except (EOFError, BrokenPlugin) as error:
            if not (cut := _remove_cut_code()):
                raise
            again = FlywheelError(
                f"{cut[0]} was cut short when the disk was full, and is removed; run the command again"
            )
            again.exit_code = EngineError.exit_code
            raise again from error


def _remove_cut_code() -> list[Path]:
    """Removes compiled files of the project's code that end early."""
    root, cut = Path(__file__).parents[1], []
    for path in (p for package in ("tasks", "flows") for p in (root / package).rglob("__pycache__/*.pyc")):
        try:
            marshal.loads(path.read_bytes()[HEADER:])
        except EOFError:
            path.unlink(missing_ok=True)
            cut.append(path)
    return cut


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="A data flywheel for language models: rounds that can be reproduced, queried, diffed, gated and rolled back.",
)
for panel in (rounds, again, compare, files, bucket, look, services, serve):
    app.add_typer(panel.app)

_USER_ERRORS = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EACCES", "EPERM", "EROFS", "ENOTDIR")}
"""Errors of the operating system that only the user can fix."""


def main() -> None:
    """The process `flywheel`. After a stage it exits without tearing down the interpreter, which takes a second once
    transformers is loaded.
    """
    try:
        guarded(_run)
    except SystemExit as exit_:
        if sys.argv[1:2] != ["stage"] or isinstance(exit_.code, str):
            raise
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(BrokenPipeError):
                stream.flush()
        os._exit(exit_.code or 0)


def _run() -> None:
    from tasks.core.errors import FlywheelError

    if odd := [a for a in sys.argv if any("\ud800" <= c <= "\udfff" for c in a)]:
        raise FlywheelError(f"{odd[0]!r} is not UTF-8, as every text here is; write it so")
    app()


def guarded(command: Callable[[], Any]) -> None:
    """Runs a command and prints a FlywheelError as one message; exit code 75 where a retry may help, else 1."""
    from tasks.core.errors import FlywheelError, printable

    try:
        with _exit_on_signals():
            command()
    except FlywheelError as error:
        message = "\n".join(map(printable, str(error).split("\n")))
        typer.secho(f"flywheel: {message}", fg="red", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in _USER_ERRORS:
            raise
        typer.secho(
            f"flywheel: {error.filename or 'a file'}: {error.strerror}; nothing already made is lost",
            fg="red",
            err=True,
        )
        sys.exit(1)


class _Exit(SystemExit):
    """The end that a signal asks for; other than its base, it can be referred to weakly."""


@contextmanager
def _exit_on_signals() -> Iterator[None]:
    """Turns SIGINT, SIGTERM and SIGHUP into SystemExit, so that child processes are stopped; respects `nohup`.

    It waits for the end of an import, which an exception leaves half done: an extension in C++ then aborts or never ends. And
    as Python drops an exception that is raised in a callback or a destructor, the signal is sent again until one is under way.
    """
    handled = [s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) is not signal.SIG_IGN]
    under_way: weakref.ref[_Exit] | None = None
    said = left = False

    def leave(number: int, frame: FrameType | None) -> None:
        nonlocal under_way, said
        if not said:
            said = True
            os.write(2, f"flywheel: {signal.Signals(number).name}: ending; nothing already made is lost\n".encode())
            _thread.start_new_thread(insist, (number,))  # a Thread takes locks, which may be held here
        if under_way and under_way():
            return  # a closing terminal sends SIGHUP twice: the second must not interrupt the cleanup
        if any(f.f_code.co_filename == IMPORTS for f, _ in traceback.walk_stack(frame)):
            return
        error = _Exit(128 + number)
        under_way = weakref.ref(error)
        try:
            raise error
        finally:
            del error  # or its traceback would keep it

    def insist(number: int) -> None:
        time.sleep(AGAIN)
        while not left:
            if not (under_way and under_way()):
                signal.pthread_kill(threading.main_thread().ident or 0, number)
            time.sleep(AGAIN)

    before = {s: signal.signal(s, leave) for s in handled}
    try:
        yield
    finally:
        left = True
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    main()
