"""What a flow leaves behind for people: MLflow's record, and artifacts in Prefect's UI.

    rounds            a table of all rounds, and every quantity of each
    dropped-<round>   what the round's stages dropped, by reason, with their warnings
    page              a link to the page of all rounds
    mlflow-<round>    a link to the round's run, where MLflow has a server

An artifact that cannot be made is a warning: a round is not worse for it.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from prefect import get_run_logger
from prefect.artifacts import create_link_artifact, create_markdown_artifact

from flows import services
from tasks.project.params import load_params

TIMEOUT = 5.0
"""Seconds to wait for MLflow when a link is looked up."""


@contextmanager
def publishing(names: Iterable[str] = (), hold: bool = False) -> Iterator[Callable[[], None]]:
    """Publishes the results of rounds when the block ends, also after an error, which is raised again. With `hold` no alias
    moves.

    Yields a function that updates MLflow in the background while the block runs, so that rounds appear there early and
    little is left for the end.
    """
    log, root, rounds = get_run_logger(), Path(), list(names)
    with ThreadPoolExecutor(1) as background:

        def publish_soon() -> None:
            with suppress(RuntimeError):  # the block has ended: everything is published below
                background.submit(_record, root, log)

        try:
            yield publish_soon
        except Exception:
            background.shutdown(cancel_futures=True)
            try:
                publish(root, rounds, hold)
            except Exception:
                log.exception("results from before the failure could not be published")
            raise
    publish(root, rounds, hold)


def _record(root: Path, log: Any) -> None:
    from tasks.views.record import record

    try:
        record(root, move_alias=False)
    except Exception as error:  # a stage may be replacing its files; the last call must succeed
        log.warning(f"MLflow will be updated at the end: {error}")


def publish(root: Path, names: Iterable[str] = (), hold: bool = False) -> None:
    """Updates MLflow, and stores artifacts about all rounds and about these in Prefect's UI."""
    from tasks.views import boards
    from tasks.views.record import record

    log = get_run_logger()
    log.info(record(root, move_alias=not hold))
    create_markdown_artifact(boards.overview(root), key="rounds", description="The rounds of this project")
    for name in names:
        _attempt(log, lambda name=name: _dropped(root, name))
        _attempt(log, lambda name=name: _mlflow_link(root, name))
    _attempt(log, lambda: _page(root))


def _attempt(log: Any, make: Callable[[], object]) -> None:
    try:
        make()
    except Exception as error:
        log.warning(f"an artifact is missing: {error}")


def _dropped(root: Path, name: str) -> None:
    from tasks.views import boards

    if text := boards.drops(root, name):
        create_markdown_artifact(
            text, key=f"dropped-{slug(name)}", description=f"What the stages of {name} dropped, and why"
        )


def _page(root: Path) -> None:
    from tasks.views import page

    file = page.keep(root).resolve()
    create_link_artifact(
        file.as_uri(),
        link_text=str(page.KEPT),
        key="page",
        description=f"The page of all rounds; it opens from disk: {file}",
    )


def _mlflow_link(root: Path, name: str) -> None:
    if url := mlflow_run(root, name):
        create_link_artifact(
            url,
            link_text=f"{name} in MLflow",
            key=f"mlflow-{slug(name)}",
            description=f"{name}: models, metrics, curves",
        )


def mlflow_run(root: Path, name: str) -> str | None:
    """Address of the newest run of a round in MLflow's UI; None where no server of MLflow answers, or none has the round.

    Raises:
        httpx.HTTPError: when a server answers no longer.
    """
    server = services.mlflow_address(root)
    if server is None:
        return None
    experiment = load_params(root).campaign.name
    with httpx.Client(
        base_url=f"{server}/api/2.0/mlflow", timeout=TIMEOUT, trust_env=not services.is_local(server)
    ) as client:
        found = client.get("/experiments/get-by-name", params={"experiment_name": experiment}).raise_for_status().json()
        number = found["experiment"]["experiment_id"]
        query = {
            "experiment_ids": [number],
            "filter": f"attributes.run_name = '{name}'",
            "order_by": ["attributes.start_time DESC"],
        }
        runs = client.post("/runs/search", json=query).raise_for_status().json().get("runs", [])
    return f"{server}/#/experiments/{number}/runs/{runs[0]['info']['run_id']}" if runs else None


def slug(name: str) -> str:
    """A round's name as a part of an artifact's key: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "round"
