"""The page of all rounds, as an artifact of the last round's run."""

from collections.abc import Mapping
from pathlib import Path

from tasks.core import store
from tasks.core.champion import Election
from tasks.project.params import Pipeline
from tasks.project.plan import Plans
from tasks.views.record._runs import Recorder

PAGE = "rounds.html"
DIGEST = "page"
"""Tag of a run with the digest of its page."""


def log_page(
    root: Path, recorder: Recorder, pipeline: Pipeline, current: Plans, results: Mapping[str, Election]
) -> list[str]:
    """Logs the page where it changed, to the run of the last round of params.yaml that has one: each round's run keeps the page
    as it was when the next one began. Returns what went wrong; no page is worth a failed record.
    """
    from tasks.views.page import Known, keep

    recorded = next(reversed(recorder.recorded.values()), None)
    if recorded is None:
        return []
    last = recorder.client.get_run(recorded.run)
    if DIGEST in last.data.tags and not recorder.new.total():
        return []
    try:
        page = keep(root, Known(pipeline, current, results))
    except Exception as error:
        return [f"the page of the rounds was not made: {type(error).__name__}: {error}"]
    digest = store.sha256(page)
    if last.data.tags.get(DIGEST) != digest:
        recorder.client.log_text(last.info.run_id, page.read_text(encoding="utf-8"), PAGE)
        recorder.client.set_tag(last.info.run_id, DIGEST, digest)
    return []
