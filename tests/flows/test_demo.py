import signal
import subprocess
import sys
import time

import psutil
import pytest

from flows import demo

HOLDS_A_SERVER = """
import signal, time
from pathlib import Path
from flows import services
from tasks.__main__ import guarded

services.prefect_server = lambda *_, **__: services.Service("prefect server", ["sleep", "60"], lambda: True, port=0)

def hold():
    with services.server(Path()):
        Path("held").touch()
        time.sleep(60)

for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)  # whoever runs the tests
guarded(hold)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_what_was_started_in_one_line(tmp_path, monkeypatch, number):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(demo.__file__).removesuffix("/flows/demo.py"))
    with subprocess.Popen([sys.executable, "-c", HOLDS_A_SERVER], stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "held").exists() and process.poll() is None:
            time.sleep(0.05)
        [server] = psutil.Process(process.pid).children()
        process.send_signal(number)
        stderr = process.communicate(timeout=30)[1]
    assert process.returncode == 128 + number
    assert stderr == f"flywheel: {number.name}: ending; nothing already made is lost\n"
    assert not server.is_running()


def test_what_nohup_ignores_stays_ignored(tmp_path):
    command = (
        "import os, signal; from tasks.__main__ import guarded; guarded(lambda: os.kill(os.getpid(), signal.SIGHUP))"
    )
    done = subprocess.run(["nohup", sys.executable, "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_demo_that_was_killed_before_it_recorded_is_recorded_by_the_next(made, monkeypatch, capsys):
    monkeypatch.setattr(demo, "ROUNDS", 2)
    demo.demo(made)
    printed = capsys.readouterr().out
    assert "up to date" in printed
    assert "3 runs" in printed
    demo.demo(made)
    assert "was up to date; " in capsys.readouterr().out
