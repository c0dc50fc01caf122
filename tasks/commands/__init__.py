"""The commands of `flywheel`, a module for each panel of its help. They import what they need when they are called, so that
`flywheel --help` is fast.
"""

import re
from pathlib import Path
from typing import Annotated

import typer


def one_word(name: str | list[str] | None) -> str | list[str] | None:
    """Refuses a name that can be none, before any path is made of it: `/`, `..`, one with line breaks.

    Raises:
        ParamsError: names it.
    """
    if odd := [
        n
        for n in (name if isinstance(name, list) else [name])
        if n is not None and not re.fullmatch(r"\w[\w-]{0,99}", n)
    ]:
        from tasks.core.errors import ParamsError
        from tasks.project.problems import NAMING

        raise ParamsError(f"params.yaml has no round or base {odd[0]!r}: {NAMING}; `flywheel round list` shows them")
    return name


Name = Annotated[str, typer.Argument(help="A round or base of params.yaml, such as r2.", callback=one_word)]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="KEY=VALUE, such as generate.sample.temperature=0.9; repeatable.")
]
GARBAGE = 100_000, 50, 1000
"""Of the garbage collector in processes that end soon: imports and manifests are many objects and no garbage, and to look
for it took a quarter of a stage's start-up and a tenth of `flywheel round list`."""
ROOT = Path()
