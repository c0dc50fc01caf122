"""A judge that reads people's labels: they are an input like any other."""

import projects
import pytest
from ruamel.yaml import YAML

from tasks.core.errors import ParamsError
from tasks.core.plan import FOLDER
from tasks.project import pipeline, plan
from tasks.project.labels import write
from tasks.project.params import load_params


def label(root, verdict="right"):
    write(root, "Ada <ada@x>", round="r1", source="responses", id="a", prompt_id="p", digest="d", label=verdict)


def judge_by_labels(root):
    with_labels = dict(projects.SMALL) | {"judge": projects.SMALL["judge"] | {"labels": {}}}
    projects.write_recipe(root, "small", with_labels)


def plans(root):
    return {str(p.relative_to(root / FOLDER)): p.read_text() for p in (root / FOLDER).glob("r*/*.json")}


def test_a_label_changes_the_plans_of_judges_that_read_it_and_of_no_other_stage(project):
    root = project(rounds=1)
    judge_by_labels(root)
    label(root)
    plan.write(root)
    before = plans(root)
    assert "data/labels/ada@x.jsonl" in before["r1/judge.json"]
    label(root, "wrong")
    plan.write(root)
    after = plans(root)
    assert {name for name in after if after[name] != before[name]} == {"r1/judge.json"}


def test_dvc_makes_plans_again_after_a_label_only_where_a_judge_reads_labels(project):
    root = project(rounds=1)

    def dependencies():
        return YAML(typ="safe").load((root / "dvc.yaml").read_text())["stages"]["plan"]["deps"]

    assert "data/labels" not in dependencies()
    judge_by_labels(root)
    label(root)
    assert pipeline.is_outdated(root, load_params(root))
    pipeline.write(root, load_params(root))
    assert "data/labels" in dependencies()
    assert not pipeline.is_outdated(root, load_params(root))


def test_before_anybody_labelled_an_answer_params_say_so(project):
    root = project(rounds=1)
    judge_by_labels(root)
    with pytest.raises(ParamsError, match="flywheel browse"):
        load_params(root)
