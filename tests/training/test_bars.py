"""What a stage's process prints beside its own line: nothing of the libraries that load, map and save."""

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from tasks.commands.rounds import QUIET, app

WORK = """
import sys
from datasets import Dataset
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
Dataset.from_list([{"n": n} for n in range(10)]).map(lambda row: {"twice": 2 * row["n"]}).to_parquet(sys.argv[2] + ".parquet")
model.save_pretrained(sys.argv[2])
"""


def test_the_libraries_draw_no_bars_in_a_stage(tiny_model, tmp_path):
    command = [sys.executable, "-c", WORK, str(tiny_model), str(tmp_path / "saved")]
    done = subprocess.run(command, env=os.environ | QUIET, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert (tmp_path / "saved/config.json").is_file()


@pytest.mark.parametrize(("stage", "expected"), [("train", "1"), ("base", None)])
def test_every_stage_but_the_one_that_downloads_is_quiet(stage, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.environ", {k: v for k, v in os.environ.items() if k not in QUIET})
    monkeypatch.setattr("gc.set_threshold", lambda *_: None)
    CliRunner().invoke(app, ["stage", stage, "r9"])  # it fails at once: there is no project here
    assert {os.environ.get(variable) for variable in QUIET} == {expected}
