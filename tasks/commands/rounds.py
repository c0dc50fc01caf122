"""Commands that add and run rounds."""

import gc
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from tasks.commands import GARBAGE, ROOT, Name, Settings

app = typer.Typer()
round_app = typer.Typer(no_args_is_help=True, help="Add, show, list and remove rounds of params.yaml.")
base_app = typer.Typer(no_args_is_help=True, help="Add and remove bases: the models that rounds start from.")
recipe_app = typer.Typer(no_args_is_help=True, help="Show recipes: published methods as settings of the stages.")
app.add_typer(round_app, name="round")
app.add_typer(base_app, name="base")
app.add_typer(recipe_app, name="recipe")

ALLOCATOR = {"_RJEM_MALLOC_CONF": f"narenas:{os.cpu_count() or 1},muzzy_decay_ms:0"}
"""jemalloc options, set before polars is imported. By default there are four arenas per core, and freed memory is returned
late; with these, a stage's peak memory is a sixth lower, at the same speed (benchmarks/chain.py)."""
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
"""No bars of transformers and datasets, which draw one for each load, save and map: a stage prints a line when it ends."""


Strict = Annotated[
    bool,
    typer.Option(
        "--strict", help="Fail at the end where MLflow does not answer; else the next `flywheel record` catches up."
    ),
]


@app.command(rich_help_panel="Rounds")
def run(
    round: Name,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would run: stages, estimated requests, tokens, time, money.")
    ] = False,
    strict: Strict = False,
) -> None:
    """Bring a round up to date: itself, the rounds that it descends from, and its anchors."""
    from tasks.project import graph

    stale = graph.stale(ROOT, round)
    _check_prompts(stale)
    if dry_run:
        from tasks.project.estimate import show

        show(ROOT, round, stale)
    elif not stale:
        typer.echo(f"{round} is up to date; nothing to do.")
    else:
        from flows.round import run_round

        run_round(round)
    if strict and not dry_run:
        _record_strictly()


def _record_strictly() -> None:
    from tasks.views.record import record

    record(ROOT, strict=True)


def _check_prompts(stale: list[str]) -> None:
    """Refuses a run whose files of prompts have broken lines, before any model is loaded."""
    rounds = [name for stage, _, name in (item.partition("@") for item in stale) if stage == "prompts"]
    if rounds:
        from tasks.project.params import load_params
        from tasks.project.prompt_files import check

        check(ROOT, load_params(ROOT), rounds)


@app.command(rich_help_panel="Rounds")
def campaign(
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Number of rounds in the campaign.")] = 3,
    more: Annotated[int, typer.Option("--more", min=0, help="Rounds to append, whatever --rounds says.")] = 0,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="How appended rounds are made (default: as the last round).")
    ] = None,
    on_refusal: Annotated[
        Literal["branch", "stop"],
        typer.Option(
            "--on-refusal", help="What follows a round that its gates refuse: one from the champion, or nothing."
        ),
    ] = "branch",
    strict: Strict = False,
) -> None:
    """Run rounds one after the other; append the missing ones to params.yaml, each from the champion. It stops after the stage in
    which `campaign.budget` of params.yaml (tokens, hours, money) is reached.
    """
    from tasks.project import graph, recipes
    from tasks.project.prompt_files import check_rounds

    if recipe:
        recipes.read(ROOT, recipe)  # refuses an unknown one before a server starts
    names = graph.rounds(ROOT)
    check_rounds(ROOT, names if more else names[:rounds])
    from flows.campaign import run_campaign

    run_campaign(rounds, more, **({"recipe": recipe} if recipe else {}), on_refusal=on_refusal)
    if strict:
        _record_strictly()


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
    gc.set_threshold(*GARBAGE)
    from tasks.views.report import show_tree

    show_tree(ROOT)


@round_app.command("remove")
def round_remove(name: Name) -> None:
    """Remove a round and those of its phases from params.yaml, unless others descend from it. Its data stay."""
    from tasks.project.edit import remove_round

    removed = remove_round(ROOT, name)
    typer.echo(f"params.yaml no longer has {', '.join(removed)}{_left_over(removed)}.")


def _left_over(removed: list[str]) -> str:
    """Where the files of removed rounds or bases still are."""
    folders = [f"data/round={n}" for n in removed if (ROOT / f"data/round={n}").exists()]
    return f"; its files are still in {', '.join(folders)}" if folders else ""


@base_app.command("add")
def base_add(
    name: Annotated[str, typer.Argument(help="The new base's name.")],
    hub: Annotated[str | None, typer.Option("--hub", help="ID@REVISION of a model of the Hugging Face hub.")] = None,
    local: Annotated[Path | None, typer.Option("--local", help="A folder with a safetensors model.")] = None,
    set_: Settings = None,
) -> None:
    """Append a base to params.yaml: a pinned model of the hub, or a local folder. Domain, engine, exam and gates are those of the
    first base, where --set names no others.
    """
    from tasks.project.edit import add_base
    from tasks.project.params import load_params

    copied = add_base(ROOT, name, _base_block(hub, local), set_)
    block = load_params(ROOT).block(name)
    exam = ", ".join(n for stage in ("evaluate", "gate") for n in block.stages[stage].members)
    typer.echo(
        f"params.yaml has the base {name} now: domain {block.domain.strategy_name()}, engine {block.engine.strategy_name()}, "
        f"exam {exam}; what no --set named is that of {copied}. `flywheel round add NAME --parent {name}` starts a round "
        "from it."
    )


@base_app.command("remove")
def base_remove(name: Annotated[str, typer.Argument(help="A base of params.yaml.")]) -> None:
    """Remove a base from params.yaml, unless rounds descend from it. Its data stay."""
    from tasks.project.edit import remove_base

    remove_base(ROOT, name)
    typer.echo(f"params.yaml no longer has {name}{_left_over([name])}.")


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
def stage(
    name: Annotated[str, typer.Argument(help="A stage, such as judge.")],
    round: Annotated[str, typer.Argument(help="A round or base, such as r2, or what DVC_STAGE says: judge@r2.")],
) -> None:
    """Run one stage of one round in this process: the command that DVC and the flows execute."""
    gc.set_threshold(*GARBAGE)
    quiet = QUIET if name != "base" else {}  # which may download a model for minutes
    os.environ |= {**ALLOCATOR, **quiet, **os.environ}
    from tasks.core.plan import edited_sources
    from tasks.project.addresses import block_name
    from tasks.project.execute import run_stage

    round = block_name(round, name)
    for file in edited_sources(ROOT):
        typer.secho(
            f"warning: {file} was edited since the plan was made; the stage runs as planned before", fg="yellow"
        )
    manifest = run_stage(ROOT, round, name)
    rows = ", ".join(f"{n} {o.rows}" if o.kind == "table" else n for n, o in manifest.outputs.items() if o.rows != 0)
    for warning in manifest.warnings:
        typer.secho(f"warning: {name}@{round}: {warning}", fg="yellow")
    typer.echo(f"{name}@{round}: {rows or 'nothing'} in {sum(manifest.seconds.values()):.1f} s")


@app.command(rich_help_panel="Rounds")
def promote(round: Name) -> None:
    """Move the registered model's alias to a round, forward or back; warns where its gates held it back."""
    from tasks.views.record import promote as move

    typer.echo(move(ROOT, round))
