"""The command that keeps an engine up for a round."""

import os
import signal
from threading import Thread
from typing import Annotated

import typer

from tasks.commands import ROOT, one_word

app = typer.Typer()


@app.command(rich_help_panel="Services")
def serve(
    round: Annotated[
        str | None,
        typer.Argument(help="The round whose stages it answers; with --stop, one to end.", callback=one_word),
    ] = None,
    stop: Annotated[bool, typer.Option("--stop", help="End the server of the round, or all of this project.")] = False,
    until_stdin_closes: Annotated[
        bool, typer.Option("--until-stdin-closes", help="End with the process that holds standard input.", hidden=True)
    ] = False,
) -> None:
    """Keep vLLM up for a round: one server for the parent's weights answers its stages from `prompts` to `critique`. It ends with
    the round, with Ctrl-C, with `--stop`, or when another stage waits for its GPU and none asks it.
    """
    from tasks.core.errors import FlywheelError
    from tasks.project import serving

    if stop:
        ended = serving.stop(ROOT, round)
        typer.echo(f"ended: {', '.join(ended)}" if ended else "no server is up" + (f" for {round}" if round else ""))
        return
    if round is None:
        raise FlywheelError("name the round whose stages it shall answer, as in `flywheel serve r1`")
    if until_stdin_closes:
        Thread(target=_end_with_stdin, daemon=True).start()
    serving.serve(ROOT, round, typer.echo)


def _end_with_stdin() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
