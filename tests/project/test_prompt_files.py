"""Broken lines of files of prompts are told together, before a campaign runs anything."""

from pathlib import Path

import projects
import pytest

from tasks.commands import rounds
from tasks.core.errors import FlywheelError
from tasks.project.prompt_files import check_rounds

pytestmark = pytest.mark.xdist_group("campaign")

GOOD = '{"problem": "Tom has 2 keys.\\nDay 1: 2 got\\nHow many?"}\n'


def prompts(root: Path, name: str, text: str) -> None:
    (root / f"data/seeds/{name}.jsonl").write_text(text)
    projects.set_values(root, name, [f"prompts.seeds.path=data/seeds/{name}.jsonl", "prompts.seeds.count=100"])


def test_the_files_of_all_rounds_are_looked_through_and_of_those_that_they_descend_from(made):
    prompts(made, "r1", GOOD + '{"text": "Tom"}\n')
    prompts(made, "r2", "[1]\n" + GOOD)
    with pytest.raises(FlywheelError, match="2 broken lines") as refusal:
        check_rounds(made, ["r2"])
    assert "r1.jsonl:2: no text" in str(refusal.value) and "r2.jsonl:1: " in str(refusal.value)
    with pytest.raises(FlywheelError, match="1 broken line"):
        check_rounds(made, ["r1"])
    prompts(made, "r1", GOOD)
    prompts(made, "r2", GOOD * 2)
    check_rounds(made, ["r2"])


def test_a_campaign_is_refused_before_anything_runs_and_only_for_its_own_rounds(made):
    before = projects.digests(made)
    prompts(made, "r2", "[1]\n")
    with pytest.raises(FlywheelError, match=r"r2\.jsonl:1: "):
        rounds.campaign(rounds=2)
    assert projects.digests(made) == before
    check_rounds(made, ["r1"])
