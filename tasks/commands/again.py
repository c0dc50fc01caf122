"""Commands that run a round once more: the same, with a change, or in small."""

from pathlib import Path
from typing import Annotated

import typer

from tasks.commands import ROOT, Name

app = typer.Typer()


@app.command(rich_help_panel="Again")
def replay(
    round: Name,
    stage: Annotated[str | None, typer.Option("--stage", help="This stage alone.")] = None,
    certificate: Annotated[
        Path | None, typer.Option("--certificate", help="Where to write it (default: .flywheel/replay/ROUND.json).")
    ] = None,
) -> None:
    """Run the stages of a round again from their stored inputs, and certify that they give the same bytes; exit code 1 when
    one does not.
    """
    from tasks.views.replay import show

    raise typer.Exit(show(ROOT, round, stage, certificate))


@app.command(rich_help_panel="Again")
def preview(
    round: Name, rows: Annotated[int, typer.Option("--rows", min=1, help="Prompts to make and answer.")] = 8
) -> None:
    """A round on a few prompts, without training: prompts, answers, verdicts, what is kept and why not, pairs, training rows."""
    from tasks.views.preview import show

    show(ROOT, round, rows)
