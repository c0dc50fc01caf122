"""dvc.lock as text, an entry a stage: read, written and mended without parsing the whole of it.

DVC parses the whole file for every command, and for every stage that ran it parses it again, with its comments, and writes it
anew, in place. Of 2,000 stages that takes 15 s of processor a stage that ran, and a kill in that moment leaves the file
cut short, with which no command of DVC works. Within `quick()` DVC parses the entries that it looks at, and exchanges one by
a rename; the bytes are those that it would write. A copy of the last whole file lies in .dvc/tmp.
"""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

FILE = "dvc.lock"
COPY = Path(".dvc/tmp/dvc.lock")
"""The last whole one."""
HEADER = "schema: '2.0'\nstages:\n"
ENTRY = re.compile(r"^  (?=\S)(.*):\n", re.MULTILINE)
FOREIGN = re.compile(r"^(?!    |  \S.*:$)", re.MULTILINE)
"""A line that is neither the head of an entry nor within one."""
LAST = re.compile(r"^      (size|nfiles): \d+\Z", re.MULTILINE)
"""What an entry ends with. DVC goes by digests, so a number that is cut short does no harm."""

Entries = dict[str, str]
"""Address of a stage → the lines of its entry, its head among them."""


def entries(text: str) -> Entries:
    """The entries of a dvc.lock that is formatted as DVC writes it; none of another."""
    body = text.removeprefix(HEADER)
    heads = list(ENTRY.finditer(body))
    if not heads or not text.endswith("\n") or not _is_formatted(text):
        return {}
    ends = [*(head.start() for head in heads[1:]), len(body)]
    return {head[1]: body[head.start() : end] for head, end in zip(heads, ends, strict=True)}


def _is_formatted(text: str) -> bool:
    """Whether the lines are formatted as DVC writes them, whatever the last one lacks."""
    body = text.removeprefix(HEADER)
    lines = body[: body.rfind("\n") + 1]
    ours = not lines or (ENTRY.match(lines) and not FOREIGN.search(lines[:-1]))
    return HEADER.startswith(text) or (body != text and bool(ours))


def read(root: Path) -> Entries:
    """The entries of a project's dvc.lock; none where there is no such file."""
    path = root / FILE
    return entries(path.read_text(encoding="utf-8")) if path.is_file() else {}


def outs(text: str, within: str = "") -> dict[str, str]:
    """Path → MD5 of the outputs in a dvc.lock. Of one that is formatted as DVC writes it, only the entries are parsed in which
    `within` stands.
    """
    from ruamel.yaml import YAML

    if known := entries(text):
        text = HEADER + "".join(entry for entry in known.values() if within in entry)
    stages = (YAML(typ="safe").load(text) or {}).get("stages") or {}
    return {o["path"]: o["md5"] for stage in stages.values() for o in stage.get("outs", ()) if "md5" in o}


def write(path: Path, now: Entries) -> None:
    """Replaces a dvc.lock by a rename: a kill leaves the old one or the new one."""
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    with new.open("w", encoding="utf-8") as file:
        file.write(HEADER + "".join(now.values()))
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def is_cut(text: str) -> bool:
    """Whether a kill cut it short while DVC wrote it: it is empty, or ends within a line or before the value of a key. A
    file that somebody formatted in another way is not.
    """
    last = text.rstrip("\n").rpartition("\n")[2]
    ends_early = not text.endswith("\n") or last.endswith(":") or last == HEADER.partition("\n")[0]
    return ends_early and _is_formatted(text)


def keep(root: Path) -> None:
    """Keeps a copy of dvc.lock, unless it is there already or the file is cut short."""
    path, copy = root / FILE, root / COPY
    if not path.is_file() or (copy.is_file() and copy.stat().st_mtime_ns == path.stat().st_mtime_ns):
        return
    new = copy.with_name(f"{copy.name}.{os.getpid()}.new")
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, new)
    if is_cut(new.read_text(encoding="utf-8")):
        new.unlink()
    else:
        new.replace(copy)


def is_lost(root: Path) -> bool:
    """Whether a project's dvc.lock is cut short."""
    path = root / FILE
    return path.is_file() and is_cut(path.read_text(encoding="utf-8", errors="replace"))


def take_back(root: Path) -> bool:
    """Where dvc.lock is cut short, takes back its copy and all that is whole in the file; returns whether it was."""
    if not is_lost(root):
        return False
    path, copy = root / FILE, root / COPY
    text = path.read_text(encoding="utf-8", errors="replace")
    kept = entries(copy.read_text(encoding="utf-8")) if copy.is_file() else {}
    ended = LAST.search(text)
    whole = list(entries(f"{text}\n" if ended else text[: text.rfind("\n") + 1]).items())
    last = dict(whole[-1:] if ended else ())  # it may lack lines, so a copy of it comes first
    if now := kept | dict(whole[:-1]) | {name: entry for name, entry in last.items() if name not in kept}:
        write(path, now)
    else:
        path.unlink()
    return True


# What DVC uses of it


@contextmanager
def quick() -> Iterator[None]:
    """Lets DVC read and write dvc.lock an entry at a time, in this process."""
    from dvc.dvcfile import Lockfile, ProjectFile

    contents, dump = ProjectFile.__dict__["lockfile_contents"], Lockfile.dump_stages
    fast = cached_property(_contents(contents.fget))
    fast.__set_name__(ProjectFile, "lockfile_contents")
    setattr(ProjectFile, "lockfile_contents", fast)  # noqa: B010
    setattr(Lockfile, "dump_stages", _dump(dump))  # noqa: B010
    try:
        yield
    finally:
        setattr(ProjectFile, "lockfile_contents", contents)  # noqa: B010
        setattr(Lockfile, "dump_stages", dump)  # noqa: B010


class _Stages(dict[str, Any]):
    """Entries that are parsed when one asks for them."""

    def __init__(self, texts: Entries, parse: Any) -> None:
        super().__init__(texts)
        self.parse = parse

    def __getitem__(self, name: str) -> Any:
        return self.parse(name, super().__getitem__(name))

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default  # noqa: SIM401


def _contents(original: Any) -> Any:
    def contents(file: Any) -> Mapping[str, Any]:
        lock = file._lockfile
        path = Path(lock.path)
        texts = entries(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if not texts:
            return original(file)  # type: ignore[no-any-return]

        def parse(name: str, text: str) -> Any:
            from dvc.utils.serialize import parse_yaml

            content = lock.validate(parse_yaml(HEADER + text, lock.path), lock.relpath)
            return content["stages"][name]

        return {"schema": "2.0", "stages": _Stages(texts, parse)}

    return contents


def _dump(original: Any) -> Any:
    def dump_stages(lock: Any, stages: Any, **options: Any) -> None:
        from dvc.stage.serialize import to_lockfile
        from dvc.utils.serialize import dumps_yaml

        path = Path(lock.path)
        text = path.read_text(encoding="utf-8") if path.is_file() else HEADER
        known = entries(text)
        if text != HEADER and not known:
            original(lock, stages, **options)
        else:
            now = dict(known)
            for stage in stages:
                now |= entries(dumps_yaml({"schema": "2.0", "stages": to_lockfile(stage, **options)}))
            if now != known:
                write(path, now)
                lock.repo.scm_context.track_file(lock.relpath)
        if Path(lock.repo.root_dir) == path.parent:
            keep(path.parent)

    return dump_stages
