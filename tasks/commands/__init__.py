"""The commands of `flywheel`, a module for each panel of its help. They import what they need when they are called, so that
`flywheel --help` is fast.
"""

from pathlib import Path
from typing import Annotated

import typer

Name = Annotated[str, typer.Argument(help="A round or base of params.yaml, such as r2.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="KEY=VALUE, such as generate.sample.temperature=0.9; repeatable.")
]
ROOT = Path()
