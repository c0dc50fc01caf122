"""Every metric that a stage can write has a meaning, and says for what part of the exam it holds."""

import re

import projects
import pytest

from tasks.core import store
from tasks.core.meanings import MEANINGS, meaning
from tasks.core.tables import TABLES

MEASURED = re.compile(r'(?:proportion|mean|difference|ratio|auroc|Measure|_over\(\w+,)\(?\s*f?"([^"]+)"')
WRITTEN = re.compile(r'"((?:gate|turn|turned|critique|refinement)_(?!id)\w+)": |f"(gate_[^"]+)": ')


def literals(pattern: re.Pattern[str], *folders: str) -> set[str]:
    """Names that the code of these stages gives its metrics; what is filled in is `3`, so that it is a number or a name."""
    files = [f for folder in folders for f in (projects.HERE / "tasks" / folder).glob("*.py")]
    found = {next(filter(None, match.groups())) for f in files for match in pattern.finditer(f.read_text())}
    return {re.sub(r"{[^}]*}", "3", name.removeprefix("{prefix}")) for name in found}


MEASURES = literals(MEASURED, "evaluate")
METRICS = literals(WRITTEN, "gate", "critique")


def test_the_names_are_found_in_the_code():
    assert {"critique_cl", "greedy_answer", "exploration_pass_at_3", "forgetting_3", "roles_errors"} <= MEASURES
    assert {"gate_new", "gate_3_ratio", "turned_right", "critique_targets"} <= METRICS


@pytest.mark.parametrize("name", sorted(n for n in MEASURES - {"collapse_3"} if not n.startswith("3")))
def test_every_measure_of_every_member_of_an_exam_has_a_meaning(name):
    assert meaning(name)


@pytest.mark.parametrize("name", sorted(METRICS - {"gate_3_ratio"}))
def test_every_metric_of_gates_and_critiques_has_a_meaning(name):
    assert meaning(name) or meaning(f"{name}/member")


def test_every_curve_of_a_training_has_a_meaning():
    from tasks.training.loop import PLOTTED

    phases = literals(re.compile(r'fit(?:_in_order)?\([\w, ]*"(\w+)"\)'), "train")
    assert {"sft", "dpo", "kto"} <= phases
    assert {f"{phase}_{name}" for phase in phases for name in PLOTTED if not meaning(f"{phase}_{name}")} == set()


@pytest.mark.parametrize("table", [t for t in TABLES.values() if t.metrics], ids=lambda t: t.name)
def test_every_metric_of_a_table_has_a_meaning(table):
    names = re.findall(r"select '([\w/]+)'( \|\|)?", table.metrics)
    assert names
    for name, is_begun in names:
        assert meaning(f"{name}some reason" if is_begun else name), name


def test_every_metric_of_a_campaign_has_a_meaning(campaign):
    manifests = [m for name in ("r0", "r1", "r2") for m in store.manifests(campaign, name).values()]
    names = {name for m in manifests for name in m.metrics}
    assert len(names) > 100
    assert {name for name in names if not meaning(name)} == set()


@pytest.mark.parametrize(
    ("name", "starts", "ends"),
    [
        ("greedy", "share of the greedy answers", "every step"),
        ("pass_at_1", "chance that one sampled", "every step"),
        ("pass_at_16", "chance that one of k", "(Chen et al. 2021)"),
        ("greedy/level_4", "share of the greedy answers", "(at level 4)"),
        ("validation_pass_at_8/level_12", "chance that one of k", "(on the validation set, at level 12)"),
        ("hard_greedy", "share of the greedy answers", "(of the member hard)"),
        ("validation_second_set_pass_at_2", "chance", "(on the validation set, of the member second_set)"),
        ("gate_coverage/strict", "share of the problems", "(of the member strict)"),
        ("my_judge_auroc", "chance that the judge", "a wrong one"),
        ("exploration_auroc", "chance that a right answer of the round", "a wrong one"),
        ("dropped/judge/self_judge", "answers that the filter dropped", "reason"),
        ("sft_loss", "training loss", "of the phase"),
    ],
)
def test_what_names_mean(name, starts, ends):
    text = meaning(name)
    assert text.startswith(starts)
    assert text.endswith(ends)


@pytest.mark.parametrize("name", ["", "accuracy", "pass_at_many", "gate_nothing", "/level_3", "greedy/level_x", "a\nb"])
def test_what_nobody_measures_has_none(name):
    assert meaning(name) is None


def test_no_meaning_is_hidden_by_an_earlier_one():
    for pattern, text in MEANINGS.items():
        name = re.sub(r"<\w+>", "name", pattern.replace("<k>", "16").replace("<phase>", "sft"))
        assert meaning(name) == text, pattern
