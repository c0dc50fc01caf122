"""Who may import whom, and what is imported at once: the linter's contracts, and those that it cannot say."""

import subprocess
import sys
import time
from pathlib import Path

import projects

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
from tasks.core import plugin, stage, store
from tasks.project import execute, params, pipeline, plan, schema
plugins = [plugin.load(p, n) for p in [*stage.stages(), "domains", "engines"] for n in plugin.names(p)]
schema.of_params()
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
