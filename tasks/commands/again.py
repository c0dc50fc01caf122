"""Commands that run a round once more: the same, with a change, or in small."""

from pathlib import Path
from typing import Annotated

import typer

from tasks.commands import ROOT, Name, Settings, one_word

app = typer.Typer()


@app.command(rich_help_panel="Again")
def replay(
    round: Name,
    stage: Annotated[str | None, typer.Option("--stage", help="This stage alone.")] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(
            "--certificate",
            help="Where to write it (default: .flywheel/replay/r2.json for r2, r2-train.json for one stage).",
        ),
    ] = None,
) -> None:
    """Run the stages of a round again from their stored inputs, and certify that they give the same bytes; exit code 1 when
    one does not.
    """
    from tasks.views.replay import show

    raise typer.Exit(show(ROOT, round, stage, certificate))


@app.command(rich_help_panel="Again")
def whatif(
    round: Name,
    set_: Settings = None,
    name: Annotated[str | None, typer.Option("--name", help="The new round's name (default: r2x for r2).")] = None,
) -> None:
    """A round once more with a change, under a new name: run, and compared with the old one. Answers that both ask for come from
    the request cache.
    """
    from tasks.project import what_if

    what = what_if.add(ROOT, round, set_ or [], name)
    equal = f"; {', '.join(what.equal)} will ask for what the request cache has" if what.equal else ""
    typer.echo(f"params.yaml has {what.new} now: {round} with {', '.join(what.settings)}.")
    typer.echo(f"It changes {', '.join(what.changed)}{equal}.")
    from flows.round import run_round

    run_round(what.new)
    if equal_stages := what_if.reused(ROOT, what):
        then, now = (sum(seconds) for seconds in zip(*equal_stages.values(), strict=True))
        typer.echo(f"the same bytes as in {round}: {', '.join(equal_stages)}, in {now:.1f} s instead of {then:.1f} s")
    from tasks.views.diff import show

    show(ROOT, round, what.new)
    typer.echo(f"`flywheel round remove {what.new}` takes it out of params.yaml again.")


@app.command(rich_help_panel="Again")
def preview(
    round: Name, rows: Annotated[int, typer.Option("--rows", min=1, help="Prompts to make and answer.")] = 8
) -> None:
    """A round on a few prompts, without training: prompts, answers, verdicts, what is kept and why not, pairs, training rows."""
    from tasks.views.preview import show

    show(ROOT, round, rows)


@app.command(rich_help_panel="Again")
def bisect(
    good: Annotated[str, typer.Option("--good", help="A round, such as r1.", callback=one_word)],
    bad: Annotated[
        str,
        typer.Option("--bad", help="Another one, whose change against it is to be explained.", callback=one_word),
    ],
    metric: Annotated[
        str, typer.Option("--metric", help="A measure of the exam, such as greedy or pass_at_1/level_4.")
    ] = "pass_at_1",
    slice_: Annotated[
        str | None,
        typer.Option(
            "--slice",
            help="Leave out slices of the bad round's training rows instead, one at a time: by source, level, judge (the rows "
            "that it failed), member (of collect) or author (member of generate).",
        ),
    ] = None,
    split_all: Annotated[
        bool, typer.Option("--all", help="Measure everything that differs, also what does nothing together.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; progress goes to the standard error.")] = False,
) -> None:
    """Which stage makes one round better or worse than another: stages, parent and seed are exchanged between them, and what
    follows is run again, in scratch places; each part of the change with its interval. Goes on where it was stopped.
    """
    from tasks.core.errors import FlywheelError
    from tasks.views.bisect import show

    if slice_ and split_all:
        raise FlywheelError("--all is about what differs between the rounds; leave out --slice, or --all")
    show(ROOT, good, bad, metric, slice_, split_all, as_json)
