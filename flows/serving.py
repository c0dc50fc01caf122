"""One engine for the stages of a round, where its engine has `stay_open`: `flywheel serve` for as long as they run.

The server is a child of the flow's process, which holds its standard input: it ends with the flow, however that ends, and
before that with the round's last stage that asks it. Where none can be started the stages start an engine each, as ever.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from prefect import get_run_logger

from flows.reproduce import environment
from tasks.project import serving

PATIENCE = 60.0
"""Seconds in which the command must have made itself known; loading the model takes longer, and stages wait for that."""
GRACE = 40.0
"""Seconds in which it must end."""


@contextmanager
def kept_open(root: Path, todo: Sequence[str]) -> Iterator[Callable[[str], None]]:
    """Yields what is to be called before a stage of `todo` starts."""
    servers: dict[str, subprocess.Popen[str]] = {}

    def before(item: str) -> None:
        name = item.partition("@")[2]
        own = [f"{s}@{name}" for s in serving.STAGES]
        if item in own and name not in servers and len(set(own) & set(todo)) > 1 and serving.stays_open(root, name):
            if why := serving.problem(root, name):
                get_run_logger().warning(f"{name}: each stage starts an engine of its own: {why}")
            else:
                servers[name] = start(root, name)

    try:
        yield before
    finally:
        for server in servers.values():
            end(server)


def start(root: Path, name: str) -> subprocess.Popen[str]:
    """Starts the server of a round; stages that are started from now on wait for it."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tasks", "serve", name, "--until-stdin-closes"], cwd=root, env=environment(),
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + PATIENCE
    while server.poll() is None and not serving.is_up(root, name) and time.monotonic() < deadline:
        time.sleep(0.1)
    return server


def end(server: subprocess.Popen[str]) -> None:
    """Ends a server, where it has not ended with its round."""
    assert server.stdin is not None
    server.stdin.close()
    try:
        server.wait(GRACE)
    except subprocess.TimeoutExpired:
        server.kill()  # vLLM's own process ends by itself then
        server.wait()
