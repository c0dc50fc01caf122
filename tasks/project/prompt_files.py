"""Files of prompts, looked through before a round runs: every broken line at once, where the stage would stop at the first."""

import gzip
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from tasks.core.errors import FlywheelError
from tasks.domains import Domain, _jsonl
from tasks.project.graph import graph
from tasks.project.params import Block, Pipeline, load_params
from tasks.prompts.seeds import LINE, Seeds, read

MAX_TOLD = 20
"""Broken lines that one message names."""


def check(root: Path, pipeline: Pipeline, names: Iterable[str]) -> None:
    """Refuses rounds whose files of prompts have broken lines.

    Raises:
        FlywheelError: that names up to `MAX_TOLD` lines, each with what is wrong.
    """
    broken = list(dict.fromkeys(text for name in names for text in broken_lines(root, pipeline.block(name))))
    if broken:
        more = f"\n  … and {len(broken) - MAX_TOLD} more" if len(broken) > MAX_TOLD else ""
        count = "1 broken line" if len(broken) == 1 else f"{len(broken)} broken lines"
        told = "\n  ".join(text.removesuffix(f"; {LINE}") for text in broken[:MAX_TOLD])
        raise FlywheelError(f"prompts: {count}; {LINE}:\n  {told}{more}")


def check_rounds(root: Path, names: Iterable[str]) -> None:
    """Refuses rounds where their files of prompts, or those of the rounds that they need, have broken lines.

    Raises:
        FlywheelError: as `check`.
        UnknownName: when there is no such base or round.
    """
    pipeline = load_params(root)
    needed = (item.partition("@") for item in graph(pipeline, names))
    check(root, pipeline, [name for stage, _, name in needed if stage == "prompts"])


def broken_lines(root: Path, block: Block) -> Iterator[str]:
    """What is wrong in the files of prompts of a round, line by line, as far as its strategies read them."""
    for strategy in block.stages["prompts"].members.values() if "prompts" in block.stages else ():
        if isinstance(strategy, Seeds) and strategy.path is not None:
            yield from _broken(root, strategy.path, strategy.count, block.domain)


def _broken(root: Path, path: Path, count: int, domain: Domain) -> Iterator[str]:
    try:
        with (gzip.open if path.suffix == ".gz" else open)(root / path, "rt", encoding="utf-8") as file:
            lines = ((number, line) for number, line in enumerate(file, 1) if line.strip())
            for number, line in islice(lines, count):
                try:
                    read(f"{path}:{number}", _jsonl._object(line, f"{path}:{number}", LINE), domain)
                except FlywheelError as error:
                    yield str(error)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        yield f"{path}: cannot be read ({error})"
