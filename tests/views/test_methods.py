"""The page of all strategies and recipes."""

import re
import subprocess
import sys

import projects
import pytest
from pydantic import Field, PositiveFloat, PositiveInt
from ruamel.yaml import YAML

from tasks.core.plugin import Params, load, names
from tasks.core.stage import stages
from tasks.project import recipes
from tasks.views._markdown import escaped, first_sentence, markdown, slug, words
from tasks.views.methods import FILE, parameters, render, write

TEMPORAL = {
    "title": "Two models a round",
    "paper": "Someone and Other 2026, arXiv:2601.00001",
    "parent": "first",
    "anchor": "base",
    "phases": {"first": {"when": "from_base", "anchor": "parent", "stages": {"filter": {"strategy": "threshold", "per_level": 3}}}},
    "stages": {"generate": {"hot": {"strategy": "sample", "temperature": 1.5}}, "judge": {"reward": "verifier", "verifier": None}},
}  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("page")
    projects.write_recipe(root, "small", projects.SMALL)
    YAML().dump(recipes.plain(TEMPORAL), root / "recipes/temporal.yaml")
    return render(root)


def section(page: str, title: str) -> str:
    return re.split(r"^##", page.split(f"\n### {title}\n", 1)[1], flags=re.MULTILINE)[0]


def test_every_strategy_has_a_line_and_a_section(page):
    strategies = [(stage, name) for stage in stages() for name in names(stage)]
    assert re.findall(r"^\| `(\w+)` \| \[`(\w+)`", page.split("\n## ")[0], re.MULTILINE) == strategies
    for stage, name in strategies:
        text = section(page, f"{stage}: {name}")
        for field in load(stage, name).__annotations__:
            assert f"`{field}`" in text or field not in load(stage, name).model_fields, (name, field)


def test_every_link_leads_to_a_heading(page):
    titles = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    anchors = [slug(title) for title in titles]
    assert len(set(anchors)) == len(anchors)
    linked = set(re.findall(r"\]\(#([^)]+)\)", page))
    assert len(linked) > len(names("judge"))
    assert linked <= set(anchors)


def test_every_row_has_as_many_cells_as_its_head(page):
    head = None
    for line in page.splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else None
        assert cells is None or head in (None, cells), line
        head = cells


def test_parameters_are_told_once_where_they_are_declared(page):
    assert "| `fraction` | number > 0, ≤ 1 | `0.5` |" in section(page, "filter: top_fraction")
    assert page.count("| `per_prompt` | whole number > 0 | `1` | Most responses kept") == 1
    assert "Takes the parameters of [`self_judge`](#judge-self_judge) too." in section(page, "judge: jury")
    assert "[`FineTuning`](#train-parameters-of-finetuning)" in section(page, "train: sft")
    assert "| `adapter.rank` | whole number > 0 | `16` |" in section(page, "train: parameters of FineTuning")


def test_a_recipe_is_shown_with_its_phases(page):
    text = section(page, "recipe: temporal")
    for words_ in (
        "**Paper.** Someone and Other 2026, [arXiv:2601.00001](https://arxiv.org/abs/2601.00001)",
        "**Phase `temporal.first`**, only from a base, anchor `parent`:",
        "| `filter` | [`threshold`](#filter-threshold), `per_level: 3` |",
        "**Main round**, parent `first`, anchor `base`:",
        "| `generate` | `hot`: [`sample`](#generate-sample), `temperature: 1.5` |",
        "| `judge` | `reward: verifier`<br>[`verifier`](#judge-verifier) |",
    ):
        assert words_ in text
    assert "[Someone and Other 2026](https://arxiv.org/abs/2601.00001)" in page.split("\n## ")[0]
    assert "In recipes: [`small`](#recipe-small), [`temporal`](#recipe-temporal)." in section(page, "filter: threshold")
    assert "Main round" not in section(page, "recipe: small")


@pytest.mark.parametrize(
    ("doc", "sentence"),
    [
        ("The loop of Xi et al. 2024: it\n    goes on. And more.", "The loop of Xi et al. 2024: it goes on."),
        ("As Yue et al. (2025) say, e.g. so. `it` is.", "As Yue et al. (2025) say, e.g. so."),
        ("Weight 0.5 of it\n\n    Another paragraph.", "Weight 0.5 of it"),
        ("Three:\n    - one. Two", "Three:"),
        ("One sentence.", "One sentence."),
    ],
)
def test_the_first_sentence(doc, sentence):
    assert first_sentence(doc) == sentence


def test_docstrings_become_markdown():
    text = """It is x*y, see (Wang et al. 2022,
    arXiv:2203.11171), of `a*b`:
    - one, which
      goes on
    - y_<i and _two_

        c = a * b
    """
    assert markdown(text) == (
        "It is x\\*y, see (Wang et al. 2022, [arXiv:2203.11171](https://arxiv.org/abs/2203.11171)), of `a*b`:\n"
        "- one, which goes on\n- y\\_\\<i and \\_two\\_\n\n    c = a * b"
    )
    assert escaped("a_b ~ `~_<`") == "a_b \\~ `~_<`"
    assert slug("judge: self_certainty (β)!") == "judge-self_certainty-β"


def test_types_in_words():
    class Inner(Params):
        x: int = 1

    class Kinds(Params):
        count: PositiveInt | None = None
        share: float = Field(0.5, ge=0, lt=1)
        levels: dict[str, PositiveFloat] = {}
        names: list[str] = []
        inner: Inner | None = None
        on: bool = True

    schema = Kinds.model_json_schema()
    assert {name: words(s, schema["$defs"]) for name, s in schema["properties"].items()} == {
        "count": "whole number > 0 or null",
        "share": "number ≥ 0, < 1",
        "levels": "map of text to numbers > 0",
        "names": "list of texts",
        "inner": "block or null",
        "on": "true or false",
    }


def test_a_default_of_several_lines_stands_below_its_table():
    class Asking(Params):
        rubric: str = "One.\n\nScore | n:"
        """How it is asked."""

    assert parameters(Asking, ["rubric"]) == (
        "| parameter | type | default | meaning |\n| --- | --- | --- | --- |\n| `rubric` | text | below | How it is asked. |\n"
        "\nDefault of `rubric`:\n\n```text\nOne.\n\nScore | n:\n```\n"
    )


def test_writing_says_whether_it_changed_anything(tmp_path):
    projects.write_recipe(tmp_path, "small", projects.SMALL)
    assert write(tmp_path)
    assert not write(tmp_path)
    assert (tmp_path / FILE).read_text() == render(tmp_path)


def test_nothing_heavy_is_imported():
    code = "import sys; from pathlib import Path; from tasks.views.methods import render; render(Path()); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=projects.HERE, capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "trl", "mlflow", "prefect", "scipy"} & {
        m.split(".")[0] for m in done.stdout.split()
    }
