"""What DVC shows of rounds: metrics that fit a terminal, plots without a network, models, and a clone without data."""

import re
import shutil
import subprocess

import projects
import pytest
from dvc.cli import main as dvc
from ruamel.yaml import YAML

from tasks.core import store
from tasks.project.graph import changed_stages
from tasks.project.params import load_params, stages_of
from tasks.project.pipeline import address

pytestmark = pytest.mark.xdist_group("campaign")


@pytest.fixture
def plotted(made):
    """A project that has run, with the templates of its plots."""
    shutil.copytree(projects.HERE / ".dvc/plots", made / ".dvc/plots")
    return made


def drawn(browser, page_file) -> tuple[list[str], list[str]]:
    """Titles of the charts that a page draws, and what it asks of the network."""
    page = browser.new_page(viewport={"width": 400, "height": 900})
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(error))
    page.goto(page_file.as_uri())
    page.wait_for_selector("svg.marks")
    assert not errors
    assert page.evaluate("document.documentElement.scrollWidth") == 400, "nothing lies outside a narrow window"
    titles = page.locator("svg.marks .role-title-text").all_text_contents()
    page.close()
    return titles, [url for url in requests if not url.startswith("file:")]


def test_metrics_are_a_line_a_round_and_fit_a_terminal(made, capsys):
    assert dvc(["metrics", "show"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["Path", "greedy", "kept", "majority_at_2", "pass_at_1", "promoted"]
    assert [re.search(r"round=(\w+)", row)[1] for row in rows] == ["r0", "r1", "r2"]
    assert max(map(len, [head, *rows])) <= 100


def test_a_lock_from_before_metrics_and_plots_were_few_stays_in_force(made):
    yaml = YAML()
    content = yaml.load(made / "dvc.yaml")
    for entry in (group["do"] for group in content["stages"].values() if "do" in group):
        paths = {path: out for out in entry["outs"] for path in out}
        shown = {kind: [o for path, o in paths.items() if f"/{kind}/" in path] for kind in ("metrics", "plots")}
        entry["outs"] = [o for o in paths.values() if o not in [*shown["metrics"], *shown["plots"]]]
        entry.update({kind: outs for kind, outs in shown.items() if outs})
    yaml.dump(content, made / "dvc.yaml")
    params = load_params(made)
    stages = [address(stage, block) for block in params.blocks.values() for stage in stages_of(block)]
    assert changed_stages(made, stages) == set()


def test_plots_are_drawn_over_rounds_and_without_a_network(plotted, browser):
    assert dvc(["plots", "show", "--quiet"]) == 0
    titles, requests = drawn(browser, plotted / "dvc_plots/index.html")
    assert titles == ["Exam, rounds of r0", "pass@1 by level, rounds of r0", "Greedy accuracy by level, rounds of r0"]
    assert requests == [], "nothing was trained, so that there is no loss to draw"


def test_plots_compare_an_edit_with_the_commit_before_it(plotted, browser):
    levels = plotted / "data/round=r2/plots/levels.csv"
    levels.write_text(re.sub(r",0\.0$", ",0.75", levels.read_text(), flags=re.MULTILINE))
    assert dvc(["plots", "diff", "HEAD", "--targets", "pass_at_1-r0", "--quiet"]) == 0
    titles, requests = drawn(browser, plotted / "dvc_plots/index.html")
    assert (titles, requests) == (["pass@1 by level, rounds of r0"], [])
    text = (plotted / "dvc_plots/index.html").read_text()
    assert '"rev": "HEAD"' in text
    assert re.search(r'"pass_at_1": "0.75", "rev": "workspace", "filename": "round=r2/', text)


def test_the_page_of_plots_holds_its_library():
    page = (projects.HERE / ".dvc/plots/page.html").read_text()
    assert page.count("{plot_divs}") == 1
    assert not re.search(r"""<(script|link)[^>]+(src|href)=""", page)
    assert "BSD 3-Clause" in page


def test_a_registered_model_can_be_had_by_its_name(made, tmp_path):
    projects.git(made, "tag", "--annotate", "r1@v1.0.0", "--message", "as `gto register r1` does")
    assert dvc(["artifacts", "get", str(made), "r1", "--out", str(tmp_path / "model"), "--quiet"]) == 0
    model, _ = store.folder(made, "r1", "model")
    assert {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()} == {
        p.name: p.read_bytes() for p in model.iterdir()
    }


@pytest.fixture
def clone(made, tmp_path, monkeypatch):
    """A colleague's clone, with nothing but what git has, of a project whose data were pushed."""
    assert dvc(["remote", "add", "--default", "--quiet", "store", str(tmp_path / "remote")]) == 0
    assert dvc(["push", "--quiet"]) == 0
    projects.commit(made, "a remote")
    projects.git(tmp_path, "clone", "--quiet", str(made), "clone")
    monkeypatch.chdir(tmp_path / "clone")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "clone"))
    return tmp_path / "clone"


def test_nothing_runs_for_a_colleague_without_the_data(clone, capsys):
    assert dvc(["repro", "--allow-missing"]) == 0
    assert "up to date" in capsys.readouterr().out
    assert not list((clone / "data").glob("round=*")), "nor is anything fetched"
    assert dvc(["metrics", "show"]) == 0
    assert "round=r2/metrics/gate.json" in capsys.readouterr().out


def test_an_edit_of_a_colleague_fetches_what_it_needs_and_runs_no_more(clone):
    projects.set_exam(clone, "gate", "coverage", min_share=0.5)
    fetch = "dvc pull --quiet $(dvc ls . --recursive --dvc-only | grep /manifests/)"
    bash = ["bash", "-euo", "pipefail", "-c", f"{fetch}\ndvc repro --allow-missing --pull gate@r2"]
    done = subprocess.run(bash, capture_output=True, text=True, check=False, env=projects.own_code(clone))
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"^Running stage '(.+)'", done.stdout, re.MULTILINE) == ["plan", "gate@r2"]
    fetched = {p.name for p in (clone / "data").glob("round=*/*") if p.is_dir()} - {"manifests"}
    assert {"evals", "measures", "pairs", "filtered"} < fetched, "what the gate reads"
    assert not {"model", "responses", "judgments"} & fetched
