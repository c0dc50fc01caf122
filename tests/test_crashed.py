"""A worker that dies is no failure the first time, and one the second time."""

import os
import subprocess
import sys
from pathlib import Path

CONFTEST = """
import sys
sys.path.insert(0, {tests!r})
import crashed

def pytest_handlecrashitem(crashitem, report, sched):
    crashed.rerun(crashitem, report, sched)

def pytest_terminal_summary(terminalreporter):
    for line in crashed.lines():
        terminalreporter.write_line(line)
"""
TESTS = """
import os, signal
from pathlib import Path

def test_before():
    pass

def test_it():
    if len(list(Path().glob("death*"))) < {deaths}:
        Path(f"death{{os.getpid()}}").touch()
        os.kill(os.getpid(), signal.SIGSEGV)

def test_after():
    pass
"""
FILES = 8
"""That workers have ended before one dies."""


def run(place: Path, deaths: int) -> tuple[int, str]:
    """Exit code and output of tests one of which takes its worker down so often."""
    (place / "conftest.py").write_text(CONFTEST.format(tests=str(Path(__file__).parent)))
    for n in range(FILES):
        (place / f"test_before_{n}.py").write_text("def test_a(): pass\ndef test_b(): pass\ndef test_c(): pass\n")
    (place / "test_one.py").write_text(TESTS.format(deaths=deaths))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "xdist", "-n", "2", "--dist", "loadfile"]
    own = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "-p no:faulthandler"}
    done = subprocess.run(command, cwd=place, env=own, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout


def test_a_worker_that_dies_once_costs_nothing_and_is_told(tmp_path):
    code, output = run(tmp_path, deaths=1)
    assert code == 0, output
    assert f"{3 * FILES + 3} passed, 1 rerun" in output
    assert "a worker died while it ran test_one.py::test_it, which was run again" in output


def test_a_test_at_which_every_worker_dies_fails(tmp_path):
    code, output = run(tmp_path, deaths=9)
    assert code == 1, output
    assert "crashed while running 'test_one.py::test_it'" in output
