"""Commands about the servers beside the project."""

import typer

from tasks.commands import ROOT

app = typer.Typer()


@app.command(rich_help_panel="Services")
def record() -> None:
    """Update MLflow from the manifests; records each result once."""
    from tasks.views.record import record as update

    typer.echo(update(ROOT))


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
