"""The documents: their tables say what the code says, and their examples and commands run, in a small project."""

import dataclasses
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import projects
import pytest

from tasks.core.stage import stages
from tasks.views import methods

pytestmark = pytest.mark.timeout(600)
DOCS = projects.HERE / "docs"
ARCHITECTURE, ADDING = ((DOCS / f"{name}.md").read_text() for name in ("architecture", "adding-a-strategy"))
EXAMPLES = dict(
    re.findall(r"`((?:tasks|tests)/\w+/\w+\.py)`:\n\n```python\n(.*?)^```", ADDING, re.MULTILINE | re.DOTALL)
)
COMMANDS = [
    b for text in (ARCHITECTURE, ADDING) for b in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
]
RECIPE = projects.SMALL | {
    "prompts": {"pool": {"count": 24}},
    "generate": {"sample": {"samples": 4, "max_tokens": 64}},
    "collect": {"answers": {}, "refinements": {}, "critiques": {}},
}
UNTIL_FILTER = "for stage in prompts generate judge filter; do flywheel stage $stage b1; done\n"
"""Stands for `flywheel run b1`: the stages that the examples are about."""
MAKE = """
from pathlib import Path
from tasks.project import plan
from tasks.project.execute import run_stage
plan.write(Path())
run_stage(Path(), "r0", "base")
for stage in ("prompts", "generate", "judge", "filter", "critique", "pair", "collect"):
    run_stage(Path(), "r1", stage)
"""


def rows(text: str, first: str) -> list[list[str]]:
    """The cells of the table whose head begins with a column, without the head."""
    lines = text[text.index(f"| {first} |") :].splitlines()
    body = lines[2 : next(n for n, line in enumerate(lines) if not line)]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in body]


def codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def named(annotation: object) -> str:
    """A type as the documents write it: without its module."""
    return "None" if annotation is type(None) else re.sub(r"[\w.]+\.", "", inspect.formatannotation(annotation))


def test_the_table_of_strategies_is_that_of_the_code():
    table = rows(ADDING, "stage | strategies")
    assert [codes(row[0]) for row in table] == [[name] for name in stages()]
    for stage, (_, count, base, case, fields, result) in zip(stages().values(), table, strict=True):
        types = get_type_hints(stage.strategy.__call__)
        assert count == ("several" if stage.many else "one"), stage.name
        assert codes(base) == [stage.strategy.__name__], stage.name
        assert codes(case) == [types["case"].__name__], stage.name
        assert codes(fields) == [f.name for f in dataclasses.fields(types["case"])], stage.name
        assert codes(result)[0] == named(types["return"]), stage.name


def test_the_table_of_inputs_and_outputs_is_that_of_the_code():
    table = rows(ARCHITECTURE, "stage | reads of its round")
    assert [codes(row[0]) for row in table] == [[name] for name in stages()]
    for stage, (_, own, ancestors, written) in zip(stages().values(), table, strict=True):
        read = [i for i in stage.inputs if not i.opened]
        assert codes(own) == [i.argument for i in read if not i.ancestor], stage.name
        assert codes(ancestors) == [i.argument for i in read if i.ancestor], stage.name
        assert codes(written) == list(stage.outputs), stage.name


def test_the_page_of_methods_is_that_of_the_code():
    written = (projects.HERE / methods.FILE).read_text()
    assert written == methods.render(projects.HERE), "run `flywheel methods --write`, and commit docs/methods.md"


@pytest.fixture(scope="module")
def project(tmp_path_factory, apart) -> Path:
    """A small project with the real model and both examples, whose first round has run until there are training rows."""
    root = projects.make(tmp_path_factory.mktemp("docs") / "project", rounds=1)
    shutil.rmtree(root / "data/base")
    shutil.copytree(projects.HERE / "data/base", root / "data/base")
    projects.write_recipe(root, "small", RECIPE)
    projects.rewrite(root, lambda content: content["bases"]["r0"].update(engine={"strategy": "transformers"}))
    for name, text in EXAMPLES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name in (
        "tests/conftest.py",
        "tests/torture.py",
        "tests/crashed.py",
        "tests/projects.py",
        "tests/test_contract.py",
        "pyproject.toml",
    ):
        shutil.copy(projects.HERE / name, root / name)
    subprocess.run([sys.executable, "-c", MAKE], cwd=root, env=projects.own_code(root), check=True)
    return root


def run(root: Path, script: str) -> str:
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=root, env=projects.own_code(root), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("script", COMMANDS, ids=[c.strip().split("\n")[0][:40] for c in COMMANDS])
def test_the_commands_of_the_documents(project, script):
    printed = run(project, script.replace("flywheel run b1\n", UNTIL_FILTER))
    if "trace" in script:
        rows = {match[1] for match in re.finditer(r"(\w+) r\d [0-9a-f]{16}", printed)}
        assert rows == {"training", "prompts", "responses", "judgments", "filtered"}
        assert "model of the base r0" in printed
    assert len(re.findall("^0 rows", printed, re.MULTILINE)) == script.count("from decisions")  # no gate has run


def test_the_examples_pass_the_linter_and_their_own_test(project):
    assert list(EXAMPLES) == ["tasks/filter/band.py", "tasks/judge/stepwise.py", "tests/filter/test_band.py"]
    files = " ".join(EXAMPLES)
    run(project, f"ruff check {files} && ruff format --check {files}")
    run(project, "pytest -n 0 tests/filter/test_band.py")


def test_the_model_is_judged_by_the_new_judge(project):
    """After the commands: some answers are judged, and the filter's rules are the example's."""
    from tasks.core import store

    judgments = store.read(project, "b1", "judgments").filter(member="stepwise")
    assert judgments["score"].drop_nulls().is_in([0.0, 1.0]).all()
    assert len(judgments["score"].drop_nulls())
    assert set(store.read(project, "b1", "filtered")["reason"].drop_nulls()) <= {
        "low", "high", "format", "duplicate", "rank", "unjudged",
    }  # fmt: skip


def test_every_code_and_file_that_the_documents_name_is_there():
    for text in (ARCHITECTURE, ADDING):
        for name in set(re.findall(r"`((?:tasks|tests|docs|recipes)/[\w/]+\.(?:py|md|yaml))`", text)) - EXAMPLES.keys():
            assert (projects.HERE / name).is_file(), name


def test_the_readme_names_every_method():
    from tasks.core.plugin import names
    from tasks.project import recipes

    listed = {row[0]: codes(row[1]) for row in rows((projects.HERE / "README.md").read_text(), "stage | methods")}
    assert listed.pop("recipes") == recipes.names(projects.HERE)
    assert listed == {stage: names(stage) for stage in stages() if stage != "base"}
