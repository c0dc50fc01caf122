"""The base that is shipped as data/taught: what it is taught it can do, on documents of problems that it has not seen."""

import json
from pathlib import Path

import projects
import pytest

from tasks.base.taught import Taught
from tasks.core import roster
from tasks.core.models import digest
from tasks.domains.arithmetic import Arithmetic
from tasks.engines.transformers import Transformers
from tasks.evaluate import EvaluateCase
from tasks.evaluate.roles import Roles

TAUGHT = projects.HERE / "data/taught"
FLOORS = {
    "solve": 0.75, "write": 0.85, "judge": 0.8, "critique": 0.8, "refine": 0.6, "grade": 0.6, "compare": 0.7,
    "together": 0.25, "truth": 0.4, "know": 0.45, "agree": 0.3, "feedback": 0.7, "revise": 0.6, "retry": 0.7,
    "hint": 0.6, "refuse": 0.9, "imitate": 0.3, "mutate": 0.2,
}  # fmt: skip
"""Shares of documents that each role does rightly, below what more documents gave (docs/log.md)."""


def test_its_card_is_of_todays_recipe_and_base():
    recipe = json.loads((TAUGHT / "README.md").read_text().partition("```json")[2].partition("```")[0])
    assert Taught(**recipe["strategy"]) == Taught(path=Path("data/base"))
    assert recipe["start"] == digest(projects.HERE / "data/base")


@pytest.fixture(scope="module")
def shares():
    models = roster.one(Transformers(), TAUGHT, "model")
    result = Roles(problems=42)(EvaluateCase(models=models, domain=Arithmetic(), seed=0))
    models.close()
    return dict(result.frames["measures"].select("name", "value").collect().rows())


@pytest.mark.parametrize("role", FLOORS)
def test_each_role_is_above_its_floor(shares, role):
    assert shares[f"role_{role}"] >= FLOORS[role]


def test_every_role_has_a_floor():
    assert set(FLOORS) == set(Arithmetic.roles)
