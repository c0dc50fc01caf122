"""Who may import whom, and what is imported at once: the linter's contracts, and those that it cannot say."""

import ast
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import projects
import pytest

from tasks.stage import names, stages

HEAVY = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "vllm",
    "mlflow",
    "prefect",
    "sklearn",
    "scipy",
    "matplotlib",
)
SHARED = "does not make stages stale"
BIN = Path(sys.executable).parent


def python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=projects.HERE
    ).stdout


def test_the_linters_contracts():
    done = subprocess.run([BIN / "lint-imports"], capture_output=True, text=True, cwd=projects.HERE)
    assert done.returncode == 0, done.stdout[-3000:]


def test_nothing_heavy_is_imported_with_stages_and_strategies():
    every = """
import sys, time
from tasks import execute, params, pipeline, stage, store
plugins = [stage.load(p, n) for p in [*stage.stages(), "domains", "engines"] for n in stage.names(p)]
params.schema()
print(len(plugins), *sys.modules)
"""
    count, *loaded = python(every).split()
    assert int(count) > 25
    assert not {m.partition(".")[0] for m in loaded} & set(HEAVY)


def test_the_help_answers_at_once_and_imports_nothing_but_typer():
    done = python("import sys; sys.argv = ['flywheel', '--help']\nfrom tasks.__main__ import app\n"
                  "try: app()\nfinally: print('modules:', *sys.modules)")  # fmt: skip
    told, _, loaded = done.partition("modules:")
    assert "campaign" in told
    assert not {m.partition(".")[0] for m in loaded.split()} & {
        *HEAVY,
        "polars",
        "duckdb",
        "pyarrow",
        "pydantic",
        "dvc",
    }


def test_the_help_of_the_command_itself():
    seconds = []
    for _ in range(3):
        clock = time.perf_counter()
        done = subprocess.run([BIN / "flywheel", "--help"], capture_output=True, text=True)
        seconds.append(time.perf_counter() - clock)
        assert done.returncode == 0
        assert "promote" in done.stdout
    # half a second on a machine that does nothing else; tests run side by side
    assert min(seconds) < 2


# What runs in a stage but is no dependency of it


@cache
def imported(path: Path) -> frozenset[Path]:
    """The first-party files that a file imports anywhere in it, unless for type checkers alone."""
    found = set()
    for node in _running(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
    return frozenset(f for m in found if m.startswith("tasks") and (f := _file(m)) and f != path)


def _running(tree: ast.AST):
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from _running(node)


def _file(module: str) -> Path | None:
    place = projects.HERE / module.replace(".", "/")
    return next((f for f in (place.with_suffix(".py"), place / "__init__.py") if f.is_file()), None)


def reached(start: Path) -> set[Path]:
    found, left = set(), [start]
    while left:
        new = imported(left.pop()) - found
        found |= new
        left += new
    return found


def says_that_it_is_shared(path: Path) -> bool:
    tree = ast.parse(path.read_text())
    only_words = all(isinstance(node, ast.Expr) for node in tree.body)
    return only_words or SHARED in " ".join((ast.get_docstring(tree) or "").split())


@pytest.mark.parametrize(("stage", "name"), [(s, n) for s in stages() for n in names(s)])
def test_what_a_strategy_runs_makes_it_stale_or_says_that_it_does_not(stage, name):
    """A strategy that used another one's file would go on unnoticed when that is edited."""
    tasks = projects.HERE / "tasks"
    own = tasks / stage / f"{name}.py"
    for path in reached(own) | imported(own) | reached(tasks / stage / "__init__.py"):
        relative = path.relative_to(tasks)
        if relative.parts[0] == stage:
            assert path in (own, tasks / stage / "__init__.py") or stages()[stage].is_panel, (
                f"{stage}/{name} runs {relative}"
            )
        elif relative.parts[0] in ("domains", "engines") and relative.stem in names(relative.parts[0]):
            assert relative.parts[0][:-1] in stages()[stage].context, f"{stage}/{name} runs {relative}"
        else:
            assert says_that_it_is_shared(path), f"the docstring of {relative} does not say: an edit {SHARED}"


@pytest.mark.parametrize("folder", ["domains", "engines"])
def test_a_plug_in_runs_no_other_one(folder):
    for name in names(folder):
        own = projects.HERE / "tasks" / folder / f"{name}.py"
        for path in reached(own) - {own}:
            relative = path.relative_to(projects.HERE / "tasks")
            assert relative.parts[0] != folder or relative.stem not in names(folder), f"{folder}/{name} runs {relative}"
            if path.read_text().strip():
                assert says_that_it_is_shared(path), f"the docstring of {relative} does not say: an edit {SHARED}"
