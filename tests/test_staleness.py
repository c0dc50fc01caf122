"""What makes a stage stale, and what does not: asked of DVC itself, over a small campaign that has run."""

import inspect
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import projects
import pytest
from dvc.cli import main as dvc

from tasks.execute import run_stage
from tasks.params import load_params, stages_of
from tasks.stage import Panel, stages

pytestmark = pytest.mark.xdist_group("campaign")
ROUNDS = ("r1", "r2")


def status(root: Path) -> dict[str, set[str]]:
    """The stages that DVC calls stale, with what changed: dependencies by their path, params by their key."""
    with projects.dvc(root) as repo:
        found = repo.status()
    return {name: set(_changed(why)) for name, why in found.items()}


def _changed(why: list) -> Iterator[str]:
    for entry in why:
        assert set(entry) == {"changed deps"}
        for dependency, how in entry["changed deps"].items():
            yield from how if isinstance(how, dict) else [dependency]


def concerned(file: Path, params: dict) -> dict[str, str]:
    """The stages that a file is of, and the dependency through which: the rule, from the files' places alone.

    A stage is concerned by its own `__init__.py`, by the strategy that a block names (by all where it takes a panel),
    and by the domain and the engine that a block names, if its function asks for them; `judge`, whose jurors bring their
    own, by every engine.
    """
    found = {}
    for kind in ("bases", "rounds"):
        for name, block in params[kind].items():
            for stage in stages().values():
                if isinstance(block.get(stage.name), dict) and (dependency := _through(file, stage, block)):
                    group = f"{stage.name}-base" if stage.bases == "too" and kind == "bases" else stage.name
                    found[f"{group}@{name}"] = dependency
    return found


def _through(file: Path, stage, block: dict) -> str | None:
    takes = inspect.signature(stage.function).parameters
    panel = inspect.isclass(kind := takes["params"].annotation) and issubclass(kind, Panel)
    if file.parts[:2] == ("tasks", stage.name):
        if panel:
            return f"tasks/{stage.name}"
        return str(file) if file.stem in ("__init__", block[stage.name]["strategy"]) else None
    if stage.name == "judge" and file.parts[:2] == ("tasks", "engines"):
        return None if file.stem.startswith("_") else str(file)
    chosen = {("tasks", f"{k}s", f"{block[k]['strategy']}.py") for k in ("domain", "engine") if k in takes}
    return str(file) if file.parts in chosen else None


def test_an_edit_of_a_file_makes_stale_what_it_concerns_and_nothing_else(made):
    params = projects.values(made)
    files = [p.relative_to(made) for d in ("tasks", "flows") for p in sorted((made / d).rglob("*.py"))]
    of_nobody = [f for f in files if not concerned(f, params)]
    assert len(files) > 70
    assert Path("tasks/stage.py") in of_nobody
    assert status(made) == {}
    edited(made, of_nobody)
    assert status(made) == {}
    # files of different folders are edited together: which of them made a stage stale, its changed dependency says
    folders = defaultdict(list)
    for file in set(files) - set(of_nobody):
        folders[file.parent].append(file)
    assert len(folders) == len(stages()) + 2
    for batch in zip_longest(*folders.values()):
        batch = [f for f in batch if f]
        expected = defaultdict(set)
        for file in batch:
            for stage, dependency in concerned(file, params).items():
                expected[stage].add(dependency)
        before = edited(made, batch)
        assert status(made) == expected
        for file, text in before.items():
            (made / file).write_bytes(text)
    assert status(made) == {}


def edited(root: Path, files: list[Path]) -> dict[Path, bytes]:
    """Appends a comment to each file; gives what they held."""
    before = {f: (root / f).read_bytes() for f in files}
    for file, text in before.items():
        (root / file).write_bytes(text + b"# an edit\n")
    return before


def every(round: str, *names: str) -> set[str]:
    return {f"{n}@{round}" for n in names}


DOMAIN = ("prompts", "generate", "judge", "critique", "train", "evaluate")
ENGINE = ("prompts", "generate", "judge", "critique", "evaluate")
EDITS = {
    "rounds.r2.filter.least=3.0": every("r2", "filter"),
    "rounds.r1.generate.samples=4": every("r1", "generate"),
    "rounds.r2.judge.reward=verifier": every("r2", "judge"),
    "rounds.r2.evaluate.panel.answers.greedy=7": every("r2", "evaluate"),
    "rounds.r2.gate.panel.improves.least=0.1": every("r2", "gate"),
    "rounds.r2.seed=9": every("r2", *DOMAIN),
    "rounds.r1.domain.hardest=7": every("r1", *DOMAIN),
    "rounds.r2.engine.error_rate=0.5": every("r2", *ENGINE),
    "bases.r0.evaluate.panel.answers.greedy=7": {"evaluate-base@r0"},
    "bases.r0.base.digest=null": {"base@r0"},
    "campaign.name=another": set(),
}


def test_an_edit_of_params_makes_stale_what_it_concerns_and_nothing_else(made):
    expected = defaultdict(set)
    for edit, concerns in EDITS.items():
        projects.rewrite(made, lambda content, edit=edit: assign(content, edit))
        for stage in concerns:
            expected[stage].add(".".join(edit.split("=")[0].split(".")[:3]))
    assert status(made) == expected


def test_an_edit_of_a_comment_or_of_another_name_makes_nothing_stale(made):
    (made / "params.yaml").write_text("# another comment\n" + (made / "params.yaml").read_text())
    projects.rewrite(made, lambda content: assign(content, "campaign.name=another"))
    assert status(made) == {}


def test_a_file_of_seeds_makes_stale_who_reads_it_and_nobody_else(made):
    for name in ("mine.jsonl", "others.jsonl"):
        (made / "data/seeds" / name).write_text('{"problem": "Tom has 3 pens.\\nHow many?"}\n')
    assert status(made) == {}, "no block names them"
    mine = "data/seeds/mine.jsonl"
    projects.set_values(made, "r2", [f"prompts.path={mine}", f"files={mine}"])
    for stage in stages_of(load_params(made).block("r2")):
        run_stage(made, "r2", stage.name)
    with projects.dvc(made) as repo:
        repo.commit(force=True)
    assert status(made) == {}
    (made / "data/seeds/others.jsonl").write_text("")
    assert status(made) == {}
    (made / mine).write_text("")
    assert status(made) == {address: {mine} for address in every("r2", *DOMAIN)}


def assign(content, edit: str) -> None:
    path, value = edit.split("=")
    *parents, last = path.split(".")
    for key in parents:
        content = content[key]
    content[last] = projects.YAML(typ="safe").load(value)


def test_repro_runs_the_edited_stage_and_what_follows_from_a_changed_result(made):
    before = projects.digests(made)
    projects.rewrite(made, lambda content: assign(content, "rounds.r2.filter.least=3.0"))
    with projects.dvc(made) as repo:
        ran = [stage.addressing for stage in repo.reproduce()]
        again = repo.reproduce()
    # no pair and no critique is made of what was kept; the model came out the same, so it was not evaluated again
    assert ran == ["filter@r2", "train@r2", "gate@r2"]
    assert again == []
    after = projects.digests(made)
    changed = {p.removeprefix("data/round=r2/") for p in after if after[p] != before.get(p)}
    manifests = {f"manifests/{n}.json" for n in ("filter", "train", "gate")}
    assert changed == {"filtered/part-00000.parquet", *manifests}
    assert not any(p.startswith(("data/round=r0", "data/round=r1")) for p in changed)


def test_the_commands_of_dvc_do_what_its_users_expect(made, capsys, tmp_path):
    assert dvc(["dag", "--md"]) == 0
    assert {"judge@r2", "train@r1", "evaluate-base@r0"} < set(re.findall(r"[\w-]+@r\d", capsys.readouterr().out))
    assert dvc(["metrics", "show", "--md"]) == 0
    assert "data/round=r2/metrics/judge.json" in capsys.readouterr().out
    metrics = made / "data/round=r2/metrics/judge.json"
    metrics.write_text(metrics.read_text().replace('"judge_errors/verifier": 0.0', '"judge_errors/verifier": 0.25'))
    assert dvc(["metrics", "diff", "--md"]) == 0
    assert re.search(r"judge\.json +\| judge_errors/verifier +\| 0\.0 +\| 0\.25 +\| 0\.25", capsys.readouterr().out)
    assert dvc(["plots", "show", "--quiet"]) == 0
    assert "pass_at_1" in (made / "dvc_plots/index.html").read_text()


def test_what_was_pushed_comes_back(made, tmp_path):
    before = projects.digests(made)
    assert dvc(["remote", "add", "--default", "--quiet", "local", str(tmp_path / "remote")]) == 0
    assert dvc(["push", "--quiet"]) == 0
    for name in ("data/round=r0", "data/round=r1", "data/round=r2", ".dvc/cache"):
        shutil.rmtree(made / name)
    assert dvc(["pull", "--quiet"]) == 0
    assert projects.digests(made) == before
    assert status(made) == {}
