"""`flywheel`: rounds, stages, SQL, promotion and services from the command line.

Imports only typer at the top, so `flywheel --help` is fast; each command imports what it needs.
"""

import atexit
import errno
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import typer

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="A data flywheel for language models: rounds that can be reproduced, queried, diffed, gated and rolled back.",
)
round_app = typer.Typer(no_args_is_help=True, help="Add, show, list and remove rounds of params.yaml.")
base_app = typer.Typer(no_args_is_help=True, help="Add bases: the models that rounds start from.")
recipe_app = typer.Typer(no_args_is_help=True, help="Show recipes: published methods as settings of the stages.")
app.add_typer(round_app, name="round")
app.add_typer(base_app, name="base")
app.add_typer(recipe_app, name="recipe")

Name = Annotated[str, typer.Argument(help="A round or base of params.yaml, such as r2.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="KEY=VALUE, such as generate.sample.temperature=0.9; repeatable.")
]
ROOT = Path()
GARBAGE = 100_000, 50, 1000
"""Of a stage's garbage collector: importing transformers makes millions of objects and no garbage, and collecting took a
quarter of the start-up."""
ALLOCATOR = {"_RJEM_MALLOC_CONF": f"narenas:{os.cpu_count() or 1},muzzy_decay_ms:0"}
"""jemalloc options, set before polars is imported. By default there are four arenas per core, and freed memory is returned
late; with these, a stage's peak memory is a sixth lower, at the same speed (benchmarks/chain.py)."""


@app.command(rich_help_panel="Rounds")
def run(
    round: Name,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would run: stages, requests, estimated tokens.")
    ] = False,
) -> None:
    """Bring a round up to date: itself, the rounds that it descends from, and its anchors."""
    from tasks.project import graph

    stale = graph.stale(ROOT, round)
    if dry_run:
        from tasks.project.estimate import show

        show(ROOT, round, stale)
    elif not stale:
        typer.echo(f"{round} is up to date; nothing to do.")
    else:
        from flows.round import run_round

        run_round(round)


@app.command(rich_help_panel="Rounds")
def campaign(
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Number of rounds in the campaign.")] = 3,
) -> None:
    """Run rounds one after the other; append the missing ones to params.yaml, each from the champion."""
    from flows.campaign import run_campaign

    run_campaign(rounds)


@round_app.command("add")
def round_add(
    name: Annotated[str, typer.Argument(help="The new round's name.")],
    parent: Annotated[
        str | None, typer.Option("--parent", help="The round or base that it starts from (default: the last round).")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="How it is made; `flywheel recipes` lists them (default: defaults.recipe)."),
    ] = None,
    anchor: Annotated[
        str | None,
        typer.Option(
            "--anchor", help="Another base or round whose model or tables its strategies use (default: the recipe's)."
        ),
    ] = None,
    like: Annotated[
        str | None, typer.Option("--like", help="A round whose recipe, anchor and settings it copies.")
    ] = None,
    set_: Settings = None,
) -> None:
    """Append a round to params.yaml, after those of its recipe's phases, which --set and --anchor leave alone; comments stay."""
    from tasks.project.edit import add_round

    added = add_round(ROOT, name, parent, set_, recipe=recipe, anchor=anchor, like=like)
    typer.echo(
        f"params.yaml has {', '.join(added)} now; `flywheel run {name}` runs it, `flywheel round show {name}` shows its values."
    )


@round_app.command("show")
def round_show(name: Name) -> None:
    """Every setting of a round or base with its origin: set, recipe, base, or the strategy's default."""
    from tasks.views.settings import show_round

    show_round(ROOT, name)


@round_app.command("list")
def round_list() -> None:
    """The bases and rounds as a tree, with the state of each."""
    from tasks.views.report import show_tree

    show_tree(ROOT)


@round_app.command("remove")
def round_remove(name: Name) -> None:
    """Remove a round and those of its phases from params.yaml, unless others descend from it. Its data stay."""
    from tasks.project.edit import remove_round

    removed = remove_round(ROOT, name)
    folders = [f"data/round={n}" for n in removed if (ROOT / f"data/round={n}").exists()]
    data = f"; its files are still in {', '.join(folders)}" if folders else ""
    typer.echo(f"params.yaml no longer has {', '.join(removed)}{data}.")


@base_app.command("add")
def base_add(
    name: Annotated[str, typer.Argument(help="The new base's name.")],
    hub: Annotated[str | None, typer.Option("--hub", help="ID@REVISION of a model of the Hugging Face hub.")] = None,
    local: Annotated[Path | None, typer.Option("--local", help="A folder with a safetensors model.")] = None,
    set_: Settings = None,
) -> None:
    """Append a base to params.yaml: a pinned model of the hub, or a local folder."""
    from tasks.project.edit import add_base

    add_base(ROOT, name, _base_block(hub, local), set_)
    typer.echo(
        f"params.yaml has the base {name} now; `flywheel round add NAME --parent {name}` starts a round from it."
    )


def _base_block(hub: str | None, local: Path | None) -> dict[str, str]:
    from tasks.core.errors import FlywheelError

    if (hub is None) == (local is None):
        raise FlywheelError("name one of --hub ID@REVISION and --local DIR")
    if local is not None:
        from tasks.core.models import check, digest

        check(local)
        return {"strategy": "local", "path": str(local), "digest": digest(local)}
    repo, at, revision = str(hub).partition("@")
    if not at:
        raise FlywheelError(f"--hub {hub}: pin a revision, as in --hub {repo}@<40 hexadecimal digits of a commit>")
    return {"strategy": "hub", "repo": repo, "revision": revision}


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
    rounds: Annotated[list[str], typer.Argument(help="Bases or rounds whose answers are judged.")],
    judge: Annotated[list[str] | None, typer.Option(help="A judge; repeatable. Default: all.")] = None,
    problems: Annotated[int, typer.Option(min=2, help="Held-out problems.")] = 350,
    samples: Annotated[int, typer.Option(min=1, help="Answers to each.")] = 8,
    set_: Settings = None,
) -> None:
    """How well judges tell right answers from wrong ones: AUROC, calibration, position bias, cost."""
    from tasks.views import judges as views

    chosen = views.chosen(judge, set_ or [])
    views.show([row for name in rounds for row in views.measure(ROOT, name, chosen, problems, samples)])


@app.command(rich_help_panel="Rounds")
def recipes() -> None:
    """List the recipes: the methods by which a round can be made."""
    from tasks.views.settings import show_recipes

    show_recipes(ROOT)


@recipe_app.command("show")
def recipe_show(name: Annotated[str, typer.Argument(help="A recipe, such as sharpen.")]) -> None:
    """A recipe: what it does, its paper, its phases, its settings."""
    from tasks.views.settings import show_recipe

    show_recipe(ROOT, name)


@app.command(rich_help_panel="Rounds")
def stage(name: Annotated[str, typer.Argument(help="A stage, such as judge.")], round: Name) -> None:
    """Run one stage of one round in this process: the command that DVC and the flows execute."""
    gc.set_threshold(*GARBAGE)
    os.environ |= {**ALLOCATOR, **os.environ}
    from tasks.core.plan import edited_sources
    from tasks.project.execute import run_stage

    for file in edited_sources(ROOT):
        typer.secho(
            f"warning: {file} was edited since the plan was made; the stage runs as planned before", fg="yellow"
        )
    manifest = run_stage(ROOT, round, name)
    rows = ", ".join(f"{n} {o.rows}" if o.kind == "table" else n for n, o in manifest.outputs.items() if o.rows != 0)
    for warning in manifest.warnings:
        typer.secho(f"warning: {name}@{round}: {warning}", fg="yellow")
    typer.echo(f"{name}@{round}: {rows or 'nothing'} in {sum(manifest.seconds.values()):.1f} s")


@app.command(rich_help_panel="Files")
def plan() -> None:
    """Write the plan of every stage to data/plan: what DVC runs when params.yaml, a recipe, a seeds file or code was edited."""
    from tasks.core.errors import FlywheelError
    from tasks.project import pipeline
    from tasks.project.params import load_params
    from tasks.project.plan import write

    params = load_params(ROOT)
    if pipeline.is_outdated(ROOT, params):
        pipeline.write(ROOT, params)
        raise FlywheelError(
            "dvc.yaml lacked dependencies that rounds need, and was rendered again; run the command again"
        )
    changed = write(ROOT)
    typer.echo(f"data/plan: {changed} plan{'s' * (changed != 1)} changed" if changed else "data/plan is up to date")


@app.command(rich_help_panel="Rounds")
def promote(round: Name) -> None:
    """Move the registered model's alias to a round, forward or back."""
    from tasks.views.record import promote as move

    typer.echo(move(ROOT, round))


@app.command(rich_help_panel="Look")
def sql(
    query: Annotated[
        str | None, typer.Argument(help='A query, such as "select * from metrics"; `show tables` lists the views.')
    ] = None,
    format: Annotated[
        Literal["table", "csv", "json"], typer.Option("--format", help="How rows are printed.")
    ] = "table",
    out: Annotated[Path | None, typer.Option("--out", help="Write the rows to this Parquet file instead.")] = None,
    allow_files: Annotated[
        bool, typer.Option("--allow-files", help="Let the query read files outside the project, and addresses.")
    ] = False,
    write_views: Annotated[
        Path | None, typer.Option("--write-views", help="Make a small .duckdb file of views for other clients.")
    ] = None,
) -> None:
    """Query the tables of all rounds with SQL (DuckDB)."""
    from tasks.core.errors import FlywheelError
    from tasks.views import catalog

    if not query and not write_views:
        raise FlywheelError('name a query, as in `flywheel sql "show tables"`, or --write-views FILE')
    if write_views:
        catalog.write_views(ROOT, write_views)
        typer.echo(f"{write_views}: views of all rounds")
    if query:
        catalog.show(ROOT, query, format, out, allow_files)


@app.command(rich_help_panel="Look")
def trace(
    id: Annotated[str, typer.Argument(help="The id of a row of any table, such as a training row or a pair.")],
    round: Annotated[
        str | None, typer.Option("--round", help="Its round, where several have a row of that id.")
    ] = None,
) -> None:
    """The lineage of a row: its responses, their verdicts, their prompts, the models that wrote them."""
    from tasks.views.trace import show

    show(ROOT, id, round)


@app.command(rich_help_panel="Look")
def report() -> None:
    """The table of the rounds: accuracy by level, judges, rows, tokens, seconds."""
    from tasks.views.report import show

    show(ROOT)


@app.command(rich_help_panel="Look")
def doctor() -> None:
    """Check packages, engines, devices, memory and results; say what is broken and how to fix it."""
    from tasks.views.doctor import show

    raise typer.Exit(show(ROOT))


@app.command(rich_help_panel="Files")
def export(round: Name, to: Annotated[Path, typer.Option("--to", help="The folder to write.")]) -> None:
    """Write a round's pairs and SFT rows as a data set that `datasets` loads, in TRL's columns."""
    from tasks.project.params import load_params
    from tasks.views.export import export as write

    load_params(ROOT).block(round)
    typer.echo(write(ROOT, round, to))


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


@app.command(rich_help_panel="Services")
def record() -> None:
    """Update MLflow from the manifests; records each result once."""
    from tasks.views.record import record as update

    typer.echo(update(ROOT))


@app.command(rich_help_panel="Services")
def up() -> None:
    """Start the local services: Prefect server and worker, MLflow UI; on loopback."""
    from flows.services import up as start

    start(ROOT)


@app.command(rich_help_panel="Services")
def down() -> None:
    """Stop the services that `up` started, and no others."""
    from flows.services import down as stop

    stop(ROOT)


_USER_ERRORS = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EACCES", "EPERM", "EROFS", "ENOTDIR")}
"""Errors of the operating system that only the user can fix."""


def main() -> None:
    """The process `flywheel`. After a stage it exits without tearing down the interpreter, which takes a second once
    transformers is loaded.
    """
    try:
        guarded(app)
    except SystemExit as exit_:
        if sys.argv[1:2] != ["stage"] or isinstance(exit_.code, str):
            raise
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(BrokenPipeError):
                stream.flush()
        os._exit(exit_.code or 0)


def guarded(command: Callable[[], Any]) -> None:
    """Runs a command and prints a FlywheelError as one message; exit code 75 where a retry may help, else 1."""
    from tasks.core.errors import FlywheelError

    try:
        with _exit_on_signals():
            command()
    except FlywheelError as error:
        typer.secho(f"flywheel: {error}", fg="red", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in _USER_ERRORS:
            raise
        typer.secho(
            f"flywheel: {error.filename or 'a file'}: {error.strerror}; nothing already made is lost",
            fg="red",
            err=True,
        )
        sys.exit(1)


@contextmanager
def _exit_on_signals() -> Iterator[None]:
    """Turns SIGINT, SIGTERM and SIGHUP into SystemExit, so that child processes are stopped; respects `nohup`."""
    handled = [s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) is not signal.SIG_IGN]

    def leave(number: int, frame: FrameType | None) -> None:
        for other in handled:  # a closing terminal sends SIGHUP twice: the second must not interrupt the cleanup
            signal.signal(other, signal.SIG_IGN)
        os.write(2, f"flywheel: {signal.Signals(number).name}: ending; nothing already made is lost\n".encode())
        sys.exit(128 + number)

    before = {s: signal.signal(s, leave) for s in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    main()
