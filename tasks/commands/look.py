"""Commands that only read."""

import gc
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from tasks.commands import GARBAGE, ROOT

app = typer.Typer()


@app.command(rich_help_panel="Look")
def sql(
    query: Annotated[
        str | None,
        typer.Argument(
            help='A query, such as "select * from metrics"; - reads it from standard input. "show tables" lists the tables, '
            '"describe responses" says what each column of one holds.'
        ),
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the query from this file.")] = None,
    format: Annotated[
        Literal["table", "line", "csv", "json", "parquet"],
        typer.Option(
            "--format",
            help="How rows are printed; a table wider than the terminal is printed as line: a line a column.",
        ),
    ] = "table",
    out: Annotated[Path | None, typer.Option("--out", help="Write the rows to this Parquet file instead.")] = None,
    allow_files: Annotated[
        bool, typer.Option("--allow-files", help="Let the query read files outside the project, and addresses.")
    ] = False,
    write_views: Annotated[
        Path | None,
        typer.Option(
            "--write-views", help="Make a small .duckdb file of views for other clients, DuckDB 1.0 or later."
        ),
    ] = None,
) -> None:
    """Query the tables of all rounds with SQL (DuckDB)."""
    gc.set_threshold(*GARBAGE)
    from tasks.core.errors import FlywheelError
    from tasks.views import catalog

    text = _query_text(query, file)
    if not text and not write_views:
        raise FlywheelError('name a query, as in `flywheel sql "show tables"`, or --write-views FILE')
    if write_views:
        catalog.write_views(ROOT, write_views)
        typer.echo(
            f"{write_views}: views of all rounds. rounds, stages and metrics are copies: write it again after the next run"
        )
    if text:
        catalog.show(ROOT, text, format, out, allow_files)


def _query_text(query: str | None, file: Path | None) -> str | None:
    """The query itself, or that of a file or of standard input."""
    from tasks.core.errors import FlywheelError

    if query and file:
        raise FlywheelError(f"--file {file}: there is a query beside it; name one of both")
    try:
        return file.read_text(encoding="utf-8") if file else sys.stdin.read() if query == "-" else query
    except (OSError, UnicodeDecodeError) as error:
        raise FlywheelError(f"--file {file}: cannot be read: {error}") from None


@app.command(rich_help_panel="Look")
def trace(
    id: Annotated[str, typer.Argument(help="The id of a row of any table, or the first digits of it.")],
    round: Annotated[
        str | None, typer.Option("--round", help="Its round, where several have a row of that id.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every column of every row as JSON.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Cut no text and leave out no row.")] = False,
) -> None:
    """The lineage of a row both ways: answers, verdicts, prompts and models that it was made from, and the training rows, rounds
    and models that it went into.
    """
    from tasks.views.trace import show

    show(ROOT, id, round, as_json, full)


@app.command("why-not", rich_help_panel="Look")
def why_not(
    id: Annotated[str | None, typer.Argument(help="The id of a row of any table, or the first digits of it.")] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="The text of a prompt, in the place of an id.")] = None,
    round: Annotated[str | None, typer.Option("--round", help="The round of the row, or of the prompt.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answers as a JSON list.")] = False,
) -> None:
    """Which rule dropped a row, by how much, and the parameter that would have kept it; of a kept one, where it went."""
    from tasks.views.why_not import show

    show(ROOT, id, prompt, round, as_json)


@app.command(rich_help_panel="Look")
def verify(
    rounds: Annotated[
        list[str] | None, typer.Argument(help="Bases and rounds; all that are stored by default.")
    ] = None,
    provenance: Annotated[
        bool,
        typer.Option("--provenance", help="Also walk every training row and preference back to seeds and weights."),
    ] = False,
) -> None:
    """Compare every stored file with its manifest and with dvc.lock; name what is changed, missing or extra."""
    from tasks.views.verify import show

    raise typer.Exit(show(ROOT, rounds or [], provenance))


@app.command(rich_help_panel="Look")
def report(
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            help="Write one page instead, which opens from disk: charts, the funnel by reason, samples with all their verdicts, "
            "what the last round changed.",
        ),
    ] = None,
    whole: Annotated[
        bool,
        typer.Option(
            "--all", help="Show every round, not only bases, the ones in force and the newest 16; in the page, too."
        ),
    ] = False,
) -> None:
    """The table of the rounds: accuracy by level, judges, rows, tokens, seconds."""
    gc.set_threshold(*GARBAGE)
    if html:
        from tasks.views import page

        page.show(ROOT, html, whole)
    else:
        from tasks.views.report import show

        show(ROOT, whole=whole)


@app.command(rich_help_panel="Look")
def doctor() -> None:
    """Check packages, engines, devices, memory and results; say what is broken and how to fix it."""
    from tasks.views.doctor import show

    raise typer.Exit(show(ROOT))
