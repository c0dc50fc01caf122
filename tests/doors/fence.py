"""A fence around a test's folder: whatever writes, removes or starts something outside of it is stopped before it happens."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REMOVALS = ("os.remove", "os.rmdir", "shutil.rmtree", "os.rename", "os.mkdir", "os.truncate", "os.symlink", "os.link")
PROGRAMS = ("git",)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_inside: list[Path] = []


class Trespass(BaseException):
    """Something was about to happen outside. No `except Exception` catches it, nor does `ignore_errors`."""


@contextmanager
def fence(folder: Path) -> Iterator[None]:
    """Keeps this process within a folder while the block runs; temporary files are made there, too."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    _inside.append(folder.resolve())
    try:
        yield
    finally:
        _inside.pop()
        tempfile.tempdir = before


def _watch(event: str, arguments: tuple) -> None:
    if not _inside:
        return
    if event in ("os.system", "os.exec", "os.posix_spawn", "os.spawn"):
        raise Trespass(f"{event} {arguments}")
    if event == "subprocess.Popen" and not _is_ours(*arguments[:2]):
        raise Trespass(f"{event} {arguments[1]}")
    if event in REMOVALS:
        for path in arguments[: 2 if event == "os.rename" else 1]:
            _check(event, path)
    elif event == "open" and (arguments[2] or 0) & WRITES:
        _check(event, arguments[0])


def _is_ours(program: str | bytes, arguments: object) -> bool:
    """Whether it is git, or Python with a text that is given to it: how chat templates are tried."""
    return Path(os.fsdecode(program)).name in PROGRAMS or list(arguments)[:3] == [sys.executable, "-I", "-c"]


def _check(event: str, path: object) -> None:
    if not isinstance(path, str | bytes | os.PathLike):
        return  # a descriptor, which was opened before
    name = os.fsdecode(path)
    if "\0" in name or name == os.devnull or "__pycache__" in name:
        return
    if event != "open" and not os.path.isabs(name) and not os.path.lexists(name):
        return  # relative to a descriptor: `shutil.rmtree` was asked for the whole
    place = Path(os.path.realpath(os.path.dirname(os.path.abspath(name))), os.path.basename(name))
    if not place.is_relative_to(_inside[-1]) and _inside[-1] != place:
        raise Trespass(f"{event} {name}")


sys.addaudithook(_watch)
