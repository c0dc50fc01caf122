"""The command that is about the bucket of a project's parts."""

from typing import Annotated

import typer

from tasks.commands import ROOT

app = typer.Typer()


@app.command("gc", rich_help_panel="Files")
def collect_garbage(
    yes: Annotated[bool, typer.Option("--yes", help="Delete it; without this nothing is deleted.")] = False,
) -> None:
    """Show, or delete with --yes, what the bucket of `data:` holds that no revision of git and no working tree names."""
    from tasks.core import pointers
    from tasks.core.errors import FlywheelError
    from tasks.views.garbage import lines

    place = pointers.bucket(ROOT)
    if place is None:
        raise FlywheelError(
            "the parts of this project are in its folder (params.yaml has no data:, and DATA_URL is not set); "
            "`dvc gc --all-commits` is about DVC's cache"
        )
    from tasks.project import garbage

    found = garbage.find(ROOT, place)
    for line in lines(found):
        typer.echo(line)
    if not found.unnamed:
        return
    if yes:
        typer.echo(f"{garbage.delete(ROOT, found)} objects were deleted.")
    else:
        typer.echo("Nothing was deleted; `flywheel gc --yes` deletes this.")
