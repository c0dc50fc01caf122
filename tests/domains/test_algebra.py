"""The process that computes LaTeX: what it computes, and what ends it."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import psutil
import pytest

from tasks.core.errors import FlywheelError
from tasks.domains import _algebra, _compute
from tasks.domains._algebra import Overrun, Service, algebraic
from tasks.domains.math import Math

HANGING = [
    r"(\sqrt{2}+\sqrt{3}+\sqrt{5}+\sqrt{7})^{99}",
    r"9^{9^{9^{9}}}",
    r"10^{1000000000}",
    r"\frac{1}{(\sqrt{2}+\sqrt{3}+\sqrt{5}+\sqrt{7})^{99}}",
    r"(1+\sqrt{2}+\sqrt{3}+\sqrt{5}+\sqrt{6}+\sqrt{7})^{80}",
]
MATH = Math(train="a", test="b")


@pytest.fixture
def service():
    service = Service()
    yield service
    service.close()


def children() -> list[psutil.Process]:
    return [c for c in psutil.Process().children() if _compute.__file__ in c.cmdline()]


@pytest.mark.parametrize(
    ("latex", "value"),
    [
        (r"3\sqrt{16}", "12"),
        (r"\frac{1}{\sqrt{2}}", "sqrt(2)/2"),
        ("2^{10}", "1024"),
        (r"0.1\cdot 3", "3/10"),
        ("x", None),
        ("", None),
    ],
)
def test_values_are_math_verifys_in_canonical_form(latex, value):
    assert algebraic(latex) == value


@pytest.mark.torture(
    "LaTeX that keeps computer algebra busy for ever", "an error after 2 s of the processor; the next answer is read"
)
def test_what_would_take_for_ever_is_an_error(tries):
    for attempt in tries(10):
        latex = HANGING[attempt // 2 % len(HANGING)]
        verdict = MATH.verify("", f"\\boxed{{{latex}+{attempt}}}", "18")
        assert verdict.passed is None
        assert "takes more than 2 s to compute" in verdict.error
        assert MATH.verify("", rf"\boxed{{\sqrt{{{(attempt + 3) ** 2}}}}}", str(attempt + 3)).passed


@pytest.mark.parametrize("latex", ["{" * 50 + "18" + "}" * 50, r"\sqrt{" * 50 + "18" + "}" * 50])
def test_deep_nesting_is_not_read_as_a_right_answer_and_ends(latex):
    assert not MATH.verify("", f"\\boxed{{{latex}+1}}", "18").passed


def test_an_overrun_is_remembered_and_its_process_is_replaced(monkeypatch, service):
    asked = []
    monkeypatch.setattr(_algebra, "_value", lru_cache(lambda latex: asked.append(latex) or service.value(latex)))
    for _ in range(3):
        with pytest.raises(Overrun, match="2 s"):
            algebraic(HANGING[0])
    assert len(asked) == 1
    assert not service._process.running
    assert service.value("2^{3}") == ("8", None)


def test_it_ends_at_its_own_deadline_and_not_at_the_clocks(service):
    """A process that is stopped for a while, as on a machine that is busy, answers when it goes on."""
    assert service.value("2^{3}") == ("8", None)
    process = service._process._process
    os.kill(process.pid, signal.SIGSTOP)
    threading.Timer(3, os.kill, (process.pid, signal.SIGCONT)).start()
    assert service.value("2^{4}") == ("16", None)
    assert service._process._process is process


def test_one_that_is_stuck_is_ended_and_replaced(service, monkeypatch):
    assert service.value("2^{3}") == ("8", None)
    stuck = service._process._process
    os.kill(stuck.pid, signal.SIGSTOP)
    monkeypatch.setattr(_algebra, "STUCK", 0.5)
    value, error = service.value("2^{4}")
    assert value is None
    assert "more than it may" in error
    monkeypatch.undo()
    assert service.value("2^{5}") == ("32", None)
    assert stuck.returncode == -signal.SIGKILL


@pytest.mark.torture(
    "`kill -9` of the process that computes LaTeX", "its expression is an error at most, the next is computed"
)
def test_one_that_is_killed_is_replaced(tries, service):
    for attempt in tries(20):
        assert service.value(f"2^{{{attempt}}}") == (str(2**attempt), None)
        os.kill(service._process._process.pid, signal.SIGKILL)
        if attempt % 20 < 10:
            service._process._process.wait()
        value, error = service.value(f"3^{{{attempt}}}")
        assert value == str(3**attempt) or "exit code -9" in error
        assert service.value(f"5^{{{attempt}}}") == (str(5**attempt), None)


def test_threads_share_one_process():
    with ThreadPoolExecutor(8) as pool:
        values = list(pool.map(algebraic, [rf"\sqrt{{{n * n}}}" for n in range(2, 60)]))
    assert values == [str(n) for n in range(2, 60)]
    assert len(children()) == 1


def test_a_fork_has_a_process_of_its_own():
    algebraic(r"\sqrt{121}")
    code = (
        "import os\nfrom tasks.domains._algebra import SERVICE\n"
        r"assert SERVICE.value('2^{3}') == ('8', None)" "\n"
        "pid = os.fork()\n"
        r"assert SERVICE.value('2^{4}') == ('16', None)" "\n"
        "os._exit(SERVICE.close() or 0) if pid == 0 else os.waitpid(pid, 0)\n"
        r"assert SERVICE.value('2^{5}') == ('32', None)"
    )  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_it_ends_with_the_process_that_started_it():
    code = (
        "import os, signal\nfrom tasks.domains._algebra import SERVICE\n"
        "SERVICE.value('2^{3}')\nprint(SERVICE._process._process.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    left = [p for p in psutil.process_iter() if p.pid == int(run.stdout)]
    _, alive = psutil.wait_procs(left, timeout=60)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []


def test_plain_numbers_start_no_process_and_the_process_no_library_of_models():
    code = (
        "import sys\nfrom tasks.domains.math import final\nfrom tasks.domains._algebra import SERVICE\n"
        "assert final('#### 18') == final('\\\\boxed{36/2}') == '18' and SERVICE._process is None\n"
        "assert not {'sympy', 'math_verify', 'torch'} & set(sys.modules)\n"
        "from tasks.domains import _compute\n_compute.compute('2^{3}')\n"
        "assert not {'torch', 'transformers', 'polars'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_its_memory_is_limited(service):
    assert service.value("2^{3}") == ("8", None)
    process = psutil.Process(service._process._process.pid)
    assert process.rlimit(psutil.RLIMIT_AS)[0] == _compute.MEMORY
    most = process.memory_info().vms + (20 << 20)
    process.rlimit(psutil.RLIMIT_AS, (most, most))
    value, error = service.value("2^{2000000000}")  # 250 MB
    assert value is None
    assert "takes more than" in error
    assert service.value("2^{3}") == ("8", None)


def test_one_that_does_not_start_is_an_error_of_its_own(service, monkeypatch):
    monkeypatch.setattr(_compute, "__file__", "/absent.py")
    with pytest.raises(FlywheelError, match=r"did not start \(exit code 2\).*math-verify"):
        service.value("2^{3}")
    monkeypatch.undo()
    assert service.value("2^{3}") == ("8", None)
