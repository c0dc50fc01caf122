"""A small project whose stages are those of the real one, with a cheap command in place of the real ones."""

import shutil
import sys
from io import StringIO
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tasks import pipeline
from tasks.params import add_round

HERE = Path(__file__).parents[2]

CHEAP = '''
"""Writes every out of a stage: a line that says what was asked of it, and a manifest."""
import json, os, sys, time
from pathlib import Path
from ruamel.yaml import YAML

stage, name, *outs = sys.argv[1:]
if (stop := Path(f"stop-{stage}-{name}")).exists():
    print(stop.read_text(), file=sys.stderr)
    sys.exit(int(stop.read_text().split()[-1]))
if (pause := Path(f"pause-{stage}-{name}")).exists():
    Path("paused").write_text(str(os.getpid()))
    time.sleep(60)
content = YAML(typ="safe").load(Path("params.yaml").read_text())
block = ({**content["bases"], **content["rounds"]})[name]
text = json.dumps([block.get(stage), block["seed"], name if block["seed"] else ""], sort_keys=True, default=str)
with open("ran.log", "a") as log:
    log.write(f"{stage}@{name}\\n")
here = Path(f"data/round={name}")
for out in outs:
    place = here / out
    if out.startswith(("metrics/", "plots/", "manifests/")):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("{}" if out.endswith("json") else "step,value\\n")
    else:
        place.mkdir(parents=True, exist_ok=True)
        (place / "part").write_text(text)
tables = {o: {"kind": "table", "digest": "", "rows": 7, "parts": []} for o in outs if "/" not in o and o != "model"}
(here / "manifests" / f"{stage}.json").write_text(json.dumps({
    "round": name, "stage": stage, "outputs": tables, "inputs": {}, "params": {stage: block.get(stage)}, "code": {},
    "seed": 0, "versions": {}, "metrics": {"promoted": float("refuse" not in block.get("parent", ""))},
    "tokens": {"requests": 10, "prompt_tokens": 100, "completion_tokens": 200}, "seconds": {}, "started": "", "finished": "",
}))
'''


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A project of the base r0 and the rounds r1 and r2, none of which has run; the working directory."""
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    for variable in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


def make_project(root: Path) -> None:
    """Fills an empty folder with the project."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(HERE / "tasks", root / "tasks", ignore=ignored)
    (root / "data" / "seeds").mkdir(parents=True)
    (root / ".dvc").mkdir()
    (root / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n    check_update = false\n")
    shutil.copy(HERE / ".dvcignore", root)
    (root / "cheap.py").write_text(CHEAP)
    shutil.copy(HERE / "params.yaml", root)
    _only_first_round(root)
    add_round(root, "r2", "r1", [])
    (root / "dvc.yaml").write_text(_cheap(pipeline.render()))


def _only_first_round(root: Path) -> None:
    yaml = YAML()
    content = yaml.load(root / "params.yaml")
    content["bases"] = {"r0": content["bases"]["r0"]}
    content["rounds"] = {"r1": content["rounds"]["r1"]}
    yaml.dump(content, root / "params.yaml")


def _cheap(text: str) -> str:
    yaml = YAML()
    content = yaml.load(text)
    for group in content["stages"].values():
        entry = group["do"]
        stage = entry["cmd"].split()[2]
        outs = [o for key in ("outs", "metrics", "plots") for item in entry.get(key, []) for o in item]
        names = [o.removeprefix("data/round=${key}/") for o in outs]
        entry["cmd"] = f"{sys.executable} cheap.py {stage} ${{key}} {' '.join(names)}"
    out = StringIO()
    yaml.dump(content, out)
    return out.getvalue()


def ran(root: Path) -> list[str]:
    """The stages whose command ran, in that order; forgets them."""
    log = root / "ran.log"
    lines = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines
