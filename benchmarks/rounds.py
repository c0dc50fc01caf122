"""What the commands cost that a person waits for, in projects of 10, 50 and 200 complete rounds.

    python benchmarks/rounds.py                [--rounds 10 --rounds 50 --rounds 200] [--only sql]
    python benchmarks/rounds.py make FOLDER 50 [--prompts 12]       leaves such a project there
    python benchmarks/rounds.py --project FOLDER --rounds 50        measures in it, with the code that lies there

Each project is made of the code as it is here. Its base and first round run with the engine that answers by rule; the others
are that round's tables under other names, written and committed as stages do it, each with its own plan, so that nothing
is stale. Every figure is the median of three runs of the command as a user starts it, beside its goal; user CPU seconds,
which a busy machine changes less, stand behind it.
"""

import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import chdir, contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from commands import BIN, environment
from ruamel.yaml import YAML
from table import add

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))

import projects  # noqa: E402

from tasks.core import store  # noqa: E402
from tasks.core.tables import TABLES  # noqa: E402
from tasks.project import pipeline, plan  # noqa: E402
from tasks.project.params import Block, load_params, stages_of  # noqa: E402

RUNS = 3
SIZES = (10, 50, 200)
PARAMS = (
    "from pathlib import Path; from tasks.project.params import load_params; import time; t = time.perf_counter(); "
)
PARAMS += "load_params(Path()); print(time.perf_counter() - t)"
COMMANDS: dict[str, tuple[list[str], dict[int, float]]] = {
    "dvc status": (["dvc", "status", "-q"], {10: 2, 50: 5, 200: 10}),
    "dvc repro": (["dvc", "repro", "-q"], {10: 2, 50: 5, 200: 10}),
    "flywheel run": (["flywheel", "run", "{last}"], {10: 2, 50: 5, 200: 5}),
    "flywheel run --dry-run": (["flywheel", "run", "{last}", "--dry-run"], {10: 2, 50: 5, 200: 5}),
    "flywheel round list": (["flywheel", "round", "list"], {10: 2, 50: 2, 200: 2}),
    "flywheel report": (["flywheel", "report"], {10: 2, 50: 2, 200: 2}),
    "flywheel sql on one round": (
        ["flywheel", "sql", "select count(*) from responses where round = '{last}'"],
        {10: 1.5, 50: 1.5, 200: 1.5},
    ),
    "flywheel sql on all rounds": (["flywheel", "sql", "select count(*) from responses"], {}),
}
"""Each with the most seconds that it may take, by the number of rounds."""
app = typer.Typer(add_completion=False, help=__doc__)


# Making a project


@contextmanager
def made(rounds: int, prompts: int = 12) -> Iterator[Path]:
    """A project of that many complete rounds, for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="flywheel-") as folder:
        yield build(Path(folder) / "project", rounds, prompts)


def build(place: Path, rounds: int, prompts: int = 12) -> Path:
    """Fills a new folder with a project of a base and that many rounds in a row, none of which is stale."""
    place.mkdir(parents=True)
    projects.make(place, rounds=1)
    projects.set_values(place, "r1", [f"prompts.seeds.count={prompts}"])
    with chdir(place):
        projects.run_all()
    add_rounds(place, rounds)
    blocks, plans = load_params(place), plan.plans(place, load_params(place))
    for name, block in blocks.rounds.items():
        if name != "r1":
            copy_round(place, block, plans)
    commit(place)
    projects.commit(place, f"{rounds} rounds")
    return place


def add_rounds(place: Path, rounds: int) -> None:
    """Lets params.yaml have that many rounds, each as the first one and from the one before."""
    yaml = YAML()
    content = yaml.load(place / "params.yaml")
    first = content["rounds"]["r1"]
    content["rounds"] = {f"r{n}": {**first, "parent": f"r{n - 1}", "seed": n} for n in range(1, rounds + 1)}
    yaml.dump(content, place / "params.yaml")
    pipeline.write(place, load_params(place))
    plan.write(place)


def copy_round(place: Path, block: Block, plans: plan.Plans) -> None:
    """Writes what the stages of a round would write, had they made what those of r1 made."""
    source = store.round_folder(place, "r1")
    first = store.manifests(place, "r1")
    digests: dict[str, str] = {out: o.digest for m in first.values() for out, o in m.outputs.items()}
    for stage in stages_of(block):
        manifest = first[stage.name]
        with store.writing(place, block.name, stage.name) as draft:
            for out in pipeline.written(stage):
                if out in TABLES:
                    draft.table(TABLES[out], store.scan(place, "r1", out)[0])
                else:
                    shutil.copytree(source / out, draft.folder(out), dirs_exist_ok=True)
                    draft.describe_folder(out)
            for file in [f"metrics/{stage.name}.json", *(f"plots/{p}.csv" for p in stage.plots)]:
                draft.file(file, (source / file).read_text().replace('"r1"', f'"{block.name}"'))
            inputs = manifest.inputs | _inputs(place, block, stage.name, digests)
            own = {
                "round": block.name,
                "plan": plans[block.name, stage.name],
                "outputs": draft.outputs,
                "inputs": inputs,
            }
            draft.commit(store.Manifest.model_validate(manifest.model_copy(update=own).model_dump()))


def _inputs(place: Path, block: Block, stage: str, digests: dict[str, str]) -> dict[str, str]:
    """Digests of what a stage of a copied round reads of its parent."""
    needs = {i.argument: i for s in stages_of(block) if s.name == stage for i in s.inputs}
    read = store.manifests(place, "r1")[stage].inputs
    of_parent = {a: needs[a].name for a in read if needs[a].ancestor == "parent" and block.parent != "r0"}
    return {a: digests[name] for a, name in of_parent.items()}


def commit(place: Path) -> None:
    """Lets DVC take what is there for the stages' results. As `dvc commit --force`, which writes dvc.lock anew for each stage."""
    from dvc.stage.serialize import to_lockfile

    with projects.dvc(place) as repo, repo.lock:
        entries: dict[str, Any] = {}
        for stage in repo.index.stages:
            stage.save()
            stage.commit()
            entries |= to_lockfile(stage)
        with (place / "dvc.lock").open("w") as file:
            yaml = YAML()
            yaml.dump({"schema": "2.0", "stages": {n: plain(entry) for n, entry in entries.items()}}, file)


def plain(value: Any) -> Any:
    """Ordered dictionaries as plain ones."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list) else value


# Measuring


def seconds(command: list[str], place: Path, runs: int = RUNS) -> tuple[float, float]:
    """Median wall time and median user CPU time of a command."""
    walls, users = [], []
    for _ in range(runs):
        before, clock = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime, time.perf_counter()
        subprocess.run(
            [BIN / command[0], *command[1:]], cwd=place, check=True, capture_output=True, env=environment(place)
        )
        walls.append(time.perf_counter() - clock)
        users.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before)
    return median(walls), median(users)


def measure(name: str, command: list[str], place: Path, goal: float | None, runs: int = RUNS) -> None:
    """A row of a command's time and its goal."""
    wall, user = seconds(command, place, runs)
    add(name, f"{wall:.2f} s (user {user:.2f})", f"{goal} s" if goal else "", wall / goal if goal else None, 1)


def measure_params(place: Path, what: str) -> None:
    """A row of the time in which params.yaml is read and validated, imports apart."""
    run = [sys.executable, "-c", PARAMS]
    times = [
        float(subprocess.run(run, cwd=place, check=True, capture_output=True, text=True, env=environment(place)).stdout)
        for _ in range(RUNS)
    ]
    add(f"params validated, {what}", f"{median(times):.2f} s", "0.5 s", median(times) / 0.5, 1)


def measure_record(place: Path, rounds: int, what: str) -> None:
    """Rows of the first `record` of all rounds but the last, unless it was made, and of the one that finds the last one new."""
    last, away, recorded = place / f"data/round=r{rounds}", place / "away", place / "mlflow.db"
    last.rename(away)
    if not recorded.exists():
        measure(f"flywheel record, first, {what}", ["flywheel", "record"], place, None, runs=1)
    away.rename(last)
    measure(f"flywheel record of one new round, {what}", ["flywheel", "record"], place, None, runs=1)
    measure(f"flywheel record, nothing new, {what}", ["flywheel", "record"], place, None)


@app.command()
def make(folder: Path, rounds: int, prompts: int = 12) -> None:
    """Leaves a project of that many complete rounds in a new folder."""
    build(folder, rounds, prompts)


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    rounds: Annotated[list[int] | None, typer.Option("--rounds")] = None,
    only: Annotated[str, typer.Option("--only", help="A part of the names of the commands.")] = "",
    prompts: Annotated[int, typer.Option("--prompts", help="Problems of each round.")] = 12,
    project: Annotated[Path | None, typer.Option("--project", help="A project that `make` left, of --rounds.")] = None,
) -> None:
    """Measures all commands in projects of each number of rounds."""
    if context.invoked_subcommand:
        return
    for count in rounds or SIZES:
        with nullcontext(project.resolve()) if project else made(count, prompts) as place:
            what = f"{count} rounds"
            for name, (command, goals) in COMMANDS.items():
                if only in name:
                    words = [word.format(last=f"r{count}") for word in command]
                    measure(f"{name}, {what}", words, place, goals.get(count))
            if only in "params validated":
                measure_params(place, what)
            if only in "flywheel record":
                measure_record(place, count, what)


if __name__ == "__main__":
    app()
