"""Commands that set rounds, recipes and judges side by side."""

from pathlib import Path
from typing import Annotated

import typer

from tasks.commands import ROOT, Settings, one_word

app = typer.Typer()


def _side(text: str) -> str:
    """A side of a diff, whose name before the `@` can be one."""
    one_word(text.partition("@")[0])
    return text


@app.command(rich_help_panel="Compare")
def bakeoff(
    recipes: Annotated[str, typer.Option(help="Names with commas between, or `all`.")] = "all",
    base: Annotated[str, typer.Option(help="The base that all of them start from.")] = "r0t",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds in a row of each recipe.")] = 2,
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions of each.")] = 3,
    prompts: Annotated[int, typer.Option(min=1, help="Problems of the frozen pool.")] = 400,
    token_budget: Annotated[
        int, typer.Option(min=1, help="Most tokens that a round generates for its data.")
    ] = 600_000,
    problems: Annotated[int, typer.Option(min=2, help="Held-out problems of the exam.")] = 350,
    samples: Annotated[int, typer.Option(min=1, help="Samples of each.")] = 8,
    jobs: Annotated[int, typer.Option(min=1, help="Branches at a time, a process each.")] = 2,
    judges: Annotated[
        int,
        typer.Option(
            min=0, help="Problems on whose answers every judge is measured (350: 2,800 answers); 0 leaves it out."
        ),
    ] = 0,
    write: Annotated[bool, typer.Option("--write", help="Write docs/bakeoff.md and its chart.")] = False,
) -> None:
    """Run recipes side by side from one base, on equal budgets; goes on where it was stopped. Its project, with MLflow's
    experiment, is in .flywheel/bakeoff.
    """
    from tasks.project.bakeoff import Size
    from tasks.views import bakeoff as views

    size = Size(
        base=base, rounds=rounds, seeds=seeds, prompts=prompts, token_budget=token_budget, problems=problems, samples=samples,
    )  # fmt: skip
    views.run(ROOT, recipes, size, jobs, judges, write, typer.echo)


@app.command(rich_help_panel="Compare")
def judges(
    rounds: Annotated[list[str], typer.Argument(help="Bases or rounds whose answers are judged.", callback=one_word)],
    judge: Annotated[list[str] | None, typer.Option(help="A judge; repeatable. Default: all.")] = None,
    problems: Annotated[int, typer.Option(min=2, help="Held-out problems.")] = 350,
    samples: Annotated[int, typer.Option(min=1, help="Answers to each.")] = 8,
    set_: Settings = None,
) -> None:
    """How well judges tell right answers from wrong ones: AUROC, calibration, position bias, cost."""
    from tasks.views import judges as views

    chosen = views.chosen(judge, set_ or [])
    views.show([row for name in rounds for row in views.measure(ROOT, name, chosen, problems, samples)])


@app.command(rich_help_panel="Compare")
def diff(
    old: Annotated[
        str,
        typer.Argument(help="A round or base, such as r1; r1@REVISION is its data of a git revision.", callback=_side),
    ],
    new: Annotated[str, typer.Argument(help="Another one, or the same without a revision.", callback=_side)],
    table: Annotated[str | None, typer.Option("--table", help="Only this table, with more examples.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page to this file instead.")] = None,
    sql: Annotated[
        str | None,
        typer.Option(
            "--sql", help='Query the differences: "from diff_responses where change = \'changed\'"; or "show tables".'
        ),
    ] = None,
) -> None:
    """What differs between two rounds: settings, rows by table and reason, majority answers, verdicts, pairs, and the items of
    the exam that were won and lost.
    """
    from tasks.core.errors import FlywheelError
    from tasks.views import diff as views

    if sql is None:
        views.show(ROOT, old, new, table, as_json, html)
    elif table or html:
        raise FlywheelError("--sql prints the rows of a query; leave out --table and --html")
    else:
        views.query(ROOT, old, new, sql, as_json)
