import os
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


DROPS_IT = """
import sys, time, weakref
from pathlib import Path
from tasks.__main__ import guarded

class Gone:
    pass

def drop():
    gone = Gone()
    reference = weakref.ref(gone, lambda _: (Path("held").touch(), time.sleep(2)))
    del gone
    time.sleep(60)

sys.unraisablehook = lambda _: None
guarded(drop)
"""
IMPORTS = """
import time
from tasks.__main__ import guarded

def hold():
    import slow
    time.sleep(60)

guarded(hold)
"""
SLOW = """
import time
from pathlib import Path
Path("held").touch()
for _ in range(20):
    time.sleep(0.05)
Path("whole").touch()
"""


@pytest.mark.parametrize("code", [DROPS_IT, IMPORTS], ids=["in a callback", "in an import"])
def test_a_signal_is_not_lost(tmp_path, code):
    """Python drops what is raised in a callback; and an import is ended first, or an extension may abort or hang."""
    (tmp_path / "slow.py").write_text(SLOW)
    path = os.pathsep.join([str(demo.__file__).removesuffix("/flows/demo.py"), str(tmp_path)])
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
    ) as process:
        while not (tmp_path / "held").exists() and process.poll() is None:
            time.sleep(0.05)
        process.terminate()
        stderr = process.communicate(timeout=30)[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert stderr == "flywheel: SIGTERM: ending; nothing already made is lost\n"
    assert (tmp_path / "whole").exists() == (code == IMPORTS)


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
