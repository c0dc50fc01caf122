"""Which Prefect server a flow runs on when it is called in plain Python, as in `run_round("r2")`.

In this order: the server that Prefect's own settings name, if it answers; the one that `flywheel up` started; Prefect's
ephemeral one, which keeps its database under the project and forgets part of a run's history when the process ends.
A flow that a worker runs does not come here: the worker's server is the one.
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
from prefect.settings.legacy import Setting

from flows import services

P, R = ParamSpec("P"), TypeVar("R")


class HereFlow(Flow[P, R]):
    """A flow that finds its server when it is called."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the flow on the server that is there."""
        if FlowRunContext.get():
            return super().__call__(*args, **kwargs)
        with connected(Path()):
            try:
                return super().__call__(*args, **kwargs)
            finally:
                # Logs and events are sent from the background: all must be there before the server may be ended.
                APILogHandler().flush()
                EventsWorker.drain_all(timeout=5)


@contextmanager
def connected(root: Path) -> Iterator[None]:
    """Settings under which Prefect uses the server that is there; says so where it has to make do with its own."""
    configured = PREFECT_API_URL.value()
    if configured and services.answers(configured):
        yield
    elif url := services.running_server(root):
        with temporary_settings({PREFECT_API_URL: url}):
            yield
    else:
        named = f"the Prefect server at {configured} does not answer" if configured else "no Prefect server is running"
        print(
            f"{named}: using an ephemeral one for this run (`flywheel up` starts one with a UI that keeps the history)"
        )
        with temporary_settings(ephemeral(root), restore_defaults=[PREFECT_API_URL]):
            yield


def ephemeral(root: Path) -> dict[Setting, Any]:
    """Settings of an ephemeral server, with its database under the project unless another one is set."""
    from prefect.settings import PREFECT_SERVER_ALLOW_EPHEMERAL_MODE, PREFECT_SERVER_DATABASE_CONNECTION_URL

    url = services.database(root).get(services.DATABASE[0])
    own = {PREFECT_SERVER_DATABASE_CONNECTION_URL: url} if url else {}
    return own | {PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: True}
