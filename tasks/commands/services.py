"""Commands about the servers beside the project."""

import gc
from typing import Annotated

import typer

from tasks.commands import GARBAGE, ROOT, one_word

app = typer.Typer()


@app.command(rich_help_panel="Services")
def record(
    rounds: Annotated[
        list[str] | None,
        typer.Argument(
            help="Bases and rounds that are looked for in MLflow again, as after a run was deleted there.",
            callback=one_word,
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail where MLflow does not answer.")] = False,
) -> None:
    """Update MLflow from the manifests; records each result once. What MLflow missed while it was down is caught up."""
    gc.set_threshold(*GARBAGE)
    from tasks.views.record import record as update

    typer.echo(update(ROOT, strict=strict, again=rounds or []))


@app.command(rich_help_panel="Services")
def up() -> None:
    """Start the local services: Prefect server and worker, MLflow UI; on loopback. The environment variables
    PREFECT_SERVER_API_PORT (4200) and MLFLOW_PORT (5000) choose their ports.
    """
    from flows.services import up as start

    start(ROOT)


@app.command(rich_help_panel="Services")
def down() -> None:
    """Stop the services that `up` started, and no others."""
    from flows.services import down as stop

    stop(ROOT)


@app.command(rich_help_panel="Look")
def browse(
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The port; 0 takes a free one.")] = 0,
    no_open: Annotated[bool, typer.Option("--no-open", help="Print the address and open no browser.")] = False,
) -> None:
    """Look at the rounds in a browser: rows by reason and judge, answers beside each other, traces, a search; label answers as
    right or wrong. On loopback, for who has the address that it prints; Ctrl-C ends it.
    """
    from tasks.views.browse import serve

    serve(ROOT, port, not no_open)
