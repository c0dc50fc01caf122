"""What makes a stage stale, and what does not: asked of the plans, and of DVC itself, over a small campaign that has run."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import projects
import pytest
from dvc.cli import main as dvc

from tasks.core import store
from tasks.core.errors import StoreError
from tasks.core.plan import Plan
from tasks.core.plugin import names
from tasks.core.stage import stages
from tasks.project import graph, plan
from tasks.project.champion import consistent_manifests
from tasks.project.closure import PLUMBING, closure, module_file
from tasks.project.edit import add_round
from tasks.project.execute import run_stage
from tasks.project.params import load_params, stages_of
from tasks.project.pipeline import address

pytestmark = pytest.mark.xdist_group("campaign")
ROOMS = ("tasks/project/", "tasks/views/", "flows/", "tasks/commands/", "tasks/where/", "tasks/__main__.py")
"""What runs stages and shows what they made, and is imported by none."""
EXAM = ("evaluate-base@r0", "evaluate@r1", "evaluate@r2")


def plans(root: Path) -> dict[str, str]:
    """The digest of every stage's plan, by its address."""
    params = load_params(root)
    made = plan.plans(root, params)
    return {address(s, b): made[b.name, s.name].digest for b in params.blocks.values() for s in stages_of(b)}


def edited(path: Path, text: bytes = b"# an edit\n") -> bytes:
    """Appends to a file; gives what it held."""
    before = path.read_bytes()
    path.write_bytes(before + text)
    return before


def changed_by(root: Path, file: str) -> set[str]:
    """The stages whose plan an edit of a file changes; the file is put back."""
    before, content = plans(root), edited(root / file)
    after = plans(root)
    (root / file).write_bytes(content)
    return {address for address, digest in after.items() if digest != before[address]}


def everywhere(*groups: str) -> set[str]:
    """The stages of these groups in both rounds."""
    return {f"{g}@{r}" for g in groups for r in ("r1", "r2")}


DOMAIN = everywhere("prompts", "generate", "judge", "critique") | {"base@r0", *EXAM}
CONCERNED = {
    "tasks/domains/__init__.py": DOMAIN,
    "tasks/domains/arithmetic.py": DOMAIN,
    "tasks/domains/chat.py": set(),
    "tasks/engines/transformers.py": set(),
    "tasks/engines/fake.py": everywhere("generate", "judge", "critique") | set(EXAM),
    "tasks/judge/verifier.py": everywhere("judge") | set(EXAM),
    "tasks/judge/jury.py": set(),
    "tasks/filter/threshold.py": everywhere("filter"),
    "tasks/filter/top_fraction.py": set(),
    "tasks/core/targets.py": everywhere("critique", "pair"),
    "tasks/training/loop.py": everywhere("train"),
    "tasks/train/sft_dpo.py": set(),
    "tasks/gate/__init__.py": everywhere("gate"),
    "tasks/core/store.py": set(),
    "tasks/core/tables.py": set(),
    "tasks/views/report.py": set(),
    "flows/round.py": set(),
    "recipes/small.yaml": set(),
    "recipes/sharpen.yaml": set(),
    "params.yaml": set(),
}


@pytest.mark.parametrize("file", CONCERNED)
def test_an_edit_of_a_file_makes_stale_what_it_concerns_and_nothing_else(made, file):
    assert changed_by(made, file) == CONCERNED[file]


def test_every_file_is_in_a_plan_or_is_known_to_decide_no_rows(made):
    """An edit of each first-party file changes exactly the plans that name it; what none names makes no rows here."""
    params = load_params(made)
    named = {f for p in plan.plans(made, params).values() for f in p.code}
    plumbing = {module_file(made, m).relative_to(made).as_posix() for m in PLUMBING if module_file(made, m)}
    used = {type(s).__module__ for b in params.blocks.values() for _, _, s in b.strategies()}
    packages = [*stages(), "domains", "engines"]
    unused = closure(made, [f"tasks.{p}.{n}" for p in packages for n in names(p) if f"tasks.{p}.{n}" not in used])
    for path in sorted([*(made / "tasks").rglob("*.py"), *(made / "flows").rglob("*.py")]):
        file = path.relative_to(made).as_posix()
        if file in named:
            assert changed_by(made, file), file
            continue
        only_words = all(isinstance(node, ast.Expr) for node in ast.parse(path.read_text()).body)
        known = file in plumbing | unused.keys() or file.startswith(ROOMS) or only_words
        assert known, f"{file} is in no plan: is it plumbing, or does it decide rows?"
        assert changed_by(made, file) == set(), file


LOADED = """
import sys
from pathlib import Path
from tasks.core.stage import stages
from tasks.project.edit import add_round
from tasks.project.execute import run_stage
from tasks.project.params import load_params, stages_of
stages()
before = set(sys.modules)
for name, block in load_params(Path()).blocks.items():
    for stage in stages_of(block):
        run_stage(Path(), name, stage.name)
print(*sorted(m for m in set(sys.modules) - before if m.split(".")[0] in ("tasks", "flows")))
"""


def test_what_a_stage_imports_while_it_runs_is_in_its_plan(made):
    """Python's own word on what is run, beside that of the source."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED],
        cwd=made,
        env=projects.own_code(made),
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = done.stdout.split()
    assert len(loaded) > 10
    named = {f for p in plan.plans(made, load_params(made)).values() for f in p.code}
    for module in set(loaded) - PLUMBING.keys():
        file = module_file(made, module).relative_to(made).as_posix()
        assert file in named or file.startswith(ROOMS), f"{module} runs in a stage and is in no plan"


def test_code_in_a_packages_init_is_seen(made):
    assert changed_by(made, "tasks/core/__init__.py") == set(), "a comment is no code"
    content = edited(made / "tasks/core/__init__.py", b"SWITCH = True\n")
    assert any("tasks/core/__init__.py" in p.code for p in plan.plans(made, load_params(made)).values())
    (made / "tasks/core/__init__.py").write_bytes(content)


def test_a_new_judge_that_no_round_names_makes_nothing_stale(made):
    before = plans(made)
    shutil.copy(made / "tasks/judge/verifier.py", made / "tasks/judge/strict.py")
    assert plans(made) == before
    assert graph.stale(made, "r2") == []


EDITS = {
    "rounds.r2.set={filter.threshold.min_reward: 3.0}": {"filter@r2"},
    "rounds.r1.set={generate.sample.samples: 4}": {"generate@r1"},
    "rounds.r2.set={judge: {reward: verifier}}": {"judge@r2"},
    "rounds.r2.seed=9": {f"{s}@r2" for s in ("prompts", "generate", "judge", "critique", "collect", "train")},
    "rounds.r2.set={engine: {error_rate: 0.5}}": {f"{s}@r2" for s in ("generate", "judge", "critique")},
    "rounds.r2.recipe=small": set(),
    "bases.r0.evaluate.answers.greedy=7": set(EXAM),
    "bases.r0.gate.improves.min_gain=0.1": everywhere("gate"),
    "bases.r0.domain.hardest=7": DOMAIN,
    "bases.r0.base.digest=null": set(),
    "campaign.name=another": set(),
}


def assign(content, edit: str) -> None:
    """Assigns a value at a path, such as `rounds.r2.seed=9`."""
    path, _, value = edit.partition("=")
    *parents, last = path.split(".")
    for key in parents:
        if content.get(key) is None:
            content[key] = {}
        content = content[key]
    content[last] = projects.YAML(typ="safe").load(value)


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_of_params_makes_stale_what_it_concerns_and_nothing_else(made, edit):
    before = plans(made)
    projects.rewrite(made, lambda content: assign(content, edit))
    assert {a for a, digest in plans(made).items() if digest != before[a]} == EDITS[edit]


# DVC


def status(root: Path) -> dict[str, set[str]]:
    """The stages that DVC calls stale, with the dependencies that changed."""
    with projects.dvc(root) as repo:
        found = repo.status()
    return {name: set(_changed(why)) for name, why in found.items()}


def _changed(why: list) -> Iterator[str]:
    for entry in why:
        assert set(entry) == {"changed deps"}
        yield from entry["changed deps"]


def test_dvc_sees_an_edit_through_the_plan(made):
    assert status(made) == {}
    edited(made / "tasks/domains/__init__.py")
    assert status(made) == {"plan": {"tasks"}}, "the plan is made first"
    assert graph.changed_stages(made, list(plans(made))) == DOMAIN
    found = status(made)
    assert found == {
        a: {f"data/plan/{a.partition('@')[2]}/{a.partition('@')[0].removesuffix('-base')}.json"} for a in DOMAIN
    }


def test_every_stage_depends_on_its_plan_and_its_inputs_alone(made):
    with projects.dvc(made) as repo:
        deps = {s.addressing: {d.def_path for d in s.deps} for s in repo.index.stages}
    for item, paths in deps.items():
        if item != "plan":
            stage, _, name = item.partition("@")
            assert f"data/plan/{name}/{stage.removesuffix('-base')}.json" in paths
            assert all(p.startswith(("data/plan/", "data/round=")) for p in paths)


def test_a_file_of_seeds_makes_stale_who_reads_it_and_nobody_else(made):
    for name in ("mine.jsonl", "others.jsonl"):
        (made / "data/seeds" / name).write_text('{"problem": "Tom has 3 pens.\\nHow many?"}\n')
    assert graph.stale(made, "r2") == [], "no round names them"
    projects.set_values(made, "r2", ["prompts.seeds.path=data/seeds/mine.jsonl"])
    before = plans(made)
    (made / "data/seeds/others.jsonl").write_text("")
    assert plans(made) == before
    (made / "data/seeds/mine.jsonl").write_text("")
    assert {a for a, digest in plans(made).items() if digest != before[a]} == {"prompts@r2"}


def test_a_manifest_names_its_plan(made):
    for name in ("r0", "r1", "r2"):
        for stage, manifest in store.manifests(made, name).items():
            assert manifest.plan == Plan.read(made, name, stage)


def test_repro_runs_the_edited_stage_and_what_follows_from_a_changed_result(made):
    before = projects.digests(made)
    projects.rewrite(made, lambda content: assign(content, "rounds.r2.set={filter.threshold.min_reward: 3.0}"))
    with projects.dvc(made) as repo:
        ran = [stage.addressing for stage in repo.reproduce()]
        again = repo.reproduce()
    # nothing is kept now, so there is no target; the model came out the same, so it was not evaluated again
    assert ran[:2] == ["plan", "filter@r2"]
    assert sorted(ran[2:]) == [f"{s}@r2" for s in ("collect", "critique", "gate", "pair")]
    assert again == []
    after = projects.digests(made)
    changed = {p.removeprefix("data/round=r2/") for p in after if after[p] != before.get(p)}
    tables = {f"{t}/part-00000.parquet" for t in ("filtered", "critiques", "pairs")}
    assert tables <= changed
    assert {p for p in changed if p.startswith("manifests/")} == {
        f"manifests/{s}.json" for s in ("filter", "critique", "pair", "collect", "gate")
    }
    assert not any(p.startswith(("data/round=r0", "data/round=r1")) for p in changed)


def test_the_commands_of_dvc_do_what_its_users_expect(made, capsys, tmp_path):
    assert dvc(["dag", "--md"]) == 0
    assert {"judge@r2", "train@r1", "evaluate-base@r0"} < set(re.findall(r"[\w-]+@r\d", capsys.readouterr().out))
    assert dvc(["metrics", "show", "--md"]) == 0
    assert "data/round=r2/metrics/gate.json" in capsys.readouterr().out
    metrics = made / "data/round=r2/metrics/gate.json"
    metrics.write_text(re.sub(r'"kept": \d+', '"kept": 7000', metrics.read_text()))
    assert dvc(["metrics", "diff", "--md"]) == 0
    assert re.search(r"gate\.json +\| kept +\| \d+ +\| 7000 +\| \d+", capsys.readouterr().out)


def test_what_was_pushed_comes_back(made, tmp_path):
    before = projects.digests(made)
    assert dvc(["remote", "add", "--default", "--quiet", "local", str(tmp_path / "remote")]) == 0
    assert dvc(["push", "--quiet"]) == 0
    for name in ("data/round=r0", "data/round=r1", "data/round=r2", ".dvc/cache"):
        shutil.rmtree(made / name)
    assert dvc(["pull", "--quiet"]) == 0
    assert projects.digests(made) == before
    assert status(made) == {}


def test_a_first_anchor_leaves_the_rounds_before_it_alone(made):
    """Its round is new; of the others no stage runs that opens no model of an ancestor."""
    add_round(made, "r3", "r1", ["generate.sample.model=anchor"], anchor="r2")
    assert {a.partition("@")[2] for a in graph.stale(made, "r2")} == set()
    assert "generate@r3" in graph.stale(made, "r3")


def test_files_of_judges_and_within_lists_are_in_the_plans_that_read_them(made):
    (made / "data/seeds/words.txt").write_text("a")
    path = made / "tasks/judge/lists.py"
    path.write_text(LISTS)
    projects.write_recipe(
        made,
        "small",
        projects.SMALL | {"judge": projects.SMALL["judge"] | {"lists": {"files": ["data/seeds/words.txt"]}}},
    )
    script = "from pathlib import Path\nfrom tasks.project import plan\nplan.write(Path())"
    subprocess.run([sys.executable, "-c", script], cwd=made, env=projects.own_code(made), check=True)
    assert set(Plan.read(made, "r1", "judge").files) == {"data/seeds/words.txt"}
    assert set(Plan.read(made, "r1", "evaluate").files) == {"data/seeds/words.txt"}
    assert Plan.read(made, "r1", "filter").files == {}


# Optional tables

READER = '''
"""Counts the round's pairs."""

import polars as pl

from tasks.core.stage import Result
from tasks.evaluate import EvaluateCase, Evaluation
from tasks.evaluate._measures import Measure, measures_frame


class Pairs(Evaluation):
    """Counts the round's pairs."""

    def opened_models(self) -> frozenset[str]:
        """None."""
        return frozenset()

    def read_tables(self) -> frozenset[str]:
        """The round's pairs."""
        return frozenset({"pairs"})

    def __call__(self, case: EvaluateCase) -> Result:
        """One measure."""
        count = -1 if case.pairs is None else case.pairs.select(pl.len()).collect().item()
        return Result({"measures": measures_frame([Measure("pairs", None, count)])})
'''


def test_an_edit_of_pair_evaluates_again_only_where_the_exam_reads_pairs(made):
    projects.set_values(made, "r2", ["pair.best_worst.min_margin=0.3"])
    assert graph.graph(load_params(made), ["r2"])["evaluate@r2"] == {"train@r2"}
    (made / "tasks/evaluate/pairs.py").write_text(READER)
    projects.rewrite(made, lambda content: content["bases"]["r0"]["evaluate"].update(pairs={}))
    script = """
from pathlib import Path
from tasks.core import store
from tasks.project import graph, pipeline
from tasks.project.execute import run_stage
from tasks.project.params import load_params
params = load_params(Path())
assert {"pair@r2", "train@r2"} == graph.graph(params, ["r2"])["evaluate@r2"]
assert "evaluate@r2" in graph.stale(Path(), "r2")
counts = {}
for name in ("r0", "r1"):
    manifest = run_stage(Path(), name, "evaluate")
    counts[name] = (manifest.metrics["pairs"], "pairs" in manifest.inputs, manifest.plan.reads)
pairs = store.scan(Path(), "r1", "pairs")[0].collect().height
assert counts == {"r0": (-1, False, []), "r1": (pairs, True, ["pairs"])}, counts
"""
    subprocess.run([sys.executable, "-c", script], cwd=made, env=projects.own_code(made), check=True)


def test_probes_run_in_an_exam_and_their_tables_and_models_are_inputs(made):
    probes = {"exploration": {}, "forgetting": {"problems": 7}, "collapse": {"limit": 3}, "sharpening": {"problems": 7}}
    projects.rewrite(made, lambda content: content["bases"]["r0"]["evaluate"].update(probes))
    plan.write(made)
    ran = {name: run_stage(made, name, "evaluate") for name in ("r0", "r1", "r2")}
    tables = {"prompts", "responses", "judgments", "parent_evals", "base_evals", "parent_prompts", "parent_training"}
    assert set(ran["r0"].inputs) == {"model"} and ran["r0"].plan.reads == ["base_model"]
    assert set(ran["r2"].inputs) == {"model", "parent_model", "base_model"} | tables
    assert set(ran["r2"].plan.reads) == set(ran["r2"].inputs) - {"model"}
    assert ran["r2"].inputs["parent_evals"] == store.manifests(made, "r1")["evaluate"].outputs["evals"].digest
    assert {"exploration_balance", "collapse_tokens_ratio", "sharpening_gain"} <= set(ran["r2"].metrics)
    assert not {"exploration_balance", "collapse_tokens_ratio"} & set(ran["r0"].metrics)
    assert consistent_manifests(made, load_params(made).block("r2"))["evaluate"] == ran["r2"]


LISTS = '''
"""Reads lists of words."""

from pathlib import Path
from typing import ClassVar

from tasks.core.judging import Judging


class Lists(Judging):
    """Reads lists of words."""

    auditable: ClassVar[bool] = True
    files: tuple[Path, ...]
    """Where they are."""
'''


def test_the_exam_s_draws_are_the_base_s(made):
    params = load_params(made)
    assert {p.seed for (_, stage), p in plan.plans(made, params).items() if stage == "evaluate"} == {0}


def test_code_that_is_not_the_projects_own_is_refused(made):
    edited(made / "tasks/judge/verifier.py")
    plan.write(made)
    with pytest.raises(StoreError, match="PYTHONPATH"):
        run_stage(made, "r1", "judge")


def test_an_edit_while_the_plan_is_made_is_not_lost(made, monkeypatch):
    edited(made / "tasks/filter/threshold.py")
    write, calls = plan.write, []

    def write_and_edit(root):
        calls.append(write(root))
        if len(calls) == 1:
            edited(made / "tasks/judge/verifier.py")
        return calls[-1]

    monkeypatch.setattr(graph.plan, "write", write_and_edit)
    graph.stale(made, "r2")
    assert calls[1] > 0
    monkeypatch.undo()
    assert plan.write(made) == 0
