"""A small parent that speaks the arithmetic domain's roles, hardly trained."""

import pytest
from runs import DOMAIN

from tasks.base import BaseCase
from tasks.base.scratch import Scratch


@pytest.fixture(scope="session")
def parent(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parent")
    tiny = Scratch(hidden=32, layers=1, ffn=64, easy=60, clean=0, noisy=0, comparing=0, checking=0, chunk=60, batch=600)
    tiny(BaseCase(folder / "model", folder / "work", 0, DOMAIN))
    return folder / "model"


@pytest.fixture
def in_float32(monkeypatch):
    """Trainers that compute in float32, where sums of another order agree in more than three digits."""
    from tasks.training import loop

    arguments = loop.arguments
    monkeypatch.setattr(loop, "arguments", lambda *schedule: arguments(*schedule) | {"bf16": False})
