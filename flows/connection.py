"""Chooses the Prefect server for a flow that is called in plain Python, as in `run_round("r2")`.

In this order: the server in Prefect's own settings, if it answers; the one that `flywheel up` started; one for this run
alone, whose database is under the project. Prefect's own ephemeral server would outlive a process that is killed. A flow
that a worker runs uses the worker's server and does not come here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from prefect import Flow
from prefect.context import FlowRunContext
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogHandler
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import services

P, R = ParamSpec("P"), TypeVar("R")


class HereFlow(Flow[P, R]):
    """A flow that chooses its Prefect server when it is called."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the flow on the first server that answers."""
        if FlowRunContext.get():
            return super().__call__(*args, **kwargs)
        with connected(Path()):
            try:
                return super().__call__(*args, **kwargs)
            finally:
                # Logs and events are sent in the background: flush them before the server may stop.
                APILogHandler().flush()
                EventsWorker.drain_all(timeout=5)


@contextmanager
def connected(root: Path) -> Iterator[None]:
    """Settings under which Prefect uses the first server that answers; prints a line when one is started for the block."""
    configured = PREFECT_API_URL.value()
    if configured and services.answers(configured):
        yield
    elif url := services.running_server(root):
        with temporary_settings({PREFECT_API_URL: url}):
            yield
    else:
        reason = f"the Prefect server at {configured} does not answer" if configured else "no Prefect server is running"
        print(f"{reason}: starting one for this run (`flywheel up` starts one that stays)")
        with services.own_server(root, services.free_port()) as url, temporary_settings({PREFECT_API_URL: url}):
            yield
