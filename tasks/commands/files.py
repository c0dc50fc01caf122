"""Commands that write files of the project."""

from pathlib import Path
from typing import Annotated

import typer

from tasks.commands import ROOT, Name

app = typer.Typer()


@app.command(rich_help_panel="Files")
def plan() -> None:
    """Write the plan of every stage to data/plan: what DVC runs when params.yaml, a recipe, a seeds file or code was edited."""
    from tasks.core.errors import FlywheelError
    from tasks.project import pipeline
    from tasks.project.params import load_params
    from tasks.project.plan import write

    params = load_params(ROOT)
    lacking = pipeline.lacks_dependencies(ROOT, params)
    if pipeline.is_outdated(ROOT, params):
        pipeline.write(ROOT, params)
    if lacking:
        raise FlywheelError(
            "dvc.yaml lacked dependencies that rounds need, and was rendered again; run the command again"
        )
    changed = write(ROOT)
    typer.echo(f"data/plan: {changed} plan{'s' * (changed != 1)} changed" if changed else "data/plan is up to date")


@app.command(rich_help_panel="Files")
def export(
    round: Name,
    to: Annotated[Path | None, typer.Option("--to", help="The folder to write.")] = None,
    push: Annotated[str | None, typer.Option("--push", metavar="OWNER/NAME", help="The repository of the Hugging Face hub to write.")] = None,
    model: Annotated[bool, typer.Option("--model", help="The round's model, not its data.")] = False,
    license: Annotated[str | None, typer.Option("--license", help="Of what is exported, as the hub calls it: cc-by-4.0, mit …")] = None,
    public: Annotated[bool, typer.Option("--public", help="A new repository of the hub can be read by all; else it is private.")] = False,
) -> None:  # fmt: skip
    """Write a round's pairs and SFT rows as a data set that `datasets` loads, in TRL's columns, or its model; with a card."""
    from tasks.core.errors import FlywheelError
    from tasks.project.params import load_params
    from tasks.views.export import export as export_data
    from tasks.views.export_model import export_model
    from tasks.views.push import push as push_export

    if (to is None) == (push is None):
        raise FlywheelError("export writes to one place: --to FOLDER, or --push OWNER/NAME for the Hugging Face hub")
    if public and push is None:
        raise FlywheelError("--public is about a repository of the hub; give --push OWNER/NAME, too")
    if load_params(ROOT).block(round).is_base and not model:
        raise FlywheelError(f"{round} is a base, which no rows were made for; --model exports its model")
    write = export_model if model else export_data
    if to is not None:
        typer.echo(write(ROOT, round, to, license))
        return
    kind, what = ("model", "Model") if model else ("dataset", "Training data")
    typer.echo(
        push_export(str(push), kind, lambda folder: write(ROOT, round, folder, license), f"{what} of {round}", public)
    )  # type: ignore[arg-type]


@app.command(rich_help_panel="Files")
def render() -> None:
    """Render dvc.yaml from the stages' signatures."""
    from tasks.project.params import load_params
    from tasks.project.pipeline import write

    typer.echo("dvc.yaml was rendered again." if write(ROOT, load_params(ROOT)) else "dvc.yaml is up to date.")


@app.command(rich_help_panel="Files")
def schema(
    recipe: Annotated[bool, typer.Option("--recipe", help="The schema of a file of recipes/ instead.")] = False,
) -> None:
    """The JSON schema of params.yaml, for editors."""
    import json

    from tasks.project import schema as schemas

    typer.echo(json.dumps(schemas.of_recipe() if recipe else schemas.of_params(), indent=2))


@app.command(rich_help_panel="Files")
def methods(
    write: Annotated[bool, typer.Option("--write", help="Write docs/methods.md instead of printing it.")] = False,
) -> None:
    """Every strategy and recipe with what it does, its source and its parameters, as Markdown."""
    from tasks.views import methods as views

    if write:
        typer.echo(f"{views.FILE} was written again." if views.write(ROOT) else f"{views.FILE} is up to date.")
    else:
        typer.echo(views.render(ROOT), nl=False)
