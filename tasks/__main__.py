"""`flywheel`: rounds, stages, SQL, promotion and services from the command line.

Only typer is imported here at the top: `flywheel --help` answers at once, each command imports what it needs.
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
round_app = typer.Typer(no_args_is_help=True, help="Add, list and remove rounds of params.yaml.")
base_app = typer.Typer(no_args_is_help=True, help="Add bases: the models that rounds start from.")
app.add_typer(round_app, name="round")
app.add_typer(base_app, name="base")

Name = Annotated[str, typer.Argument(help="A round or base of params.yaml, such as r2.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="KEY=VALUE, such as generate.temperature=0.9; repeatable.")
]
ROOT = Path()
GARBAGE = 100_000, 50, 1000
"""When a stage looks for garbage: importing transformers makes millions of objects and none, and looking for some took a
quarter of the start-up."""
ALLOCATOR = {"_RJEM_MALLOC_CONF": f"narenas:{os.cpu_count() or 1},muzzy_decay_ms:0"}
"""For polars' memory, before it is imported: by default it is parted among four times as many threads as there are cores,
and what is freed is kept for a while. So a stage needs a sixth less at its peak, and no more time (benchmarks/chain.py)."""


@app.command(rich_help_panel="Rounds")
def run(
    round: Name,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run: stages, requests, estimated tokens.")
    ] = False,
) -> None:
    """Bring a round up to date: itself, the rounds that it descends from, and those whose models judge it."""
    from tasks import plan

    stale = plan.stale(ROOT, round)
    if dry_run:
        plan.show(ROOT, round, stale)
    elif not stale:
        typer.echo(f"{round} is up to date; nothing to do.")
    else:
        from flows.round import run_round

        run_round(round)


@app.command(rich_help_panel="Rounds")
def campaign(
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="How many rounds the campaign shall have.")] = 3,
) -> None:
    """Run rounds one after the other, each from the last promoted one; appends those that params.yaml lacks."""
    from flows.campaign import run_campaign

    run_campaign(rounds)


@round_app.command("add")
def round_add(
    name: Annotated[str, typer.Argument(help="The new round's name.")],
    parent: Annotated[str, typer.Option("--parent", help="The round or base that it starts from.")],
    like: Annotated[
        str | None, typer.Option("--like", help="The round whose block is copied (default: the parent).")
    ] = None,
    set_: Settings = None,
) -> None:
    """Append a round to params.yaml; its comments stay."""
    from tasks.params import add_round

    add_round(ROOT, name, parent, set_ or [], like)
    typer.echo(f"params.yaml has {name} now; `flywheel run {name}` runs it.")


@round_app.command("list")
def round_list() -> None:
    """The bases and rounds as a tree, with what has been made of each."""
    from tasks.report import show_tree

    show_tree(ROOT)


@round_app.command("remove")
def round_remove(name: Name) -> None:
    """Take a round out of params.yaml; refuses when others descend from it. Its data stay."""
    from tasks.params import remove_round

    remove_round(ROOT, name)
    typer.echo(f"params.yaml no longer has {name}; its files are still in data/round={name}.")


@base_app.command("add")
def base_add(
    name: Annotated[str, typer.Argument(help="The new base's name.")],
    hub: Annotated[str | None, typer.Option("--hub", help="ID@REVISION of a model of the Hugging Face hub.")] = None,
    local: Annotated[Path | None, typer.Option("--local", help="A folder with a safetensors model.")] = None,
    set_: Settings = None,
) -> None:
    """Append a base to params.yaml: a pinned model of the hub, or a local folder."""
    from tasks.params import add_base

    add_base(ROOT, name, _base_block(hub, local), set_ or [])
    typer.echo(
        f"params.yaml has the base {name} now; `flywheel round add NAME --parent {name}` starts a round from it."
    )


def _base_block(hub: str | None, local: Path | None) -> dict[str, str]:
    from tasks.errors import FlywheelError

    if (hub is None) == (local is None):
        raise FlywheelError("name one of --hub ID@REVISION and --local DIR")
    if local is not None:
        from tasks.models import check, digest

        check(local)
        return {"strategy": "local", "path": str(local), "digest": digest(local)}
    repo, at, revision = str(hub).partition("@")
    if not at:
        raise FlywheelError(f"--hub {hub}: pin a revision, as in --hub {repo}@<40 hexadecimal digits of a commit>")
    return {"strategy": "hub", "repo": repo, "revision": revision}


@app.command(rich_help_panel="Rounds")
def stage(name: Annotated[str, typer.Argument(help="A stage, such as judge.")], round: Name) -> None:
    """Run one stage of one round in this process: the command that DVC and the flows execute."""
    gc.set_threshold(*GARBAGE)
    os.environ |= {**ALLOCATOR, **os.environ}
    from tasks.execute import run_stage

    done = run_stage(ROOT, round, name)
    rows = ", ".join(f"{n} {o.rows}" if o.kind == "table" else n for n, o in done.outputs.items() if o.rows != 0)
    typer.echo(f"{name}@{round}: {rows or 'nothing'} in {sum(done.seconds.values()):.1f} s")


@app.command(rich_help_panel="Rounds")
def promote(round: Name) -> None:
    """Move the registered model's alias to a round, forward or back."""
    from tasks.record import promote as move

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
    write_views: Annotated[
        Path | None, typer.Option("--write-views", help="Make a small .duckdb file of views for other clients.")
    ] = None,
) -> None:
    """Query the tables of all rounds with SQL (DuckDB)."""
    from tasks import catalog
    from tasks.errors import FlywheelError

    if not query and not write_views:
        raise FlywheelError('name a query, as in `flywheel sql "show tables"`, or --write-views FILE')
    if write_views:
        catalog.write_views(ROOT, write_views)
        typer.echo(f"{write_views}: views of all rounds")
    if query:
        catalog.show(ROOT, query, format, out)


@app.command(rich_help_panel="Look")
def trace(
    id: Annotated[str, typer.Argument(help="The id of a row of any table, such as a training row or a pair.")],
    round: Annotated[
        str | None, typer.Option("--round", help="Its round, where several have a row of that id.")
    ] = None,
) -> None:
    """Everything that a row was made from: its responses, their verdicts, their prompts, the models that wrote them."""
    from tasks.catalog import show_trace

    show_trace(ROOT, id, round)


@app.command(rich_help_panel="Look")
def report() -> None:
    """The table of the rounds: accuracy by level, judges, rows, tokens, seconds."""
    from tasks.report import show

    show(ROOT)


@app.command(rich_help_panel="Look")
def doctor() -> None:
    """What is installed, which engines and devices can be used, memory, what is broken and how to mend it."""
    from tasks.doctor import show

    raise typer.Exit(show(ROOT))


@app.command(rich_help_panel="Files")
def export(round: Name, to: Annotated[Path, typer.Option("--to", help="The folder to write.")]) -> None:
    """Write a round's pairs and SFT rows as a data set that `datasets` loads, in TRL's columns."""
    from tasks.export import export as write
    from tasks.params import load_params

    load_params(ROOT).block(round)
    typer.echo(write(ROOT, round, to))


@app.command(rich_help_panel="Files")
def render() -> None:
    """Render dvc.yaml from the stages' signatures."""
    from tasks.params import read
    from tasks.pipeline import write

    read(ROOT)  # says so where this is no project
    typer.echo("dvc.yaml was rendered anew." if write(ROOT) else "dvc.yaml is up to date.")


@app.command(rich_help_panel="Files")
def schema() -> None:
    """The JSON schema of params.yaml, for editors."""
    import json

    from tasks.params import schema as of_params

    typer.echo(json.dumps(of_params(), indent=2))


@app.command(rich_help_panel="Services")
def record() -> None:
    """Bring MLflow up to date from the manifests; as often as you like, each thing once."""
    from tasks.record import record as bring

    typer.echo(bring(ROOT))


@app.command(rich_help_panel="Services")
def up() -> None:
    """Start the local services: Prefect server and worker, MLflow UI; on loopback."""
    from flows.services import up as start

    start(ROOT)


@app.command(rich_help_panel="Services")
def down() -> None:
    """End exactly the services that `up` started."""
    from flows.services import down as end

    end(ROOT)


_USERS = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EACCES", "EPERM", "EROFS", "ENOTDIR")}
"""What the operating system refuses and only a person can mend."""


def main() -> None:
    """The process `flywheel`. One that ran a stage ends without taking the interpreter apart: after transformers that
    takes a second.
    """
    try:
        guarded(app)
    except SystemExit as ended:
        if sys.argv[1:2] != ["stage"] or isinstance(ended.code, str):
            raise
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(BrokenPipeError):
                stream.flush()
        os._exit(ended.code or 0)


def guarded(command: Callable[[], Any]) -> None:
    """Runs a command: an error that is the user's to read is one message; exit code 75 where another try may help."""
    from tasks.errors import EngineError, FlywheelError

    try:
        with _ended_by_signals():
            command()
    except FlywheelError as error:
        typer.secho(f"flywheel: {error}", fg="red", err=True)
        sys.exit(75 if isinstance(error, EngineError) else 1)
    except OSError as error:
        if error.errno not in _USERS:
            raise
        typer.secho(
            f"flywheel: {error.filename or 'a file'}: {error.strerror}; nothing already made is lost",
            fg="red",
            err=True,
        )
        sys.exit(1)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Makes Ctrl-C, SIGTERM and SIGHUP an exit, so that what was started is ended; what `nohup` ignores stays ignored."""
    heard = [s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) is not signal.SIG_IGN]

    def leave(number: int, frame: FrameType | None) -> None:
        for other in heard:  # a terminal that is closed says so twice: the second must not cut the ending short
            signal.signal(other, signal.SIG_IGN)
        os.write(2, f"flywheel: {signal.Signals(number).name}: ending; nothing already made is lost\n".encode())
        sys.exit(128 + number)

    before = {s: signal.signal(s, leave) for s in heard}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


if __name__ == "__main__":
    main()
